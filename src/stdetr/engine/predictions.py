"""Run a detector over a data set: per-frame detections and whole-video tubes.

Shape legend: N tubes of a clip or video, T frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stdetr.evaluation.detections import Detections
from stdetr.inference.detector import Detector
from stdetr.inference.predictions import VideoInfo, VideoPredictions
from stdetr.structures import ClassNames, ClipBatch, ClipInfo, Tubes

_COLUMNS = {"image_ids": np.int64, "category_ids": np.int64, "boxes": np.float64, "scores": np.float64}


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

    def record(self) -> dict[str, Any]:
        """As JSON; no digit is lost."""
        frames = {name: getattr(self.frames, name).tolist() for name in _COLUMNS}
        return {"video": self.video, "frames": frames, "tubes": self.tubes}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> SeenVideo:
        columns = {name: np.array(record["frames"][name], kind) for name, kind in _COLUMNS.items()}
        columns["boxes"] = columns["boxes"].reshape(-1, 4)
        return cls(record["video"], Detections(**columns), record["tubes"])


def predict_videos(
    detector: Detector,
    batches: Iterable[ClipBatch],
    video_lengths: dict[int, int],
    *,
    score_threshold: float = 0.001,
    fill_gap: int = 2,
    prior_frames: float = 5,
) -> Iterator[SeenVideo]:
    """The predictions on the videos in ``batches``, each as soon as its last frame is there.

    batches: as for ``Detector.follow``
    video_lengths: frames of each video id
    score_threshold: frame detections with a lower score are left out
    fill_gap, prior_frames: see ``video_tubes``.  All tracks become tubes: a weak tube does not lower average precision
    """
    for name, value in (("fill_gap", fill_gap), ("prior_frames", prior_frames)):
        if value < 0:
            raise ValueError(f"evaluation.{name}={value} must not be negative")
    begun: dict[int, tuple[list[Detections], list[Tubes]]] = {}
    for piece in detector.follow(batches, every_track=True):
        video = piece.info.video_id
        frames, clips = begun.setdefault(video, ([], []))
        clips.append(piece.clip)
        if piece.pairs is not None:
            frames.append(_frame_detections(piece.pairs, piece.info, detector.classes, score_threshold))
            continue
        del begun[video]
        info = VideoInfo(piece.info.video_name, piece.info.video_name, piece.info.source_size, 0.0, ())
        found = VideoPredictions.from_clips(clips, info, detector.classes)
        tubes = video_tubes(found, video, video_lengths[video], fill_gap=fill_gap, prior_frames=prior_frames)
        yield SeenVideo(video, Detections.joined(frames), tubes)


def join_videos(videos: Sequence[SeenVideo], order: Iterable[int]) -> SplitPredictions:
    """The split made of these videos, in the ``order`` of their ids; videos without a clip are left out."""
    by_id = {seen.video: seen for seen in videos}
    assert len(by_id) == len(videos), "each video is seen by one process"
    chosen = [by_id[video] for video in order if video in by_id]
    return SplitPredictions(
        Detections.joined([seen.frames for seen in chosen]), [tube for seen in chosen for tube in seen.tubes]
    )


def _frame_detections(pairs: Tubes, info: ClipInfo, classes: ClassNames, score_threshold: float) -> Detections:
    """A clip's detections of at least ``score_threshold``, frame by frame: boxes xywh to a thousandth of a source
    pixel."""
    images = np.array(info.image_ids)
    scores = pairs.scores.numpy().T  # T,N
    frame, tube = np.nonzero((scores >= score_threshold) & (images >= 0)[:, None])
    boxes = pairs.boxes.numpy()[tube, frame]
    boxes[:, 2:] -= boxes[:, :2]
    return Detections(
        images[frame],
        np.array(classes.ids)[pairs.labels.numpy()[tube]],
        boxes.astype(np.float64).round(3),
        scores[frame, tube].astype(np.float64).round(6),
    )


def video_tubes(
    found: VideoPredictions, video: int, length: int, *, fill_gap: int, prior_frames: float
) -> list[dict[str, Any]]:
    """One tube per track: its score, its class, a box or null per frame of the video.

    fill_gap: boxes are interpolated over gaps of at most this many frames
    prior_frames: a tube's score is the sum of its frames' scores divided by (their number + this), so the mean shrinks
        as if that many frames without the object had been seen: a fragment can never match a whole annotated tube, so
        the longer of two equally confident tubes must rank higher
    """
    tracked = found.select(found.track_ids >= 0)
    ids, first, row = np.unique(tracked.track_ids, return_index=True, return_inverse=True)
    scores = np.bincount(row, tracked.scores, len(ids)) / (np.bincount(row, minlength=len(ids)) + prior_frames)
    filled = tracked.filled(fill_gap)
    boxes = filled.boxes.copy()
    boxes[:, 2:] -= boxes[:, :2]
    lines: list[list[list[float] | None]] = [[None] * length for _ in ids]
    places = zip(np.searchsorted(ids, filled.track_ids).tolist(), filled.frame_index.tolist(), strict=True)
    for (track, frame), box in zip(places, boxes.tolist(), strict=True):
        lines[track][frame] = box
    labels = tracked.labels[first].tolist()
    return [
        {
            "video_id": video, "category_id": found.classes.ids[label], "score": score, "track_id": track,
            "bboxes": line,
        }
        for track, label, score, line in zip(ids.tolist(), labels, scores.tolist(), lines, strict=True)
    ]  # fmt: skip
