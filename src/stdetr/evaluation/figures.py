"""Figures of an evaluation: precision over recall, and AP of each class, one line or bar per evaluator."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stdetr.atomic import replacing
from stdetr.evaluation.evaluate import Evaluation
from stdetr.names import printable

# One colour per evaluator in every figure; they differ in lightness too, for colour-blind readers.
COLOURS = {"vid": "#0b4f8a", "vid_mega": "#e07b1a", "coco": "#2f9e44", "tube": "#a53fa8"}
MOST_CLASSES = 40


def write_figures(evaluation: Evaluation, folder: Path) -> list[Path]:
    """``precision_recall.png`` and ``per_class.png``; returns those drawn (none when no AP is defined)."""
    written = []
    for name, draw in (("precision_recall.png", precision_recall), ("per_class.png", per_class)):
        # Names with dollar signs are no formulas.
        with matplotlib.rc_context({"text.parse_math": False}):
            figure = draw(evaluation)
            if figure is not None:
                FigureCanvasAgg(figure)
                with replacing(folder / name) as draft:
                    figure.savefig(draft, dpi=120)
                written.append(folder / name)
    return written


def _subtitle(evaluation: Evaluation) -> str:
    gt, seeds = evaluation.inputs.gt, evaluation.seeds or "not stated"
    return f"{len(gt.image_ids)} frames, {len(gt.video_ids)} videos, {evaluation.mode}, seeds: {seeds}"


def precision_recall(evaluation: Evaluation) -> Figure | None:
    """Precision over recall at the 0.5 threshold of each evaluator, mean over classes; None when there is none."""
    curves = [(label, curve) for result in evaluation.results.values() for label, curve in result.curves.items()]
    if not curves:
        return None
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    flat = evaluation.flat()
    styles = {"vid": "-", "vid_mega": "--", "coco": "-.", "tube": ":"}
    for label, (recall, precision) in curves:
        name = label.split("/")[0]
        text = f"{label} = {flat[label]:.3f}"
        axes.plot(recall, precision, color=COLOURS[name], linestyle=styles[name], linewidth=2, label=text)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision (envelope, mean over classes)")
    axes.set_title(f"Precision and recall at IoU 0.5\n{_subtitle(evaluation)}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize=9)
    return figure


def per_class(evaluation: Evaluation) -> Figure | None:
    """AP50 of each class by each evaluator; the classes with most boxes when there are too many to read."""
    columns = [(name, r.per_class["AP50"]) for name, r in evaluation.results.items() if "AP50" in r.per_class]
    if not columns:
        return None
    gt = evaluation.inputs.gt
    boxes = np.bincount(gt.category[~gt.crowd], minlength=len(gt.category_ids))
    shown = np.argsort(-boxes, kind="stable")
    shown = shown[boxes[shown] > 0][:MOST_CLASSES]
    if not len(shown):
        return None
    figure = Figure(figsize=(max(6.4, 0.38 * len(shown) + 2.5), 4.4), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(columns)
    for place, (name, values) in enumerate(columns):
        left = np.arange(len(shown)) - 0.4 + (place + 0.5) * width
        axes.bar(left, np.nan_to_num(values[shown]), width, color=COLOURS[name], label=f"{name}/AP50")
    names = [printable(gt.category_names[c]) for c in shown]
    axes.set_xticks(np.arange(len(shown)), [f"{n}\n({boxes[c]})" for n, c in zip(names, shown, strict=True)])
    axes.tick_params(axis="x", labelsize=8, labelrotation=90 if len(shown) > 8 else 0)
    axes.set(ylim=(0, 1.02), ylabel="AP50", xlabel="class (annotated boxes)")
    rest = "" if len(shown) == (boxes > 0).sum() else f", {len(shown)} classes with most boxes"
    axes.set_title(f"AP50 of each class{rest}\n{_subtitle(evaluation)}", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(columns), fontsize=9)
    return figure
