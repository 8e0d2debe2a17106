"""The detections of a whole video as columns, and the files they can be written to, each complete or not at all.

Shape legend
    D detections of the video      N tubes of a clip, T its frames
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from stdetr.atomic import write_text
from stdetr.stitch.tracks import fill_gaps
from stdetr.structures import ClassNames, Tubes
from stdetr.video.encode import write_video
from stdetr.video.open import open_source
from stdetr.video.source import VideoSource

if TYPE_CHECKING:
    from stdetr.viz.overlay import Overlay

_COLUMNS: tuple[str, ...] = ("frame_index", "boxes", "scores", "labels", "track_ids", "tube_scores")
_CSV_COLUMNS = ("frame", "time_s", "track_id", "category_id", "class", "score", "x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class VideoInfo:
    """Where detections come from.

    source: path or pattern it was opened from; name: for messages and files; size: (h, w) in pixels
    fps: frames per second, 0.0 where the source has no clock; frame_index: the processed frames, in order
    """

    source: str
    name: str
    size: tuple[int, int]
    fps: float
    frame_index: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class VideoPredictions:
    """All detections of a video, ordered by frame and then by descending score.

    frame_index: D int64 decoded frame number in the source, from 0
    boxes:       D,4 float32 xyxy in pixels of the source frame
    scores:      D float32 in [0,1]
    labels:      D int64 contiguous class indices from 0; the same for all detections of a track
    track_ids:   D int64, -1 for a detection without a confirmed track
    tube_scores: D float32, the class score of the detection's tube
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
        for name in _COLUMNS:
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

        A track has one class through the video: the one with the largest sum of scores.
        """
        frames: list[int] = []
        numbers, values = np.zeros(0, np.int64), np.zeros(0, np.float32)
        parts: list[tuple[np.ndarray, ...]] = [
            (numbers, np.zeros((0, 4), np.float32), values, numbers, numbers, values)
        ]
        for clip in clips:
            frames += clip.frame_index.tolist()
            rows, times = clip.present.nonzero(as_tuple=True)
            each = (clip.frame_index[times], clip.boxes[rows, times], clip.scores[rows, times])
            each += (clip.labels[rows], clip.track_ids[rows], clip.tube_scores[rows])
            parts.append(tuple(column.numpy() for column in each))
        joined = dict(zip(_COLUMNS, map(np.concatenate, zip(*parts, strict=True)), strict=True))
        joined["labels"] = _one_class_per_track(joined["labels"], joined["track_ids"], joined["scores"])
        return cls(replace(info, frame_index=tuple(frames)), classes, **_in_order(joined))

    def select(self, keep: np.ndarray) -> VideoPredictions:
        """The detections that the boolean mask ``keep`` (D) names."""
        return replace(self, **{name: getattr(self, name)[keep] for name in _COLUMNS})

    def filled(self, max_gap: int) -> VideoPredictions:
        """With boxes interpolated where a confirmed track was unseen for at most ``max_gap`` processed frames; 0 fills
        nothing."""
        if max_gap < 0:
            raise ValueError(f"fill_gap={max_gap} must not be negative")
        parts = [tuple(getattr(self, name) for name in _COLUMNS)]
        frames = np.array(self.info.frame_index, dtype=np.int64)
        for track in np.unique(self.track_ids[self.track_ids >= 0]).tolist():
            rows = np.flatnonzero(self.track_ids == track)
            seen = np.searchsorted(frames, self.frame_index[rows])
            new, boxes, scores = fill_gaps(seen, self.boxes[rows], self.scores[rows], max_gap)
            before = rows[np.searchsorted(seen, new) - 1]  # the track's last row before each filled frame
            same = (self.labels[before], self.track_ids[before], self.tube_scores[before])
            parts.append((frames[new], boxes, scores, *same))
        joined = dict(zip(_COLUMNS, map(np.concatenate, zip(*parts, strict=True)), strict=True))
        return replace(self, **_in_order(joined))

    def tubes(self) -> Tubes:
        """The confirmed tracks over all processed frames, one row each (dense: N x T boxes)."""
        frames = np.array(self.info.frame_index, dtype=np.int64)
        kept = self.select(self.track_ids >= 0)
        ids, row = np.unique(kept.track_ids, return_inverse=True)
        where = row, np.searchsorted(frames, kept.frame_index)
        boxes = np.zeros((len(ids), len(frames), 4), np.float32)
        scores, present = np.zeros(boxes.shape[:2], np.float32), np.zeros(boxes.shape[:2], bool)
        boxes[where], scores[where], present[where] = kept.boxes, kept.scores, True
        labels = np.zeros(len(ids), np.int64)
        labels[row] = kept.labels
        mean = np.bincount(row, kept.tube_scores, len(ids)) / np.maximum(np.bincount(row, minlength=len(ids)), 1)
        columns = (boxes, scores, labels, ids.astype(np.int64), frames, mean.astype(np.float32), present)
        return Tubes(*map(torch.from_numpy, columns))

    def on_frame(self, frame: int) -> dict[str, Any]:
        """boxes, scores, labels and track_ids of one frame, as ``Overlay.draw`` takes them."""
        first, last = np.searchsorted(self.frame_index, [frame, frame + 1])
        return {name: getattr(self, name)[first:last] for name in ("boxes", "scores", "labels", "track_ids")}

    def to_coco(self, path: str | Path, *, image_ids: Mapping[int, int] | None = None) -> Path:
        """``[{image_id, category_id, bbox [x,y,w,h], score, track_id?}]``: what COCO's evaluation reads.

        Boxes to a thousandth of a pixel, scores to six digits, as in the other files.
        image_ids: frame number -> image id; default frame + 1.  Frames without an entry are left out: they have no
            annotation to compare with.
        """
        results = []
        for frame, box, score, label, track in self._rows():
            image = frame + 1 if image_ids is None else image_ids.get(frame)
            if image is not None:
                result = {
                    "image_id": image,
                    "category_id": self.classes.ids[label],
                    "bbox": [round(value, 3) for value in _xywh(box)],
                    "score": round(score, 6),
                }
                results.append(result if track < 0 else {**result, "track_id": track})
        return write_text(path, json.dumps(results))

    def to_mot(self, path: str | Path) -> Path:
        """``frame,id,x,y,w,h,conf,-1,-1,-1``: the result rows of MOTChallenge, frames and ids counted from 1.

        x and y are the box's top left corner in pixels from the frame's corner.  The format has no class: rows of all
        classes are in one file.  Detections without a confirmed track are left out.
        """
        lines = []
        for frame, box, score, _, track in sorted(self._rows(), key=lambda row: (row[0], row[4])):
            if track >= 0:
                x, y, w, h = _xywh(box)
                lines.append(f"{frame + 1},{track},{x:.3f},{y:.3f},{w:.3f},{h:.3f},{score:.6f},-1,-1,-1\n")
        return write_text(path, "".join(lines))

    def to_csv(self, path: str | Path) -> Path:
        """A table with one row per detection: frame from 0, time in seconds (empty without a clock), xyxy in pixels."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_CSV_COLUMNS)
        fps, classes = self.info.fps, self.classes
        for frame, box, score, label, track in self._rows():
            time = f"{frame / fps:.3f}" if fps > 0 else ""
            corners = [f"{value:.3f}" for value in box]
            identity = track if track >= 0 else ""
            writer.writerow([frame, time, identity, classes.ids[label], classes.names[label], f"{score:.6f}", *corners])
        return write_text(path, text.getvalue())

    def render(
        self,
        path: str | Path,
        *,
        overlay: Overlay | None = None,
        source: VideoSource | None = None,
        crf: int = 20,
        progress: bool = False,
    ) -> Path:
        """Read the source again and write it as H.264 with boxes, classes, scores, track colours and trails.

        The frames are the processed ones, at the source's speed; source: where to read them if not from
        ``info.source``.  Raises ValueError when no frame was processed.
        """
        from stdetr.viz.overlay import DEFAULT_FPS, Overlay, frame_caption  # slow to import

        info = self.info
        if not info.frame_index:
            raise ValueError(f"{info.name} has no frame to draw")
        painter = overlay if overlay is not None else Overlay(self.classes)
        painter.reset()
        frames = np.array(info.frame_index)
        step = int(np.diff(frames).min(initial=2**40)) if len(frames) > 1 else 1
        runs = np.split(
            frames, np.flatnonzero(np.diff(frames) != step) + 1
        )  # frames that could not be read are missing
        opened = source if source is not None else open_source(info.source)
        shown = tqdm(
            (item for run in runs for item in opened.iterate(int(run[0]), int(run[-1]) + 1, step)),
            total=len(frames), desc="overlay", unit="frame", disable=not (progress and sys.stderr.isatty()),
        )  # fmt: skip
        drawn = (painter.draw(frame, **self.on_frame(i), caption=frame_caption(i, info.fps)) for i, frame in shown)
        return write_video(path, drawn, (info.fps if info.fps > 0 else DEFAULT_FPS) / step, crf=crf)

    def _rows(self) -> Iterator[tuple[int, Sequence[float], float, int, int]]:
        """(frame, xyxy, score, label, track id) of every detection as Python numbers."""
        return zip(*(getattr(self, name).tolist() for name in _COLUMNS[:5]), strict=True)


def _in_order(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    order = np.lexsort((-columns["scores"], columns["frame_index"]))
    return {name: values[order] for name, values in columns.items()}


def _xywh(box: Sequence[float]) -> tuple[float, float, float, float]:
    return box[0], box[1], box[2] - box[0], box[3] - box[1]


def _one_class_per_track(labels: np.ndarray, track_ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    tracked = track_ids >= 0
    if not tracked.any():
        return labels
    ids, row = np.unique(track_ids[tracked], return_inverse=True)
    votes = np.zeros((len(ids), int(labels[tracked].max()) + 1))
    np.add.at(votes, (row, labels[tracked]), weights[tracked])
    decided = labels.copy()
    decided[tracked] = votes.argmax(1)[row]
    return decided
