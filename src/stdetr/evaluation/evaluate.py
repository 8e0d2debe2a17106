"""The entry point: score detections and tubes against annotations with every evaluator asked for."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .coco import Backend, CocoEvaluator
from .detections import Detections
from .ground_truth import GroundTruth
from .protocol import Evaluator, Inputs, Result
from .streaming import StreamingEvaluator, frame_rates, load_times, simulate
from .track import TrackEvaluator
from .tube import TubeEvaluator
from .tubes import TubeResults
from .vid import VidEvaluator
from .vid_mega import VidMegaEvaluator

# "motion" is no evaluator of its own: it adds the slow, medium and fast splits to both ImageNet VID evaluators.
EVALUATORS = ("coco", "vid", "vid_mega", "motion", "tube", "track", "streaming")


@dataclass(frozen=True)
class Evaluation:
    """Everything that one evaluation found; reports and figures are made from it.

    results: in the order of the evaluators, with the evaluator that gave each
    causal: predictions of a frame only looked at earlier frames    seeds: training runs that the numbers stand for
        (None for either: not stated)
    sources: where annotations, predictions and tubes came from
    """

    inputs: Inputs
    results: list[tuple[Evaluator, Result]]
    causal: bool | None
    seeds: int | None
    sources: dict[str, str]

    def flat(self) -> dict[str, float | None]:
        """Flat keys: ``coco/AP``, ..., and per class ``coco/AP50/<class name>``; undefined is None."""
        out: dict[str, float | None] = {}
        for evaluator, result in self.results:
            for name, value in result.metrics.items():
                out[f"{evaluator.name}/{name}"] = _plain(value)
        for evaluator, result in self.results:
            for name, values in result.per_class.items():
                for label, value in zip(self.inputs.gt.category_names, values, strict=True):
                    out[f"{evaluator.name}/{name}/{label}"] = _plain(value)
        return out


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def make_evaluators(names: Sequence[str], coco_backend: Backend = "auto") -> list[Evaluator]:
    """The evaluators of these names.  Raises ValueError for an unknown one, naming the nearest."""
    for name in names:
        if name not in EVALUATORS:
            near = difflib.get_close_matches(name, EVALUATORS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(EVALUATORS)}"
            raise ValueError(f"evaluators: {name!r} is not an evaluator; {hint}")
    motion = "motion" in names
    both = motion and "vid" not in names and "vid_mega" not in names
    made: list[Evaluator] = []
    if "coco" in names:
        made.append(CocoEvaluator(coco_backend))
    if "vid" in names or both:
        made.append(VidEvaluator(motion))
    if "vid_mega" in names or both:
        made.append(VidMegaEvaluator(motion))
    if "tube" in names:
        made.append(TubeEvaluator())
    if "track" in names:
        made.append(TrackEvaluator())
    if "streaming" in names:
        made.append(StreamingEvaluator())
    return made


def prepare(
    annotations: Path | str | dict[str, Any] | GroundTruth,
    predictions: Path | str | list[Any] | Detections,
    tubes: Path | str | list[Any] | TubeResults | None = None,
    *,
    timestamps: Path | str | list[Any] | None = None,
    latency_ms: float | None = None,
    frame_rate: float | None = None,
    build_tubes: bool = True,
) -> Inputs:
    """Read and check everything; where ``tubes`` is None they are built from the predictions' ``track_id``.

    Detections and tubes of classes that a federated video was not searched for are left out.

    build_tubes: False leaves that out, for evaluators that need none (then a ``track_id`` need not be unique a frame)
    timestamps, latency_ms, frame_rate: see ``evaluate``
    """
    gt = annotations if isinstance(annotations, GroundTruth) else GroundTruth.from_coco(annotations)
    if isinstance(predictions, Detections):
        detections = predictions
    elif isinstance(predictions, str | Path):
        detections = Detections.load(predictions, gt)
    else:
        detections = Detections.from_results(predictions)
    bound = detections.bind(gt)
    if tubes is None:
        tubes = TubeResults.from_tracks(bound, gt) if build_tubes else None
    elif not isinstance(tubes, TubeResults):
        tubes = TubeResults.load(tubes, gt)
    if gt.federation is not None:
        # After the tubes are built: the class of a track is what most of its detections say, not of those left.
        scored = gt.federation.scored
        bound = bound.take(scored[gt.image_video[bound.image], bound.category])
        tubes = None if tubes is None else tubes.select(scored[tubes.video, tubes.category])
    if timestamps is not None and latency_ms is not None:
        raise ValueError("give timestamps or latency_ms, not both")
    if timestamps is None and latency_ms is None:
        return Inputs(gt, bound, tubes)
    rates = frame_rates(gt, frame_rate)
    times = load_times(timestamps, gt) if timestamps is not None else simulate(gt, (latency_ms or 0.0) / 1000, rates)
    return Inputs(gt, bound, tubes, times, rates)


def run_evaluators(
    inputs: Inputs,
    evaluators: Sequence[Evaluator],
    *,
    causal: bool | None,
    seeds: int | None,
    sources: dict[str, str] | None = None,
) -> Evaluation:
    """Every evaluator in turn."""
    results = [(evaluator, evaluator.evaluate(inputs)) for evaluator in evaluators]
    return Evaluation(inputs, results, causal, seeds, sources or {})


def score(
    annotations: Path | str | dict[str, Any] | GroundTruth,
    predictions: Path | str | list[Any] | Detections,
    tubes: Path | str | list[Any] | TubeResults | None = None,
    *,
    evaluators: Sequence[str] = EVALUATORS,
    causal: bool | None,
    seeds: int | None,
    coco_backend: Backend = "auto",
    timestamps: Path | str | list[Any] | None = None,
    latency_ms: float | None = None,
    frame_rate: float | None = None,
) -> Evaluation:
    """``evaluate`` with everything that was found, for reports, tables and figures; writes nothing."""
    made = make_evaluators(evaluators, coco_backend)
    inputs = prepare(
        annotations,
        predictions,
        tubes,
        timestamps=timestamps,
        latency_ms=latency_ms,
        frame_rate=frame_rate,
        build_tubes="tube" in evaluators,
    )
    sources = {"annotations": _source(annotations), "predictions": _source(predictions), "tubes": _source(tubes)}
    return run_evaluators(inputs, made, causal=causal, seeds=seeds, sources=sources)


def evaluate(
    annotations: Path | str | dict[str, Any] | GroundTruth,
    predictions: Path | str | list[Any] | Detections,
    tubes: Path | str | list[Any] | TubeResults | None = None,
    *,
    output_dir: Path | str | None = None,
    evaluators: Sequence[str] = EVALUATORS,
    causal: bool | None,
    seeds: int | None,
    coco_backend: Backend = "auto",
    timestamps: Path | str | list[Any] | None = None,
    latency_ms: float | None = None,
    frame_rate: float | None = None,
    figures: bool = True,
) -> dict[str, float | None]:
    """Score predictions; returns flat keys (``coco/AP50``, ``tube/AP``, ``coco/AP50/<class>``), undefined is None.

    annotations: CocoVID or COCO file or document
    predictions: COCO results (file or list, boxes xywh in source pixels), MOT text, or ``Detections``
    tubes: tube results (file or list); None builds them from ``track_id``
    output_dir: the run's folder: ``eval/metrics.json`` and the reports are written below it
    evaluators: names out of ``EVALUATORS``; ``motion`` adds the motion splits to ``vid`` and ``vid_mega``
    causal: the predictions of a frame never looked at a later frame; stated in the reports (None: not stated)
    seeds: how many training runs the numbers stand for; stated in the reports (None: not stated)
    coco_backend: see ``CocoEvaluator``
    timestamps: ``[{image_id, timestamp}]``, file or list: seconds from the start of its video at which the output for
        an image was ready; what ``streaming`` needs
    latency_ms: instead of ``timestamps``, a detector that takes that long a frame and always takes the newest frame
    frame_rate: frames per second of videos whose ``fps`` the annotations do not give
    figures: draw the precision-recall and per-class figures as well

    Raises FileNotFoundError and ValueError, one line that names the record and the value.
    """
    found = score(
        annotations,
        predictions,
        tubes,
        evaluators=evaluators,
        causal=causal,
        seeds=seeds,
        coco_backend=coco_backend,
        timestamps=timestamps,
        latency_ms=latency_ms,
        frame_rate=frame_rate,
    )
    if output_dir is not None:
        from .report import write_reports

        write_reports(found, Path(output_dir), figures=figures)
    return found.flat()


def _source(value: object) -> str:
    if isinstance(value, str | Path):
        return str(value)
    return "none" if value is None else "memory"
