"""Tubes as numpy columns: ground-truth tracks, tube results of a file, tubes built from ``track_id``.

Shape legend
    N tubes     n boxes of all tubes, one per row     M images    V videos

Boxes are ``xywh`` in source pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stdetr.data.coco_vid_rules import repeated
from stdetr.data.json_file import Whole
from stdetr.evaluation.detections import BoundDetections
from stdetr.evaluation.ground_truth import GroundTruth
from stdetr.evaluation.records import NO_TRACK, index_of, read_list


class TubeRecord(msgspec.Struct):
    """One tube in the YouTube-VIS results format, with boxes instead of masks; null where the tube is absent."""

    video_id: Whole
    category_id: Whole
    score: float
    bboxes: list[tuple[float, float, float, float] | None]


@dataclass(frozen=True, repr=False)
class TubeResults:
    """Tubes over whole videos; a tube has a box on some frames of one video.

    video: N int, position of the video         category: N int, position       scores: N float64
    crowd: N bool, ground-truth tracks that count neither for nor against (False for predictions)
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
        rows = keep[self.tube]
        columns = {name: getattr(self, name)[keep] for name in ("video", "category", "scores", "crowd")}
        columns |= {name: getattr(self, name)[rows] for name in ("image", "boxes", "ignored")}
        return TubeResults(**columns, tube=(np.cumsum(keep) - 1)[self.tube[rows]])

    @classmethod
    def from_ground_truth(cls, gt: GroundTruth) -> TubeResults:
        """The annotated tracks.  A track is crowd when all of its boxes are; a single crowd box of another track
        takes its frame out of the comparison.  Its class is the majority over its boxes."""
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
        """Tubes of the detections that share a video and a ``track_id``; None when no detection has one.

        The score of a tube is the mean of its detections' scores, its class the majority of theirs (the higher sum of
        scores breaks ties).  Raises ValueError when a track has two boxes in one image.
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
        return cls._predicted(owner, category, mean, tube, rows.image, rows.boxes.astype(np.float64))

    @classmethod
    def load(cls, source: Path | str | list[Any], gt: GroundTruth) -> TubeResults:
        """Tube results ``[{video_id, category_id, score, bboxes}]``, ``bboxes`` with one ``[x,y,w,h]`` or null per
        frame: either of the frames that the annotations list, or of the whole video, indexed by ``frame_id``.

        Raises FileNotFoundError, and ValueError naming the record.
        """
        records = read_list(source, TubeRecord, "tubes")
        video = index_of(gt.video_ids, records["video_id"], "video_id", "tubes")
        category = index_of(gt.category_ids, records["category_id"], "category_id", "tubes")
        starts = np.searchsorted(gt.image_video, np.arange(len(gt.video_ids)))
        rows = []
        for index, (boxes, v) in enumerate(zip(records["bboxes"], video, strict=True)):
            start, length = int(starts[v]), int(gt.video_lengths[v])
            frame_ids = gt.frame_ids[start : start + length]
            if len(boxes) != length:
                if not length or len(boxes) <= frame_ids[-1]:
                    have = f"video_id {int(gt.video_ids[v])} has {length} frames"
                    raise ValueError(f"tubes record {index}: {len(boxes)} bboxes, but {have}")
                boxes = [boxes[frame] for frame in frame_ids]
            for position, box in enumerate(boxes, start):
                if box is not None:
                    if min(box[2:]) < 0:
                        raise ValueError(f"tubes record {index}: box {list(box)} has a negative width or height")
                    rows.append((index, position, *box))
        cells = np.array(rows, np.float64).reshape(-1, 6)
        tube, image = cells[:, :2].astype(np.int64).T
        return cls._predicted(video, category, np.array(records["score"], np.float64), tube, image, cells[:, 2:])

    @classmethod
    def _predicted(
        cls,
        video: np.ndarray,
        category: np.ndarray,
        scores: np.ndarray,
        tube: np.ndarray,
        image: np.ndarray,
        boxes: np.ndarray,
    ) -> TubeResults:
        return cls(video, category, scores, np.zeros(len(video), bool), tube, image, boxes, np.zeros(len(tube), bool))


def _majority(group: np.ndarray, label: np.ndarray, weight: np.ndarray, groups: int, labels: int) -> np.ndarray:
    """The most frequent label of each group; ties go to the higher sum of ``weight``, then to the lower label."""
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
    for row in repeated(detections.image, detections.tracks):
        raise ValueError(
            f"predictions: track_id {detections.tracks[row]} has two boxes in image_id "
            f"{gt.image_ids[detections.image[row]]}; a track has one box per frame (number the tracks of different "
            "classes apart)"
        )
