"""Streaming AP: latency counts.

When a frame arrives, its ground truth is compared with the latest output that is ready, whichever frame that output
was computed from (Li et al., "Towards Streaming Perception", 2020).

Shape legend
    M images (frames)       V videos        n detections
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stdetr.data.json_file import Whole
from stdetr.evaluation.coco import CocoEvaluator
from stdetr.evaluation.detections import BoundDetections
from stdetr.evaluation.ground_truth import GroundTruth
from stdetr.evaluation.matching import ImageJoin
from stdetr.evaluation.protocol import Evaluator, Inputs, Result
from stdetr.evaluation.records import index_of, read_list

NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


class StreamingEvaluator(Evaluator):
    """``streaming/sAP``, ``sAP50``, ``sAP75``, ``sAP_small|medium|large``.

    horizon: frames by which the comparison is moved (the public toolkit's eta): frame f is compared with what is
        ready at ``(f - horizon) / frame_rate``
    """

    name = "streaming"
    rule = "sAP: each frame is scored with the latest output ready when it arrives, then COCO AP"

    def __init__(self, horizon: float = 0.0) -> None:
        self.horizon = horizon

    def evaluate(self, inputs: Inputs) -> Result:
        if inputs.output_times is None or inputs.frame_rate is None:
            nothing = {f"s{name}": float("nan") for name in NAMES}
            return Result(nothing, undefined="no latency is known: give timestamps or latency_ms")
        source = shown_output(inputs.gt, inputs.output_times, inputs.frame_rate, self.horizon)
        shown = replay(inputs.detections, source)
        result = CocoEvaluator().evaluate(Inputs(inputs.gt, shown))
        metrics = {f"s{name}": result.metrics[name] for name in NAMES}
        seen = source >= 0
        age = (inputs.gt.frame_ids - inputs.gt.frame_ids[source])[seen]
        details = {
            "frames_processed": int((~np.isnan(inputs.output_times)).sum()),
            "frames_without_output": int((~seen).sum()),
            "mean_age_in_frames": float(age.mean()) if len(age) else None,
        }
        return Result(metrics, {f"s{name}": value for name, value in result.per_class.items()}, {}, details)


def shown_output(gt: GroundTruth, output_times: np.ndarray, frame_rate: np.ndarray, horizon: float = 0.0) -> np.ndarray:
    """M int64: the image whose output is the latest with a time not after the arrival of each frame; -1 for none.

    output_times: M float64 seconds from the start of the video, nan where a frame was not processed
    frame_rate: V float64
    """
    source = np.full(len(gt.image_ids), -1, dtype=np.int64)
    edges = np.searchsorted(gt.image_video, np.arange(len(gt.video_ids) + 1))
    for video in range(len(gt.video_ids)):
        images = np.arange(edges[video], edges[video + 1])
        ready = images[~np.isnan(output_times[images])]
        ready = ready[np.argsort(output_times[ready], kind="stable")]
        now = (gt.frame_ids[images] - horizon) / frame_rate[video]
        # A time rounded to six digits must not miss its frame.
        latest = np.searchsorted(output_times[ready], now + 1e-9, side="right") - 1
        available = latest >= 0
        source[images[available]] = ready[latest[available]]
    return source


def replay(detections: BoundDetections, source: np.ndarray) -> BoundDetections:
    """The detections on screen at each frame: those of the image ``source`` (M int64, -1 for none)."""
    order = np.argsort(detections.image, kind="stable")
    frames = np.flatnonzero(source >= 0)
    which, row = ImageJoin(detections.image[order], len(source)).pairs(source[frames])
    rows = order[row]
    shown = detections.take(rows)
    return BoundDetections(frames[which].astype(np.int32), shown.category, shown.boxes, shown.scores, shown.tracks)


class OutputTime(msgspec.Struct, gc=False):
    """When the output for an image was ready, in seconds from the start of its video."""

    image_id: Whole
    timestamp: float


def load_times(source: Path | str | list[Any], gt: GroundTruth) -> np.ndarray:
    """M float64 from ``[{image_id, timestamp}]``: seconds from the start of the video at which an output was ready."""
    records = read_list(source, OutputTime, "timestamps")
    image = index_of(gt.image_ids, records["image_id"], "image_id", "timestamps")
    if len(np.unique(image)) != len(image):
        raise ValueError("timestamps: an image_id appears twice; give one timestamp for each")
    out = np.full(len(gt.image_ids), np.nan)
    out[image] = records["timestamp"]
    return out


def simulate(gt: GroundTruth, latency: float, frame_rate: np.ndarray) -> np.ndarray:
    """M float64 output times of a detector that takes ``latency`` seconds per frame and always takes the newest frame.

    Frame f arrives at ``f / frame_rate``; frames that arrive while the detector is busy are skipped unless they are
    the newest when it becomes free.
    """
    if not latency > 0:
        raise ValueError(f"latency_ms={latency * 1000:g} must be above 0")
    out = np.full(len(gt.image_ids), np.nan)
    edges = np.searchsorted(gt.image_video, np.arange(len(gt.video_ids) + 1))
    for video, rate in enumerate(frame_rate):
        arrival = gt.frame_ids[edges[video] : edges[video + 1]] / rate
        now, frame = 0.0, -1
        while frame + 1 < len(arrival):
            newest = int(np.searchsorted(arrival, now + 1e-9, side="right")) - 1
            if newest <= frame:
                newest = frame + 1
            frame, now = newest, max(now, float(arrival[newest])) + latency
            out[edges[video] + frame] = now
    return out


def frame_rates(gt: GroundTruth, default: float | None) -> np.ndarray:
    """V float64: ``fps`` of the annotations' videos, ``default`` where they have none.  Raises ValueError."""
    rate = np.where(np.isnan(gt.frame_rate), np.nan if default is None else default, gt.frame_rate)
    if np.isnan(rate).any():
        name = gt.video_names[int(np.flatnonzero(np.isnan(rate))[0])]
        raise ValueError(f"video {name!r} has no fps in the annotations: give frame_rate=<frames per second>")
    if not (rate > 0).all():
        raise ValueError(f"frame_rate={float(rate.min()):g} must be above 0")
    return rate
