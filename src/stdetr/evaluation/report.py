"""Reports of an evaluation: tables, JSON, Markdown."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stdetr.atomic import write_text
from stdetr.evaluation.confusion import IOU, confusion
from stdetr.evaluation.evaluate import Evaluation, number_or_none
from stdetr.names import printable

MOST_CONFUSED = 20  # classes up to which a confusion table is readable
Cell = str | int | float | None

# Metrics that are called "VID AP50" somewhere, and metrics they are mistaken for.
AP = (("vid", "AP50"), ("vid_mega", "AP50"), ("coco", "AP50"), ("coco", "AP"), ("tube", "AP50"), ("tube", "AP"))
VARIANTS = (*AP, ("streaming", "sAP50"), ("streaming", "sAP"))
PER_CLASS = (*AP, ("track", "HOTA"), ("track", "MOTA"), ("track", "IDF1"))
TRACKING = ("HOTA", "DetA", "AssA", "LocA", "MOTA", "IDF1", "IDSW", "MT", "ML", "Frag")
# Tables of metrics that are split into parts: name, title, the parts, the metrics.
SPLIT = (
    ("per_motion", "Per motion", ("fast", "medium", "slow"), (("vid", "AP50"), ("vid_mega", "AP50"))),
    ("per_size", "Per size", ("small", "medium", "large"), (("coco", "AP"), ("tube", "AP"), ("streaming", "sAP"))),
    ("degradation", "Degraded and clean frames", ("degraded", "clean"), (("coco", "AP50"), ("coco", "AP"))),
)


@dataclass(frozen=True)
class Table:
    """Rows for a report, or for a W&B table: ``wandb.Table(columns=table.columns, data=table.rows)``."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]

    def markdown(self) -> str:
        columns = [_text(name) for name in self.columns]
        lines = [columns, ["---"] * len(columns), *([_text(cell) for cell in row] for row in self.rows)]
        return f"## {self.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() and abs(cell) > 1 else f"{cell:.4f}"
    return escape(str(cell))


def escape(text: str) -> str:
    """``text`` on one line of Markdown, where it is no markup: names of classes and videos come with the data."""
    return re.sub(r"[\\`|<>*\[\]]", r"\\\g<0>", printable(text))


def tables(evaluation: Evaluation) -> dict[str, Table]:
    """``variants``, ``per_class``, ``confusion``, ``per_motion``, ``per_size``, ``degradation``, ``per_<field>``,
    ``tracking`` and ``per_video``; those whose evaluators did not run are left out.
    """
    results = evaluation.results
    out = {"variants": _variants(evaluation), "per_class": _per_class(evaluation)}
    fields = [
        (f"per_{name}", f"Per {name}", tuple(f"{name}_{part}" for part in parts), (("coco", "AP50"), ("tube", "AP50")))
        for name, parts in evaluation.parts.items()
    ]
    for name, title, parts, metrics in (*SPLIT, *fields):
        rows: list[list[Cell]] = []
        for evaluator, metric in metrics:
            values = results[evaluator].metrics if evaluator in results else {}
            if f"{metric}_{parts[0]}" in values:
                keys = (metric, *(f"{metric}_{part}" for part in parts))
                rows.append([f"{evaluator}/{metric}", *(number_or_none(values[key]) for key in keys)])
        if rows:
            out[name] = Table(title, ["metric", "all", *parts], rows)
    if 2 <= len(evaluation.inputs.gt.category_ids) <= MOST_CONFUSED:
        out["confusion"] = _confusion(evaluation)
    if "track" in results:
        result = results["track"]
        out["tracking"] = Table("Tracking", list(TRACKING), [_tracking(result.metrics)])
        if result.details:
            rows = [[video, *_tracking(values)] for video, values in result.details["per_video"].items()]
            out["per_video"] = Table("Tracking per video", ["video", *TRACKING], rows)
    return out


def _tracking(values: dict[str, float]) -> list[Cell]:
    return [number_or_none(values[name]) for name in TRACKING]


def _variants(evaluation: Evaluation) -> Table:
    rows: list[list[Cell]] = []
    for name, metric in VARIANTS:
        if name in evaluation.results:
            result = evaluation.results[name]
            value = number_or_none(result.metrics[metric])
            rule = evaluation.rules[name]
            if value is None:
                rule = f"not defined: {result.undefined or 'no ground truth counts'}"
            frames = len(evaluation.inputs.gt.image_ids)
            rows.append([f"{name}/{metric}", value, rule, frames, evaluation.mode, evaluation.seeds or "not stated"])
    return Table("Variants side by side", ["metric", "value", "evaluator", "frames", "mode", "seeds"], rows)


def _per_class(evaluation: Evaluation) -> Table:
    gt, results = evaluation.inputs.gt, evaluation.results
    boxes = np.bincount(gt.category[~gt.crowd], minlength=len(gt.category_ids))
    given = np.bincount(evaluation.inputs.detections.category, minlength=len(gt.category_ids))
    shown = [(n, m) for n, m in PER_CLASS if n in results and m in results[n].per_class]
    rows: list[list[Cell]] = []
    for c, label in enumerate(gt.category_names):
        values = [number_or_none(results[n].per_class[m][c]) for n, m in shown]
        rows.append([label, int(boxes[c]), int(given[c]), *values])
    return Table("Per class", ["class", "boxes", "detections", *(f"{n}/{m}" for n, m in shown)], rows)


def _confusion(evaluation: Evaluation) -> Table:
    """Shares of the annotated boxes of each class."""
    names = evaluation.inputs.gt.category_names
    rows: list[list[Cell]] = []
    for name, counts in zip(names, confusion(evaluation.inputs), strict=True):
        total = int(counts.sum())
        rows.append([name, total, *(None if not total else float(count / total) for count in counts)])
    title = f"Class of the most confident detection on each annotated box (IoU {IOU:g} or more), shares of the boxes"
    return Table(title, ["class", "boxes", *names, "none"], rows)


def markdown(evaluation: Evaluation) -> str:
    """The whole report as Markdown."""
    gt = evaluation.inputs.gt
    head = [
        "# Evaluation",
        "",
        f"{len(gt.image_ids)} frames of {len(gt.video_ids)} videos, {len(gt.boxes)} annotated boxes, "
        f"{len(evaluation.inputs.detections)} detections, {len(gt.category_ids)} classes; mode: {evaluation.mode}; "
        f"seeds: {evaluation.seeds or 'not stated'}.",
        "",
        *(f"- {key}: {escape(value)}" for key, value in evaluation.sources.items()),
        "",
    ]
    undefined = [f"- {name}: {result.undefined}" for name, result in evaluation.results.items() if result.undefined]
    if undefined:
        head += ["Not defined here (null in metrics.json):", "", *undefined, ""]
    head += _notes(evaluation)
    return "\n".join(head) + "\n" + "\n".join(table.markdown() for table in tables(evaluation).values())


def _notes(evaluation: Evaluation) -> list[str]:
    """Lines on extensions of the public rules; empty if there are none."""
    notes = [f"- {name}: {result.note}" for name, result in evaluation.results.items() if result.note]
    return ["Beyond the public rules:", "", *notes, ""] if notes else []


def summary(evaluation: Evaluation) -> str:
    """The tables to print: all variants side by side, motion, sizes, degradation, tracking."""
    shown = [
        table.markdown()
        for name, table in tables(evaluation).items()
        if name not in ("per_class", "per_video", "confusion")
    ]
    return "\n".join([*shown, *_notes(evaluation)])


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` completely or not at all: a killed run leaves the previous file."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def as_document(evaluation: Evaluation) -> dict[str, Any]:
    """The whole report as one JSON document."""
    gt = evaluation.inputs.gt
    return {
        "frames": len(gt.image_ids),
        "videos": len(gt.video_ids),
        "boxes": len(gt.boxes),
        "detections": len(evaluation.inputs.detections),
        "classes": dict(zip(gt.category_names, gt.category_ids.tolist(), strict=True)),
        "mode": evaluation.mode,
        "seeds": evaluation.seeds,
        "sources": evaluation.sources,
        "evaluators": [
            {
                "name": name,
                "rule": evaluation.rules[name],
                "undefined": result.undefined or None,
                "note": result.note or None,
                "metrics": result.metrics,
                "details": result.details,
            }
            for name, result in evaluation.results.items()
        ],
        "tables": {
            name: {"title": table.title, "columns": table.columns, "rows": table.rows}
            for name, table in tables(evaluation).items()
        },
        "curves": {
            label: {"recall": recall.tolist(), "precision": precision.tolist()}
            for result in evaluation.results.values()
            for label, (recall, precision) in result.curves.items()
        },
    }


def write_reports(evaluation: Evaluation, output_dir: Path, *, figures: bool = True) -> list[Path]:
    """``<output_dir>/eval/{metrics.json, report.json, report.md}`` and ``precision_recall.png``, ``per_class.png``.

    Returns the figures that were drawn: none where no AP is defined.
    """
    folder = output_dir / "eval"
    write_json(folder / "metrics.json", evaluation.flat())
    write_json(folder / "report.json", _finite(as_document(evaluation)))
    write_text(folder / "report.md", markdown(evaluation))
    if not figures:
        return []
    from stdetr.evaluation.figures import write_figures

    return write_figures(evaluation, folder)


def _finite(value: Any) -> Any:
    """``value`` with nan as None, since JSON has no nan."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
