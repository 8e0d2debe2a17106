"""Run a detector over a data set: per-frame detections and whole-video tubes.

Shape legend: N tubes of a clip or video, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stdetr.inference.stitching import Stitcher
from stdetr.models.postprocess import to_tubes
from stdetr.structures import ClassNames, ClipBatch, ClipInfo, Tubes


@dataclass
class SplitPredictions:
    """COCO results (``frames``: image_id, category_id, bbox xywh in source pixels, score) and tube results (``tubes``:
    video_id, category_id, score, bboxes with null, track_id), ready for JSON and for ``stdetr.evaluation``."""

    frames: list[dict[str, Any]] = field(default_factory=list)
    tubes: list[dict[str, Any]] = field(default_factory=list)


@torch.no_grad()
def predict_split(
    model: nn.Module,
    batches: Iterable[ClipBatch],
    classes: ClassNames,
    video_lengths: dict[int, int],
    *,
    device: torch.device,
    top_k: int = 100,
    min_score: float = 0.001,
    track_score: float = 0.05,
    presence: float = 0.3,
    stitcher: Callable[[], Stitcher] | None = None,
) -> SplitPredictions:
    """
    batches: windows that cover every frame of every video once and in order (repeated frames have image id -1)
    video_lengths: frames of each video id
    min_score: frame detections below it are left out
    track_score, presence: a clip's tube is stitched into a video's tube when its best frame reaches ``track_score``;
        frames whose share of the tube's score (its presence) is lower than ``presence`` are null
    """
    was_training = model.training
    model.eval()
    result = SplitPredictions()
    make = stitcher if stitcher is not None else lambda: Stitcher(0)
    video: int | None = None
    stitch, builder = make(), _VideoTubes()

    def finish() -> None:
        if video is not None:
            builder.add(stitch.flush())
            result.tubes.extend(builder.results(video, video_lengths[video], classes))

    for batch in batches:
        batch = batch.to(device)
        output = model(batch.frames, batch.sizes, batch.frame_mask, batch.frame_index)
        for tubes, info in zip(to_tubes(output, batch.infos, top_k), batch.infos, strict=True):
            result.frames.extend(_frame_detections(tubes, info, classes, min_score))
            if video != info.video_id:
                finish()
                video, stitch, builder = info.video_id, make(), _VideoTubes()
            builder.add(stitch.push(_trackable(tubes, track_score, presence)))
    finish()
    model.train(was_training)
    return result


def _frame_detections(tubes: Tubes, info: ClipInfo, classes: ClassNames, min_score: float) -> list[dict[str, Any]]:
    xywh = tubes.boxes.clone()
    xywh[..., 2:] -= xywh[..., :2]
    boxes, scores = xywh.tolist(), tubes.scores.tolist()
    found = []
    for t, image in enumerate(info.image_ids):
        if image < 0:
            continue
        for n, label in enumerate(tubes.labels.tolist()):
            if scores[n][t] >= min_score:
                box = [round(value, 3) for value in boxes[n][t]]
                detection = {"image_id": image, "category_id": classes.ids[label], "bbox": box}
                found.append(detection | {"score": round(scores[n][t], 6)})
    return found


def _trackable(tubes: Tubes, track_score: float, presence: float) -> Tubes:
    """Each box sequence once, under its best class, and only the frames on which it is there."""
    kept: list[int] = []
    seen: set[bytes] = set()
    for n in tubes.tube_scores.argsort(descending=True, stable=True).tolist():
        key = tubes.boxes[n].numpy().tobytes()
        if key not in seen and float(tubes.scores[n].max()) >= track_score:
            kept.append(n)
        seen.add(key)
    chosen = tubes.select(torch.tensor(kept, dtype=torch.int64))
    there = chosen.scores >= presence * chosen.tube_scores[:, None]
    return Tubes(
        boxes=chosen.boxes,
        scores=chosen.scores,
        labels=chosen.labels,
        track_ids=chosen.track_ids,
        frame_index=chosen.frame_index,
        tube_scores=chosen.tube_scores,
        present=there,
    )


class _VideoTubes:
    """Collects the stitched frames of one video."""

    def __init__(self) -> None:
        self._boxes: dict[int, dict[int, list[float]]] = {}
        self._scores: dict[int, list[float]] = {}
        self._votes: dict[int, dict[int, float]] = {}

    def add(self, tubes: Tubes) -> None:
        xywh = tubes.boxes.clone()
        xywh[..., 2:] -= xywh[..., :2]
        for n, (label, track) in enumerate(zip(tubes.labels.tolist(), tubes.track_ids.tolist(), strict=True)):
            for t, frame in enumerate(tubes.frame_index.tolist()):
                if bool(tubes.present[n, t]):
                    score = float(tubes.scores[n, t])
                    self._boxes.setdefault(track, {})[frame] = xywh[n, t].tolist()
                    self._scores.setdefault(track, []).append(score)
                    votes = self._votes.setdefault(track, {})
                    votes[label] = votes.get(label, 0.0) + score

    def results(self, video: int, length: int, classes: ClassNames) -> list[dict[str, Any]]:
        """One tube a track: its mean score, the class with most score, a box or null for each frame of the video."""
        return [
            {
                "video_id": video,
                "category_id": classes.ids[max(self._votes[track], key=lambda label: self._votes[track][label])],
                "score": sum(self._scores[track]) / len(self._scores[track]),
                "track_id": track,
                "bboxes": [boxes.get(frame) for frame in range(length)],
            }
            for track, boxes in self._boxes.items()
        ]
