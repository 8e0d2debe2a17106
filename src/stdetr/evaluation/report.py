"""Reports of an evaluation: tables, JSON, Markdown."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stdetr.atomic import write_text

if TYPE_CHECKING:
    from .evaluate import Evaluation

Cell = str | int | float | None

# What is called "VID AP50" somewhere, and the metrics beside it that it gets mistaken for.
VARIANTS = (
    ("vid", "AP50"),
    ("vid_mega", "AP50"),
    ("coco", "AP50"),
    ("coco", "AP"),
    ("tube", "AP50"),
    ("tube", "AP"),
    ("streaming", "sAP50"),
    ("streaming", "sAP"),
)
PER_CLASS = (
    ("vid", "AP50"),
    ("vid_mega", "AP50"),
    ("coco", "AP50"),
    ("coco", "AP"),
    ("tube", "AP50"),
    ("tube", "AP"),
    ("track", "HOTA"),
    ("track", "MOTA"),
    ("track", "IDF1"),
)
SIZES = ("small", "medium", "large")
MOTIONS = ("fast", "medium", "slow")
TRACKING = ("HOTA", "DetA", "AssA", "LocA", "MOTA", "IDF1", "IDSW", "MT", "ML", "Frag")


@dataclass(frozen=True)
class Table:
    """Rows for a report, or for a W&B table: ``wandb.Table(columns=table.columns, data=table.rows)``."""

    title: str
    columns: list[str]
    rows: list[list[Cell]]

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *([_text(cell) for cell in row] for row in self.rows)]
        return f"## {self.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return str(int(cell)) if cell.is_integer() and abs(cell) > 1 else f"{cell:.4f}"
    return str(cell).replace("|", "\\|")


def _cell(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def mode(found: Evaluation) -> str:
    """``causal``, ``offline`` or ``not stated``."""
    return "not stated" if found.causal is None else "causal" if found.causal else "offline"


def tables(found: Evaluation) -> dict[str, Table]:
    """``variants``, ``per_class``, ``per_motion``, ``per_size``, ``tracking``, ``per_video`` and ``degradation``;
    those whose evaluators did not run are left out."""
    results = {evaluator.name: (evaluator, result) for evaluator, result in found.results}
    out = {"variants": _variants(found, results)}
    out["per_class"] = _per_class(found, results)
    for name, title, parts, evaluators in (
        ("per_motion", "Per motion", MOTIONS, (("vid", "AP50"), ("vid_mega", "AP50"))),
        ("per_size", "Per size", SIZES, (("coco", "AP"), ("tube", "AP"), ("streaming", "sAP"))),
        ("degradation", "Degraded and clean frames", ("degraded", "clean"), (("coco", "AP50"), ("coco", "AP"))),
    ):
        rows: list[list[Cell]] = []
        for evaluator, metric in evaluators:
            if evaluator in results:
                metrics = results[evaluator][1].metrics
                if f"{metric}_{parts[0]}" in metrics:
                    values = [_cell(metrics[key]) for key in (metric, *(f"{metric}_{part}" for part in parts))]
                    rows.append([f"{evaluator}/{metric}", *values])
        if rows:
            out[name] = Table(title, ["metric", "all", *parts], rows)
    if "track" in results:
        result = results["track"][1]
        out["tracking"] = Table("Tracking", list(TRACKING), [[_cell(result.metrics[name]) for name in TRACKING]])
        if result.details:
            rows = [
                [video, *(_cell(values[name]) for name in TRACKING)]
                for video, values in result.details["per_video"].items()
            ]
            out["per_video"] = Table("Tracking per video", ["video", *TRACKING], rows)
    return out


def _variants(found: Evaluation, results: dict[str, Any]) -> Table:
    frames, seeds = len(found.inputs.gt.image_ids), found.seeds
    rows: list[list[Cell]] = []
    for name, metric in VARIANTS:
        if name in results:
            evaluator, result = results[name]
            value = _cell(result.metrics[metric])
            rule = (
                evaluator.rule if value is not None else f"not defined: {result.undefined or 'no ground truth counts'}"
            )
            rows.append([f"{name}/{metric}", value, rule, frames, mode(found), seeds if seeds else "not stated"])
    return Table("Variants side by side", ["metric", "value", "evaluator", "frames", "mode", "seeds"], rows)


def _per_class(found: Evaluation, results: dict[str, Any]) -> Table:
    gt = found.inputs.gt
    boxes = np.bincount(gt.category[~gt.crowd], minlength=len(gt.category_ids))
    given = np.bincount(found.inputs.detections.category, minlength=len(gt.category_ids))
    wanted = [(n, m) for n, m in PER_CLASS if n in results and m in results[n][1].per_class]
    rows: list[list[Cell]] = []
    for c, label in enumerate(gt.category_names):
        values = [_cell(results[n][1].per_class[m][c]) for n, m in wanted]
        rows.append([label, int(boxes[c]), int(given[c]), *values])
    return Table("Per class", ["class", "boxes", "detections", *(f"{n}/{m}" for n, m in wanted)], rows)


def markdown(found: Evaluation) -> str:
    """The whole report as Markdown."""
    gt = found.inputs.gt
    head = [
        "# Evaluation",
        "",
        f"{len(gt.image_ids)} frames of {len(gt.video_ids)} videos, {len(gt.boxes)} annotated boxes, "
        f"{len(found.inputs.detections)} detections, {len(gt.category_ids)} classes; mode: {mode(found)}; "
        f"seeds: {found.seeds or 'not stated'}.",
        "",
        *(f"- {key}: {value}" for key, value in found.sources.items()),
        "",
    ]
    undefined = [f"- {evaluator.name}: {r.undefined}" for evaluator, r in found.results if r.undefined]
    if undefined:
        head += ["Not defined here (null in metrics.json):", "", *undefined, ""]
    head += _notes(found)
    return "\n".join(head) + "\n" + "\n".join(table.markdown() for table in tables(found).values())


def _notes(found: Evaluation) -> list[str]:
    """Lines on what goes beyond the public rules; none where nothing does."""
    notes = [f"- {evaluator.name}: {result.note}" for evaluator, result in found.results if result.note]
    return ["Beyond the public rules:", "", *notes, ""] if notes else []


def summary(found: Evaluation) -> str:
    """The tables that every report prints: all variants side by side, motion, sizes, degradation, tracking."""
    wanted = tables(found)
    shown = [wanted[name].markdown() for name in wanted if name not in ("per_class", "per_video")]
    return "\n".join([*shown, *_notes(found)])


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` whole or not at all: a run that is killed leaves the former file."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def as_document(found: Evaluation) -> dict[str, Any]:
    """The whole report as one JSON document."""
    gt = found.inputs.gt
    return {
        "frames": len(gt.image_ids),
        "videos": len(gt.video_ids),
        "boxes": len(gt.boxes),
        "detections": len(found.inputs.detections),
        "classes": dict(zip(gt.category_names, gt.category_ids.tolist(), strict=True)),
        "mode": mode(found),
        "seeds": found.seeds,
        "sources": found.sources,
        "evaluators": [
            {
                "name": evaluator.name,
                "rule": evaluator.rule,
                "undefined": result.undefined or None,
                "note": result.note or None,
                "metrics": {name: _cell(value) for name, value in result.metrics.items()},
                "details": result.details,
            }
            for evaluator, result in found.results
        ],
        "tables": {
            name: {"title": table.title, "columns": table.columns, "rows": table.rows}
            for name, table in tables(found).items()
        },
        "curves": {
            label: {"recall": recall.tolist(), "precision": precision.tolist()}
            for _, result in found.results
            for label, (recall, precision) in result.curves.items()
        },
    }


def write_reports(found: Evaluation, output_dir: Path, *, figures: bool = True) -> list[Path]:
    """``<output_dir>/eval/{metrics.json, report.json, report.md}`` and ``precision_recall.png``, ``per_class.png``.

    Returns the figures that were drawn: none where no AP is defined.
    """
    folder = output_dir / "eval"
    write_json(folder / "metrics.json", found.flat())
    write_json(folder / "report.json", _finite(as_document(found)))
    write_text(folder / "report.md", markdown(found))
    if not figures:
        return []
    from .figures import write_figures

    return write_figures(found, folder)


def _finite(value: Any) -> Any:
    """``value`` with nan as None, which JSON has no other word for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
