"""Is run A better than run B?  A paired bootstrap over videos that tells gains from noise.

Frames of one video are not independent, so whole videos are drawn with replacement (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993), the same ones for both runs, and the metrics are recomputed on each draw.

Shape legend
    V videos        R draws
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stdetr.evaluation.curve import MatchTable
from stdetr.evaluation.evaluate import make_evaluators, prepare
from stdetr.evaluation.ground_truth import GroundTruth
from stdetr.evaluation.protocol import Evaluator, Inputs
from stdetr.evaluation.report import Table

LEVEL = 0.95
FEW_VIDEOS = 10


@dataclass(frozen=True)
class Difference:
    """One metric of two runs.

    low, high: confidence interval of ``b - a`` at 95 %, percentiles of the draws
    verdict: ``A is better``, ``B is better`` or ``within noise`` (the interval contains 0)
    videos: how many videos were drawn from
    """

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    verdict: str
    videos: int


def collect(inputs: Inputs, evaluators: Sequence[Evaluator]) -> dict[str, MatchTable]:
    """The matches behind every metric of ``evaluators`` that can be resampled and is defined on ``inputs``."""
    return {key: table.compact() for evaluator in evaluators for key, table in evaluator.matches(inputs).items()}


def bootstrap(
    a: dict[str, MatchTable], b: dict[str, MatchTable], videos: int, *, draws: int = 1000, seed: int = 0
) -> list[Difference]:
    """Differences of the metrics that both runs have.  Raises ValueError for fewer than two videos."""
    if videos < 2:
        raise ValueError("compare: a confidence interval over videos needs at least 2 videos in the annotations")
    if draws < 10:
        raise ValueError(f"compare: draws={draws} are too few for an interval; give at least 10")
    generator = np.random.default_rng(seed)
    keys = [key for key in a if key in b]
    samples = {key: np.empty((draws, 2)) for key in keys}
    for draw in range(draws):
        weights = np.bincount(generator.integers(videos, size=videos), minlength=videos)
        for key in keys:
            samples[key][draw] = a[key].value(weights), b[key].value(weights)
    out = []
    for key in keys:
        gain = samples[key][:, 1] - samples[key][:, 0]
        gain = gain[~np.isnan(gain)]
        first, second = a[key].value(), b[key].value()
        if not len(gain) or np.isnan(first) or np.isnan(second):
            continue
        low, high = (float(v) for v in np.quantile(gain, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        verdict = "B is better" if low > 0 else "A is better" if high < 0 else "within noise"
        out.append(Difference(key, first, second, second - first, low, high, verdict, videos))
    return out


def as_table(differences: list[Difference], names: tuple[str, str]) -> Table:
    """One row per metric; the title says when there are too few videos to trust the interval."""
    columns = ["metric", f"A: {names[0]}", f"B: {names[1]}", "B - A", "95 % low", "95 % high", "verdict"]
    videos = differences[0].videos if differences else 0
    few = ", too few for a reliable interval" if videos < FEW_VIDEOS else ""
    rows = [list(asdict(d).values())[: len(columns)] for d in differences]
    return Table(f"Comparison (bootstrap over {videos} videos{few})", columns, rows)


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
) -> list[Difference]:
    """Compare the predictions of two runs; ``annotations`` None takes the file that run A was evaluated with."""
    files = [run_files(run) for run in runs]
    source = annotations if annotations is not None else files[0][2]
    if source is None:
        raise ValueError("compare: give annotations=FILE; run A does not say what it was evaluated with")
    gt = source if isinstance(source, GroundTruth) else GroundTruth.from_coco(source)
    chosen = make_evaluators(evaluators)
    tables = [
        collect(prepare(gt, predictions, tubes, build_tubes="tube" in evaluators), chosen)
        for predictions, tubes, _ in files
    ]
    return bootstrap(tables[0], tables[1], len(gt.video_ids), draws=draws, seed=seed)
