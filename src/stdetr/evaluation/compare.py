"""Is run A better than run B?  A paired bootstrap over videos, or groups of them, that tells gains from noise.

Frames of one video are not independent, and neither are videos of one scene, so whole videos or scenes are drawn with
replacement (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993), the same ones for both runs, and the
metrics are recomputed on each draw.

Shape legend
    V videos        R draws
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stdetr.evaluation.curve import MatchTable
from stdetr.evaluation.evaluate import make_evaluators, prepare
from stdetr.evaluation.ground_truth import GroundTruth
from stdetr.evaluation.groups import VideoGroups
from stdetr.evaluation.protocol import Evaluator, Inputs
from stdetr.evaluation.report import Cell, Table

LEVEL = 0.95
FEW = 10


@dataclass(frozen=True)
class Difference:
    """One metric of two runs; all intervals are percentiles of the draws, at 95 %.

    a_range, b_range: interval of each run's value      low, high: interval of ``b - a``
    verdict: ``A is better``, ``B is better`` or ``within noise`` (the interval contains 0)
    units: how many videos or groups were drawn from
    """

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    verdict: str
    units: int
    a_range: tuple[float, float]
    b_range: tuple[float, float]


@dataclass(frozen=True)
class GroupDifference:
    """``metric`` of two runs on the videos of one group alone; ``main`` is its main class."""

    group: str
    main: str
    videos: int
    metric: str
    a: float
    b: float
    difference: float


@dataclass(frozen=True)
class Comparison:
    """Everything that one comparison found.  field: the field of videos whose groups were drawn; None for videos."""

    differences: list[Difference]
    groups: list[GroupDifference]
    field: str | None


@dataclass(frozen=True)
class Weighed:
    """A metric on some of the videos: ``part`` (V) is 1 for those, else 0."""

    table: MatchTable
    part: np.ndarray

    def value(self, weights: np.ndarray | None = None) -> float:
        """The metric with each video counted ``weights`` (V) times."""
        return self.table.value(self.part if weights is None else self.part * weights)


def collect(inputs: Inputs, evaluators: Sequence[Evaluator]) -> dict[str, MatchTable]:
    """The matches behind every metric of ``evaluators`` that can be resampled and is defined on ``inputs``; AP50 also
    by class (``coco/AP50 class=bird``).
    """
    found = {key: table.compact() for evaluator in evaluators for key, table in evaluator.matches(inputs).items()}
    for key, table in list(found.items()):
        if key.endswith("/AP50"):
            names = zip(inputs.gt.category_names, table.by_threshold[0], strict=True)
            found |= {f"{key} class={name}": MatchTable(table.rule, [[matches]]) for name, matches in names}
    return found


def split_by(tables: dict[str, MatchTable], groups: Sequence[VideoGroups]) -> dict[str, MatchTable | Weighed]:
    """``tables`` with each AP50 over all classes on the parts of the videos as well (``coco/AP50 distance=close``)."""
    parts = {
        f"{key} {group.field}={name}": Weighed(table, group.mask(name))
        for key, table in tables.items()
        if key.endswith("/AP50")
        for group in groups
        for name in group.names
    }
    return {**tables, **parts}


def bootstrap(
    a: Mapping[str, MatchTable | Weighed],
    b: Mapping[str, MatchTable | Weighed],
    videos: int,
    *,
    draws: int = 1000,
    seed: int = 0,
    groups: VideoGroups | None = None,
) -> list[Difference]:
    """Differences of the metrics that both runs have; whole ``groups`` are drawn, or single videos where it is None.

    Raises ValueError for fewer than two to draw from.
    """
    units = videos if groups is None else len(groups.names)
    if units < 2:
        what = "videos" if groups is None else f"groups by {groups.field}"
        raise ValueError(f"compare: a confidence interval over {what} needs at least 2 of them in the annotations")
    if draws < 10:
        raise ValueError(f"compare: draws={draws} are too few for an interval; give at least 10")
    generator = np.random.default_rng(seed)
    keys = [key for key in a if key in b]
    samples = {key: np.empty((draws, 2)) for key in keys}
    for draw in range(draws):
        if groups is None:
            weights = np.bincount(generator.integers(videos, size=videos), minlength=videos)
        else:
            weights = groups.draw(generator)
        for key in keys:
            samples[key][draw] = a[key].value(weights), b[key].value(weights)
    out = []
    for key in keys:
        drawn = samples[key][~np.isnan(samples[key]).any(axis=1)]
        first, second = a[key].value(), b[key].value()
        if not len(drawn) or np.isnan(first) or np.isnan(second):
            continue
        (low, high), a_range, b_range = (
            (float(np.quantile(values, (1 - LEVEL) / 2)), float(np.quantile(values, (1 + LEVEL) / 2)))
            for values in (drawn[:, 1] - drawn[:, 0], drawn[:, 0], drawn[:, 1])
        )
        verdict = "B is better" if low > 0 else "A is better" if high < 0 else "within noise"
        out.append(Difference(key, first, second, second - first, low, high, verdict, units, a_range, b_range))
    return out


def by_group(
    a: Mapping[str, MatchTable], b: Mapping[str, MatchTable], groups: VideoGroups, classes: Sequence[str]
) -> list[GroupDifference]:
    """Each AP50 over all classes on the videos of each group alone; groups without ground truth are left out."""
    out = []
    for key in a:
        for name, main in zip(groups.names, groups.main.tolist(), strict=True):
            part = groups.mask(name)
            if not key.endswith("/AP50") or key not in b or np.isnan(a[key].value(part)):
                continue
            first, second = a[key].value(part), b[key].value(part)
            label = str(classes[main]) if main >= 0 else "none"
            out.append(GroupDifference(name, label, int(part.sum()), key, first, second, second - first))
    return out


def as_tables(found: Comparison, names: tuple[str, str]) -> list[Table]:
    """One row per metric, and one per group; the titles say when there are too few to trust an interval."""
    field, rows = found.field, found.differences
    units = rows[0].units if rows else 0
    drawn = f"{units} videos" if field is None else f"{units} groups by {field}, drawn within their main class"
    few = ", too few for a reliable interval" if units < FEW else ""
    columns = [
        "metric",
        f"A: {names[0]}",
        "95 %",
        f"B: {names[1]}",
        "95 %",
        "B - A",
        "95 % low",
        "95 % high",
        "verdict",
    ]
    cells: list[list[Cell]] = [
        [d.metric, d.a, _range(d.a_range), d.b, _range(d.b_range), d.difference, d.low, d.high, d.verdict] for d in rows
    ]
    out = [Table(f"Comparison (bootstrap over {drawn}{few})", columns, cells)]
    for metric in dict.fromkeys(g.metric for g in found.groups):
        part = [g for g in found.groups if g.metric == metric]
        gains = sum(g.difference > 0 for g in part)
        title = f"{metric} by {field}: B is above A in {gains} of {len(part)} (each alone, over the classes it shows)"
        lines: list[list[Cell]] = [[g.group, g.main, g.videos, g.a, g.b, g.difference] for g in part]
        out.append(Table(title, [str(field), "main class", "videos", "A", "B", "B - A"], lines))
    return out


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.4f} to {ends[1]:.4f}"


def run_files(run: Path) -> tuple[Path, Path | None, str | None]:
    """Predictions, tubes (or None) and annotations (or None) of a run folder, or of a predictions file."""
    if run.is_file():
        return run, None, None
    if not run.is_dir():
        names = [entry.name for entry in run.parent.iterdir()] if run.parent.is_dir() else []
        near = difflib.get_close_matches(run.name, names, n=1)
        hint = f"; did you mean {run.parent / near[0]}?" if near else ""
        raise FileNotFoundError(f"compare: run {run} does not exist{hint}")
    folders = [run / "eval", run]
    predictions = [f / name for f in folders for name in ("predictions.json", "predictions.npz")]
    have = [path for path in predictions if path.is_file()]
    tubes = [f / "tubes.json" for f in folders if (f / "tubes.json").is_file()]
    report = run / "eval" / "report.json"
    sources: dict[str, Any] = {}
    if report.is_file():
        sources = json.loads(report.read_text(encoding="utf-8"))["sources"]
    if not have and sources.get("predictions") not in (None, "memory"):
        have = [Path(sources["predictions"])]
        tubes = [Path(sources["tubes"])] if sources.get("tubes") not in (None, "memory", "none") else []
    if not have:
        raise FileNotFoundError(f"compare: run {run} has no predictions.json (looked in {run} and {run / 'eval'})")
    annotations = sources.get("annotations")
    return have[0], tubes[0] if tubes else None, None if annotations == "memory" else annotations


def compare_runs(
    runs: tuple[Path, Path],
    annotations: Path | str | dict[str, Any] | GroundTruth | None,
    evaluators: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
    group: str | None = None,
    by: Sequence[str] = (),
) -> Comparison:
    """Compare the predictions of two runs; ``annotations`` None takes the file that run A was evaluated with.

    group: field of the videos (``scene``); its groups are drawn whole, and compared one by one
    by: fields of the videos by which each AP50 is split as well (``distance``)
    """
    files = [run_files(run) for run in runs]
    source = annotations if annotations is not None else files[0][2]
    if source is None:
        raise ValueError("compare: give annotations=FILE; run A does not say what it was evaluated with")
    gt = source if isinstance(source, GroundTruth) else GroundTruth.from_coco(source)
    chosen = make_evaluators(evaluators)
    groups, parts = VideoGroups.read(gt, group) if group else None, [VideoGroups.read(gt, field) for field in by]
    first, second = (
        collect(prepare(gt, predictions, tubes, build_tubes="tube" in evaluators), chosen)
        for predictions, tubes, _ in files
    )
    differences = bootstrap(
        split_by(first, parts), split_by(second, parts), len(gt.video_ids), draws=draws, seed=seed, groups=groups
    )
    one_by_one = by_group(first, second, groups, gt.category_names) if groups else []
    return Comparison(differences, one_by_one, group)
