"""Tubes as numpy columns: ground-truth tracks, tube results of a file, tubes put together from ``track_id``.

Shape legend
    N tubes     n boxes of all tubes, one a row     M images    V videos

Boxes are ``xywh`` in source pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .columns import check_boxes, column, index_of, load_json
from .detections import NO_TRACK, BoundDetections
from .ground_truth import GroundTruth


@dataclass(frozen=True, repr=False)
class TubeResults:
    """Tubes over whole videos; a tube has a box on some frames of one video.

    video: N int, position of the video         category: N int, position       scores: N float64
    crowd: N bool, ground-truth tracks that neither reward nor punish (False for predictions)
    tube: n int, row's tube     image: n int, position of the row's image       boxes: n,4 float64 xywh
    ignored: n bool, ground-truth boxes of a counted track that are ignored on this frame
    """

    video: np.ndarray
    category: np.ndarray
    scores: np.ndarray
    crowd: np.ndarray
    tube: np.ndarray
    image: np.ndarray
    boxes: np.ndarray
    ignored: np.ndarray

    def __len__(self) -> int:
        return len(self.video)

    def __repr__(self) -> str:
        return f"TubeResults({len(self)} tubes, {len(self.boxes)} boxes)"

    def select(self, keep: np.ndarray) -> TubeResults:
        """The tubes that the mask (N bool) names."""
        if keep.all():
            return self
        rows, place = keep[self.tube], np.cumsum(keep) - 1
        return TubeResults(
            self.video[keep],
            self.category[keep],
            self.scores[keep],
            self.crowd[keep],
            place[self.tube[rows]],
            self.image[rows],
            self.boxes[rows],
            self.ignored[rows],
        )

    @classmethod
    def from_ground_truth(cls, gt: GroundTruth) -> TubeResults:
        """The annotated tracks.  A track is crowd when all of its boxes are; a single crowd box of another track
        takes its frame out of the comparison.  Its class is the one that most of its boxes carry."""
        tracks, tube = np.unique(gt.track, return_inverse=True)
        count = len(tracks)
        video = np.zeros(count, dtype=np.int64)
        video[tube] = gt.video
        crowd = np.bincount(tube, weights=~gt.crowd, minlength=count) == 0
        category = _majority(tube, gt.category, np.ones(len(tube)), count, len(gt.category_ids))
        ignored = gt.crowd & ~crowd[tube]
        return cls(video, category, np.ones(count), crowd, tube, gt.image, gt.boxes, ignored)

    @classmethod
    def from_tracks(cls, detections: BoundDetections, gt: GroundTruth) -> TubeResults | None:
        """Tubes made of the detections that share a video and a ``track_id``; None when no detection has one.

        The score of a tube is the mean of its detections' scores, its class the one that most of them carry (the
        higher sum of scores decides between equals).  Raises ValueError when a track has two boxes in one image.
        """
        if detections.tracks is None:
            return None
        rows = detections.take(detections.tracks != NO_TRACK)
        assert rows.tracks is not None
        check_one_box_per_frame(rows, gt)
        video = gt.image_video[rows.image]
        keys, first, tube = np.unique(
            np.stack([video, rows.tracks], axis=1), axis=0, return_index=True, return_inverse=True
        )
        # Equal scores keep the order in which the tracks first appear, as a file written track by track would.
        place = np.empty(len(keys), dtype=np.int64)
        place[np.argsort(first, kind="stable")] = np.arange(len(keys))
        tube, count = place[tube.reshape(-1)], len(keys)
        owner = np.zeros(count, dtype=np.int64)
        owner[place] = keys[:, 0]
        scores = rows.scores.astype(np.float64)
        sizes = np.bincount(tube, minlength=count)
        mean = np.bincount(tube, weights=scores, minlength=count) / np.maximum(sizes, 1)
        category = _majority(tube, rows.category, scores, count, len(gt.category_ids))
        none = np.zeros(len(tube), dtype=bool)
        boxes = rows.boxes.astype(np.float64)
        return cls(owner, category, mean, np.zeros(count, dtype=bool), tube, rows.image, boxes, none)

    @classmethod
    def load(cls, source: Path | str | list[Any], gt: GroundTruth) -> TubeResults:
        """Tube results ``[{video_id, category_id, score, bboxes}]``, ``bboxes`` with one ``[x,y,w,h]`` or null per
        frame: either of the frames that the annotations list, or of the whole video, indexed by ``frame_id``.

        Raises FileNotFoundError, and ValueError naming the record.
        """
        records = source if isinstance(source, list) else load_json(Path(source), "tubes")
        if not isinstance(records, list):
            raise ValueError(f"tubes must be a JSON list of records, got an object with {sorted(records)}")  # noqa: TRY004
        video = index_of(gt.video_ids, column(records, "video_id", "tubes", integer=True), "video_id", "tubes")
        kinds = column(records, "category_id", "tubes", integer=True)
        category = index_of(gt.category_ids, kinds, "category_id", "tubes")
        scores = column(records, "score", "tubes")
        if not np.isfinite(scores).all():
            index = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise ValueError(f"tubes record {index}: score {scores[index]} is not finite")
        starts = np.searchsorted(gt.image_video, np.arange(len(gt.video_ids)))
        tube, image, boxes = [], [], []
        for index, (record, v) in enumerate(zip(records, video, strict=True)):
            frames = _frames(record, index, gt, int(starts[v]), int(gt.video_lengths[v]))
            for position, box in frames:
                tube.append(index)
                image.append(position)
                boxes.append(box)
        values = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        tube_column = np.array(tube, dtype=np.int64)
        try:
            check_boxes(values, "row")
        except ValueError:
            bad = ~np.isfinite(values).all(axis=1) | (values[:, 2:] < 0).any(axis=1)
            row = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"tubes record {tube_column[row]}: box {values[row].tolist()} is not finite or has a negative size"
            ) from None
        none = np.zeros(len(tube_column), dtype=bool)
        crowd = np.zeros(len(records), dtype=bool)
        return cls(video, category, scores, crowd, tube_column, np.array(image, dtype=np.int64), values, none)


def _frames(record: dict[str, Any], index: int, gt: GroundTruth, start: int, length: int) -> list[tuple[int, Any]]:
    """(position of the image, box) of each frame on which the tube has one."""
    boxes = record.get("bboxes")
    video = record["video_id"]
    if not isinstance(boxes, list):
        raise ValueError(f"tubes record {index} has no list 'bboxes'; it has {sorted(record)}")  # noqa: TRY004
    frame_ids = gt.frame_ids[start : start + length]
    if len(boxes) == length:
        pairs = [(start + t, box) for t, box in enumerate(boxes)]
    elif len(boxes) > frame_ids[-1]:
        pairs = [(start + t, boxes[frame]) for t, frame in enumerate(frame_ids)]
    else:
        raise ValueError(f"tubes record {index}: {len(boxes)} bboxes, but video_id {video} has {length} frames")
    pairs = [(position, box) for position, box in pairs if box is not None]
    for position, box in pairs:
        numbers = isinstance(box, list | tuple) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
        if not numbers:
            frame = int(gt.frame_ids[position])
            raise ValueError(
                f"tubes record {index}: bboxes of frame {frame} is {box!r}; it must be [x, y, w, h] or null"
            )
    return pairs


def _majority(group: np.ndarray, label: np.ndarray, weight: np.ndarray, groups: int, labels: int) -> np.ndarray:
    """The most frequent label of each group; the higher sum of ``weight`` decides between equals, then the lower."""
    key = group.astype(np.int64) * labels + label
    keys, inverse, counts = np.unique(key, return_inverse=True, return_counts=True)
    sums = np.bincount(inverse.reshape(-1), weights=weight, minlength=len(keys))
    order = np.lexsort((-keys, sums, counts, keys // labels))
    out = np.zeros(groups, dtype=np.int64)
    out[keys[order] // labels] = keys[order] % labels  # the last of a group is written last, and stays
    return out


def check_one_box_per_frame(detections: BoundDetections, gt: GroundTruth) -> None:
    """Raises ValueError when two detections of one image share a ``track_id``."""
    assert detections.tracks is not None
    order = np.lexsort((detections.tracks, detections.image))
    image, track = detections.image[order], detections.tracks[order]
    twice = (np.diff(image) == 0) & (np.diff(track) == 0)
    if twice.any():
        row = int(np.flatnonzero(twice)[0])
        raise ValueError(
            f"predictions: track_id {int(track[row])} has two boxes in image_id {int(gt.image_ids[image[row]])}; "
            "a track has one box a frame (number the tracks of different classes apart)"
        )
