"""Run a detector over a data set: per-frame detections and whole-video tubes.

Shape legend: N tubes of a clip or video, T frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from stdetr.evaluation.detections import Detections
from stdetr.models.postprocess import to_tubes
from stdetr.stitch.association import StitchRules
from stdetr.stitch.stitching import Stitcher, best_class_only, visible_frames
from stdetr.stitch.tracks import fill_gaps
from stdetr.structures import ClassNames, ClipBatch, ClipInfo, Tubes


@dataclass
class SplitPredictions:
    """The predictions on a split, in the order of its videos and frames.

    frames: detections of single frames, boxes xywh in source pixels
    tubes:  tube results (video_id, category_id, score, track_id, bboxes with null), ready for JSON
    """

    frames: Detections
    tubes: list[dict[str, Any]]


@dataclass(frozen=True)
class SeenVideo:
    """The predictions on one video: the detections of its frames in order, and its tubes as for a split."""

    video: int
    frames: Detections
    tubes: list[dict[str, Any]]


@torch.no_grad()
def predict_videos(
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
    fill_gap: int = 2,
    prior_frames: float = 5,
    rules: StitchRules | None = None,
) -> list[SeenVideo]:
    """The predictions of ``model`` on the videos in ``batches``, on ``device``.

    batches: windows that cover every frame of a video once (repeated frames have image id -1), in any order, since
        workers that each read a run of windows deliver them interleaved
    video_lengths: frames of each video id
    min_score: frame detections with a lower score are left out
    track_score, presence: a clip's tube is stitched into a video's tube when its best frame reaches ``track_score``;
        frames whose presence is lower than ``presence`` are null
    rules, fill_gap, prior_frames: see ``VideoTubes``
    """
    was_training = model.training
    model.eval()
    seen: dict[int, list[tuple[Detections, Tubes]]] = {}
    for batch in batches:
        batch = batch.to(device).normalised()
        output = model(batch.frames, batch.sizes, batch.frame_mask, batch.frame_index)
        for tubes, info in zip(to_tubes(output, batch.infos, top_k, presence=presence), batch.infos, strict=True):
            detections = _frame_detections(tubes, info, classes, min_score)
            seen.setdefault(info.video_id, []).append((detections, _trackable(tubes, track_score)))
    model.train(was_training)
    videos = []
    for video, clips in seen.items():
        # Sorted by the last frame: the last window of a video may be moved back to have full length.
        clips.sort(key=lambda clip: int(clip[1].frame_index[-1]))
        collected = VideoTubes(rules, fill_gap=fill_gap, prior_frames=prior_frames)
        for _, tubes in clips:
            collected.add(tubes)
        tubes = collected.results(video, video_lengths[video], classes)
        videos.append(SeenVideo(video, Detections.joined([frames for frames, _ in clips]), tubes))
    return videos


def join_videos(videos: Sequence[SeenVideo], order: Iterable[int]) -> SplitPredictions:
    """The split made of these videos, in the ``order`` of their ids; videos without a clip are left out."""
    by_id = {seen.video: seen for seen in videos}
    assert len(by_id) == len(videos), "each video is seen by one process"
    chosen = [by_id[video] for video in order if video in by_id]
    return SplitPredictions(
        Detections.joined([seen.frames for seen in chosen]), [tube for seen in chosen for tube in seen.tubes]
    )


def _frame_detections(tubes: Tubes, info: ClipInfo, classes: ClassNames, min_score: float) -> Detections:
    """A clip's detections of at least ``min_score``, frame by frame: boxes xywh to a thousandth of a source pixel."""
    images = np.array(info.image_ids)
    scores = tubes.scores.numpy().T  # T,N
    frame, tube = np.nonzero((scores >= min_score) & (images >= 0)[:, None])
    boxes = tubes.boxes.numpy()[tube, frame]
    boxes[:, 2:] -= boxes[:, :2]
    return Detections(
        images[frame],
        np.array(classes.ids)[tubes.labels.numpy()[tube]],
        boxes.astype(np.float64).round(3),
        scores[frame, tube].astype(np.float64).round(6),
    )


def _trackable(tubes: Tubes, track_score: float) -> Tubes:
    """Each box sequence once, under its best class, and only on frames where it is present."""
    sure = best_class_only(tubes.select(tubes.scores.amax(1) >= track_score))
    return visible_frames(sure, score_threshold=0.0)


class VideoTubes:
    """The tubes of one video, from the tubes of its clips.

    rules: when a clip's tube continues a tube of the video; all tubes but duplicates are kept, however weak
        (``birth_score`` is not used), since a weak tube does not lower average precision
    fill_gap: boxes are interpolated over gaps of at most this many frames
    prior_frames: a tube's score is the sum of its frames' scores divided by (their number + this), so the mean shrinks
        as if that many frames without the object had been seen: a fragment can never match a whole annotated tube, so
        the longer of two equally confident tubes must rank higher
    """

    def __init__(self, rules: StitchRules | None = None, *, fill_gap: int = 2, prior_frames: float = 5) -> None:
        if fill_gap < 0 or prior_frames < 0:
            raise ValueError(
                f"evaluation.fill_gap={fill_gap} and evaluation.prior_frames={prior_frames} must not be negative"
            )
        self.fill_gap, self.prior_frames = fill_gap, prior_frames
        self._stitcher = Stitcher(0, replace(rules if rules is not None else StitchRules(), birth_score=0.0))
        self._rows: dict[int, list[tuple[int, list[float], float, int]]] = {}

    def add(self, tubes: Tubes) -> None:
        """The next clip of the video."""
        self._collect(self._stitcher.push(tubes))

    def _collect(self, tubes: Tubes) -> None:
        xywh = tubes.boxes.clone()
        xywh[..., 2:] -= xywh[..., :2]
        boxes, scores = xywh.tolist(), tubes.scores.tolist()
        labels, tracks, frames = tubes.labels.tolist(), tubes.track_ids.tolist(), tubes.frame_index.tolist()
        for n, t in tubes.present.nonzero().tolist():
            if tracks[n] < 0:
                continue  # a duplicate of another tube
            self._rows.setdefault(tracks[n], []).append((frames[t], boxes[n][t], scores[n][t], labels[n]))

    def results(self, video: int, length: int, classes: ClassNames) -> list[dict[str, Any]]:
        """One tube per track: its score, the class with the highest score sum, a box or null per frame of the video."""
        self._collect(self._stitcher.flush())
        return [self._result(video, track, rows, length, classes) for track, rows in self._rows.items()]

    def _result(
        self, video: int, track: int, rows: list[tuple[int, list[float], float, int]], length: int, classes: ClassNames
    ) -> dict[str, Any]:
        frames = np.array([row[0] for row in rows])
        boxes = np.array([row[1] for row in rows], dtype=np.float64)
        scores = np.array([row[2] for row in rows])
        votes = np.bincount([row[3] for row in rows], weights=scores)
        line: list[list[float] | None] = [None] * length
        filled, between, _ = fill_gaps(frames, boxes, scores, self.fill_gap)
        for frame, box in zip([*frames.tolist(), *filled.tolist()], [*boxes.tolist(), *between.tolist()], strict=True):
            line[frame] = box
        return {
            "video_id": video,
            "category_id": classes.ids[int(votes.argmax())],
            "score": float(scores.sum() / (len(scores) + self.prior_frames)),
            "track_id": track,
            "bboxes": line,
        }
