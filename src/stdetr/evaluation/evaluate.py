"""The entry point: score detections and tubes against annotations with the chosen evaluators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stdetr.evaluation.coco import CocoEvaluator
from stdetr.evaluation.detections import Detections
from stdetr.evaluation.ground_truth import GroundTruth
from stdetr.evaluation.groups import VideoGroups
from stdetr.evaluation.protocol import Evaluator, Inputs, Result
from stdetr.evaluation.streaming import StreamingEvaluator, frame_rates, load_times, simulate
from stdetr.evaluation.track import TrackEvaluator
from stdetr.evaluation.tube import TubeEvaluator
from stdetr.evaluation.tubes import TubeResults
from stdetr.evaluation.vid import VidEvaluator
from stdetr.evaluation.vid_mega import VidMegaEvaluator
from stdetr.names import did_you_mean

# "motion" is not an evaluator of its own: it adds the slow, medium and fast splits to both ImageNet VID evaluators.
EVALUATORS = ("coco", "vid", "vid_mega", "motion", "tube", "track", "streaming")


@dataclass(frozen=True)
class Evaluation:
    """Everything that one evaluation computed; reports and figures are made from it.

    results: by the name of the evaluator that gave it      rules: each evaluator's one line of explanation
    causal: predictions for a frame used no later frame     seeds: number of training runs behind the numbers
        (None for either: not stated)
    sources: where annotations, predictions and tubes came from
    parts: fields of the videos by which each AP50 was split, to the names of the parts
    """

    inputs: Inputs
    results: dict[str, Result]
    rules: dict[str, str]
    causal: bool | None
    seeds: int | None
    sources: dict[str, str]
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def mode(self) -> str:
        """``causal``, ``offline`` or ``not stated``."""
        return "not stated" if self.causal is None else "causal" if self.causal else "offline"

    def flat(self) -> dict[str, float | None]:
        """Flat keys: ``coco/AP``, ..., and per class ``coco/AP50/<class name>``; undefined is None."""
        out = {f"{name}/{key}": value for name, result in self.results.items() for key, value in result.metrics.items()}
        for name, result in self.results.items():
            for key, values in result.per_class.items():
                for label, value in zip(self.inputs.gt.category_names, values, strict=True):
                    out[f"{name}/{key}/{label}"] = value
        return {key: number_or_none(value) for key, value in out.items()}


def number_or_none(value: float) -> float | None:
    """``value`` as JSON has it: nan is None."""
    return None if math.isnan(value) else float(value)


def make_evaluators(names: Sequence[str]) -> list[Evaluator]:
    """The evaluators of these names.  Raises ValueError for an unknown one, naming the nearest."""
    for name in names:
        if name not in EVALUATORS:
            hint = did_you_mean(name, EVALUATORS) or f"; choose from {', '.join(EVALUATORS)}"
            raise ValueError(f"evaluators: {name!r} is not an evaluator{hint}")
    motion = "motion" in names
    both = motion and "vid" not in names and "vid_mega" not in names
    selected = {*names, "vid", "vid_mega"} if both else set(names)
    every = (
        CocoEvaluator(),
        VidEvaluator(motion),
        VidMegaEvaluator(motion),
        TubeEvaluator(),
        TrackEvaluator(),
        StreamingEvaluator(),
    )
    return [evaluator for evaluator in every if evaluator.name in selected]


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

    build_tubes: False leaves that out, for evaluators that need none (a ``track_id`` may then repeat within a frame)
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
        # After the tubes are built: the class of a track is the majority over all its detections.
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


def evaluate(
    annotations: Path | str | dict[str, Any] | GroundTruth,
    predictions: Path | str | list[Any] | Detections,
    tubes: Path | str | list[Any] | TubeResults | None = None,
    *,
    evaluators: Sequence[str] = EVALUATORS,
    causal: bool | None,
    seeds: int | None,
    timestamps: Path | str | list[Any] | None = None,
    latency_ms: float | None = None,
    frame_rate: float | None = None,
    by: Sequence[str] = (),
) -> Evaluation:
    """Score predictions.  ``Evaluation.flat`` gives the numbers, ``write_reports`` writes them.

    annotations: CocoVID or COCO file or document
    predictions: COCO results (file or list, boxes xywh in source pixels), MOT text, or ``Detections``
    tubes: tube results (file or list); None builds them from ``track_id``
    evaluators: names out of ``EVALUATORS``; ``motion`` adds the motion splits to ``vid`` and ``vid_mega``
    causal: predictions for a frame used no later frame; stated in the reports (None: not stated)
    seeds: number of training runs behind the numbers; stated in the reports (None: not stated)
    timestamps: ``[{image_id, timestamp}]``, file or list: seconds from the start of its video at which the output for
        an image was ready; ``streaming`` needs them, or ``latency_ms``
    latency_ms: instead of ``timestamps``, a detector that takes that long per frame and always takes the newest frame
    frame_rate: frames per second of videos whose ``fps`` the annotations do not give
    by: fields of the videos by which each AP50 over all classes is split (``coco/AP50_distance_far``)

    Raises FileNotFoundError and ValueError, one line that names the record and the value.
    """
    chosen = make_evaluators(evaluators)
    inputs = prepare(
        annotations,
        predictions,
        tubes,
        timestamps=timestamps,
        latency_ms=latency_ms,
        frame_rate=frame_rate,
        build_tubes="tube" in evaluators,
    )
    groups = [VideoGroups.read(inputs.gt, name) for name in by]
    results = {evaluator.name: evaluator.evaluate(inputs) for evaluator in chosen}
    for evaluator in chosen if groups else ():
        table = evaluator.matches(inputs).get(f"{evaluator.name}/AP50")
        if table is not None:
            results[evaluator.name].metrics |= {
                f"AP50_{group.field}_{name}": table.value(group.mask(name)) for group in groups for name in group.names
            }
    given = {"annotations": annotations, "predictions": predictions, "tubes": tubes}
    return Evaluation(
        inputs,
        results,
        {evaluator.name: evaluator.rule for evaluator in chosen},
        causal,
        seeds,
        {name: _source(value) for name, value in given.items()},
        {group.field: group.names for group in groups},
    )


def _source(value: object) -> str:
    if isinstance(value, str | Path):
        return str(value)
    return "none" if value is None else "memory"
