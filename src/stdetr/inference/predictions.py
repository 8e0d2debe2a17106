"""The detections of one whole video, as columns, and the files they can become.

Shape legend
    D detections of the video      N tubes of a clip, T its frames
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stdetr.stitch.tracks import fill_gaps
from stdetr.structures import ClassNames, Tubes

if TYPE_CHECKING:
    from stdetr.viz.overlay import Overlay


@dataclass(frozen=True)
class VideoInfo:
    """Where detections come from.

    source: path or pattern it was opened from; name: what it is called; size: (h, w) in pixels
    fps: frames a second, 0.0 where the source has no clock; frame_index: the frames that were looked at, in order
    """

    source: str
    name: str
    size: tuple[int, int]
    fps: float
    frame_index: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class VideoPredictions:
    """All detections of a video, ordered by frame and then by falling score.

    frame_index: D int64 decoded frame number in the source, from 0
    boxes:       D,4 float32 xyxy in pixels of the source frame
    scores:      D float32 in [0,1]
    labels:      D int64 contiguous class index from 0; the same for all detections of a track
    track_ids:   D int64, -1 for a detection that belongs to no confirmed track
    tube_scores: D float32, the class score of the tube that the detection was part of
    """

    info: VideoInfo
    classes: ClassNames
    frame_index: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    track_ids: np.ndarray
    tube_scores: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.frame_index)
        for name in ("boxes", "scores", "labels", "track_ids", "tube_scores"):
            if len(getattr(self, name)) != count:
                raise ValueError(f"{name} has {len(getattr(self, name))} rows, frame_index has {count}")
        if self.boxes.shape != (count, 4):
            raise ValueError(f"boxes must have shape ({count},4), got {self.boxes.shape}")

    def __len__(self) -> int:
        return len(self.frame_index)

    def __repr__(self) -> str:
        tracks = len(np.unique(self.track_ids[self.track_ids >= 0]))
        frames = len(self.info.frame_index)
        return f"VideoPredictions({self.info.name!r}: {len(self)} detections, {tracks} tracks, {frames} frames)"

    @classmethod
    def from_clips(cls, clips: Iterable[Tubes], info: VideoInfo, classes: ClassNames) -> VideoPredictions:
        """Collect the clips that a stream yields; ``info.frame_index`` is filled in from them.

        A track has one class through the video: the one with the largest sum of tube scores.
        """
        columns: dict[str, list[np.ndarray]] = {
            name: [] for name in ("frame_index", "boxes", "scores", "labels", "track_ids", "tube_scores")
        }
        frames: list[int] = []
        for clip in clips:
            frames += clip.frame_index.tolist()
            rows, times = clip.present.nonzero(as_tuple=True)
            columns["frame_index"].append(clip.frame_index[times].numpy())
            columns["boxes"].append(clip.boxes[rows, times].numpy())
            columns["scores"].append(clip.scores[rows, times].numpy())
            for name in ("labels", "track_ids", "tube_scores"):
                columns[name].append(getattr(clip, name)[rows].numpy())
        empty = {"frame_index": np.zeros(0, np.int64), "boxes": np.zeros((0, 4), np.float32)}
        joined = {
            name: np.concatenate(parts) if parts else empty.get(name, np.zeros(0, np.float32))
            for name, parts in columns.items()
        }
        for name in ("labels", "track_ids"):
            joined[name] = joined[name].astype(np.int64)
        joined["labels"] = _one_class_a_track(joined["labels"], joined["track_ids"], joined["tube_scores"])
        order = np.lexsort((-joined["scores"], joined["frame_index"]))
        full = replace(info, frame_index=tuple(frames))
        return cls(full, classes, **{name: values[order] for name, values in joined.items()})

    def select(self, keep: np.ndarray) -> VideoPredictions:
        """The detections that the boolean mask ``keep`` (D) names."""
        names = ("frame_index", "boxes", "scores", "labels", "track_ids", "tube_scores")
        return replace(self, **{name: getattr(self, name)[keep] for name in names})

    def filled(self, max_gap: int) -> VideoPredictions:
        """With boxes on the frames on which a confirmed track was not seen, where that was for at most ``max_gap`` of
        the frames that were looked at; 0 fills nothing."""
        if max_gap < 0:
            raise ValueError(f"fill_gap={max_gap} must not be negative")
        names = ("frame_index", "boxes", "scores", "labels", "track_ids", "tube_scores")
        columns = {name: [getattr(self, name)] for name in names}
        frames = np.array(self.info.frame_index, dtype=np.int64)
        for track in np.unique(self.track_ids[self.track_ids >= 0]).tolist():
            rows = np.flatnonzero(self.track_ids == track)
            seen = np.searchsorted(frames, self.frame_index[rows])
            new, boxes, scores = fill_gaps(seen, self.boxes[rows], self.scores[rows], max_gap)
            before = rows[np.searchsorted(seen, new) - 1]  # the track's last row before each filled frame
            added = (frames[new], boxes, scores, self.labels[before], self.track_ids[before], self.tube_scores[before])
            for name, values in zip(names, added, strict=True):
                columns[name].append(values)
        joined = {name: np.concatenate(parts) for name, parts in columns.items()}
        order = np.lexsort((-joined["scores"], joined["frame_index"]))
        return replace(self, **{name: values[order] for name, values in joined.items()})

    def tubes(self) -> Tubes:
        """The confirmed tracks over all frames that were looked at, one row each (dense: N x T boxes)."""
        ids = np.unique(self.track_ids[self.track_ids >= 0])
        frames = np.array(self.info.frame_index, dtype=np.int64)
        kept = self.track_ids >= 0
        row = np.searchsorted(ids, self.track_ids[kept])
        column = np.searchsorted(frames, self.frame_index[kept])
        boxes = np.zeros((len(ids), len(frames), 4), np.float32)
        scores = np.zeros((len(ids), len(frames)), np.float32)
        present = np.zeros((len(ids), len(frames)), bool)
        labels, sums, counts = np.zeros(len(ids), np.int64), np.zeros(len(ids)), np.zeros(len(ids))
        boxes[row, column], scores[row, column], present[row, column] = self.boxes[kept], self.scores[kept], True
        labels[row] = self.labels[kept]
        np.add.at(sums, row, self.tube_scores[kept])
        np.add.at(counts, row, 1)
        return Tubes(
            boxes=torch.from_numpy(boxes),
            scores=torch.from_numpy(scores),
            labels=torch.from_numpy(labels),
            track_ids=torch.from_numpy(ids.astype(np.int64)),
            frame_index=torch.from_numpy(frames),
            tube_scores=torch.from_numpy((sums / np.maximum(counts, 1)).astype(np.float32)),
            present=torch.from_numpy(present),
        )

    def to_coco(self, path: str | Path, *, image_ids: Mapping[int, int] | None = None) -> Path:
        """COCO results with ``track_id``; ``image_ids`` maps frame numbers to image ids (default: frame + 1)."""
        from stdetr.inference.writers import write_coco

        return write_coco(self, path, image_ids=image_ids)

    def to_mot(self, path: str | Path) -> Path:
        """MOTChallenge rows, one a detection of a confirmed track."""
        from stdetr.inference.writers import write_mot

        return write_mot(self, path)

    def to_csv(self, path: str | Path) -> Path:
        """A table with one row a detection, in pixels and seconds."""
        from stdetr.inference.writers import write_csv

        return write_csv(self, path)

    def render(
        self, path: str | Path, *, overlay: Overlay | None = None, crf: int = 20, progress: bool = False
    ) -> Path:
        """Read the source again and write it as H.264 with boxes, classes, scores, track colours and trails."""
        from stdetr.inference.render import render_video

        return render_video(self, path, overlay=overlay, crf=crf, progress=progress)

    def on_frame(self, frame: int) -> dict[str, Any]:
        """boxes, scores, labels and track_ids of one frame, as ``Overlay.draw`` takes them."""
        first, last = np.searchsorted(self.frame_index, [frame, frame + 1])
        return {name: getattr(self, name)[first:last] for name in ("boxes", "scores", "labels", "track_ids")}


def _one_class_a_track(labels: np.ndarray, track_ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    tracked = track_ids >= 0
    if not tracked.any():
        return labels
    ids, row = np.unique(track_ids[tracked], return_inverse=True)
    votes = np.zeros((len(ids), int(labels[tracked].max()) + 1))
    np.add.at(votes, (row, labels[tracked]), weights[tracked])
    decided = labels.copy()
    decided[tracked] = votes.argmax(1)[row]
    return decided
