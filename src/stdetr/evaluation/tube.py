"""Tube AP: YouTube-VIS average precision on boxes instead of masks.

Tube IoU is the sum over frames of the intersections over the sum of the unions; a frame where one side is absent adds
the other's area to the union (Yang et al., "Video Instance Segmentation", 2019).  The numbers are those of the public
``YTVISeval`` in box mode.

Shape legend
    N tubes     n boxes of all tubes        g ground-truth tubes of one class       p pairs of tubes    V videos
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from .boxes import paired_intersection
from .coco_rules import THRESHOLDS, Candidates, ClassScores, mean_curve, score_class, size_ranges, summarise
from .excuses import federation_note, not_exhaustive
from .ground_truth import GroundTruth
from .matching import ImageJoin
from .protocol import Inputs, MatchTable, Result
from .tubes import TubeResults

Area = Literal["all_frames", "present_frames"]


class TubeEvaluator:
    """``tube/AP``, ``AP50``, ``AP75``, ``AP_small|medium|large`` (128 and 256 pixels), ``AR1``, ``AR10``, ``AR100``.

    area: which frames the mean area of a tube is taken over: ``all_frames`` of the video, absent ones counting 0
        (SAM 3's evaluator), or the ``present_frames`` (YouTube-VOS's)
    """

    name = "tube"
    rule = "YouTube-VIS AP on boxes: IoU of whole tubes 0.50:0.95, 101 recall points, 100 tubes a video and class"

    def __init__(self, area: Area = "all_frames") -> None:
        if area not in ("all_frames", "present_frames"):
            raise ValueError(f"tube area={area!r}; choose 'all_frames' or 'present_frames'")
        self.area = area

    def evaluate(self, inputs: Inputs) -> Result:
        reason = _undefined(inputs)
        if reason:
            return Result(summarise([]), undefined=reason)
        classes = self._classes(inputs)
        per_class = {
            "AP": np.array([_mean(scores.ap[0]) for scores in classes]),
            "AP50": np.array([scores.ap[0, 0] for scores in classes]),
        }
        curve = mean_curve([scores.matches for scores in classes])
        truth = TubeResults.from_ground_truth(inputs.gt)
        counted = truth.category[~truth.crowd]
        counts = {
            "ground_truth_tubes": int((~truth.crowd).sum()),
            "predicted_tubes": len(inputs.tubes or ()),
            "ground_truth_tubes_per_class": np.bincount(counted, minlength=len(inputs.gt.category_ids)).tolist(),
        }
        return Result(summarise(classes), per_class, {"tube/AP50": curve}, counts, note=federation_note(inputs.gt))

    def matches(self, inputs: Inputs) -> Mapping[str, MatchTable]:
        if _undefined(inputs):
            return {}
        by_threshold = [list(classes) for classes in zip(*(s.matches for s in self._classes(inputs)), strict=True)]
        return {"tube/AP": MatchTable("101", by_threshold), "tube/AP50": MatchTable("101", by_threshold[:1])}

    def _classes(self, inputs: Inputs) -> list[ClassScores]:
        truth, tubes = TubeResults.from_ground_truth(inputs.gt), inputs.tubes
        assert tubes is not None
        ranges = size_ranges(128, 256)
        mean_areas = self._mean_area(truth, inputs.gt), self._mean_area(tubes, inputs.gt)
        return [
            score_class(_candidates(truth, tubes, c, mean_areas, inputs.gt), ranges, len(inputs.gt.video_ids))
            for c in range(len(inputs.gt.category_ids))
        ]

    def _mean_area(self, tubes: TubeResults, gt: GroundTruth) -> np.ndarray:
        """N float64, mean area of each tube in square pixels."""
        total = _sum_by_tube(tubes, np.ones(len(tubes.boxes), dtype=bool))
        frames = gt.video_lengths[tubes.video]
        if self.area == "present_frames":
            frames = np.bincount(tubes.tube, minlength=len(tubes))
        return total / np.maximum(frames, 1)


def _undefined(inputs: Inputs) -> str:
    if not inputs.gt.has_tracks:
        return "the annotations have no instance_id, so there are no ground-truth tubes"
    return "" if inputs.tubes is not None else "there are no tubes, and no prediction has a track_id to build them from"


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values))


def _sum_by_tube(tubes: TubeResults, rows: np.ndarray) -> np.ndarray:
    area = tubes.boxes[:, 2] * tubes.boxes[:, 3] * rows
    return _sums(tubes.tube, area, len(tubes))


def _sums(group: np.ndarray, values: np.ndarray, groups: int) -> np.ndarray:
    """Sum of ``values`` in each group, float64 also when there is nothing to sum."""
    return np.bincount(group, weights=values, minlength=groups).astype(np.float64)


def _candidates(
    truth: TubeResults, tubes: TubeResults, category: int, mean_areas: tuple[np.ndarray, np.ndarray], gt: GroundTruth
) -> Candidates:
    """The tubes of one class, the predictions by descending score (ties: ascending video id, then as given)."""
    mine = np.flatnonzero(truth.category == category)
    theirs = np.flatnonzero(tubes.category == category)
    order = np.lexsort((gt.video_ids[tubes.video[theirs]], -tubes.scores[theirs]))
    theirs = theirs[order]
    det, gt_tube, iou = tube_iou(truth, tubes, mine, theirs, len(gt.image_ids))
    near = iou >= THRESHOLDS[0] - 1e-9
    return Candidates(
        det_group=tubes.video[theirs],
        det_area=mean_areas[1][theirs],
        det_video=tubes.video[theirs],
        gt_area=mean_areas[0][mine],
        gt_crowd=truth.crowd[mine],
        gt_video=truth.video[mine],
        det=det[near],
        gt=gt_tube[near],
        iou=iou[near],
        det_excused=not_exhaustive(gt, tubes.video[theirs], category),
    )


def tube_iou(
    truth: TubeResults, tubes: TubeResults, mine: np.ndarray, theirs: np.ndarray, images: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IoU of the ground-truth tubes ``mine`` (g) and the predicted tubes ``theirs`` that share a frame.

    Returns positions in ``theirs`` and in ``mine`` and the IoU (p each).  Frames on which a ground-truth box is
    ignored count for neither side of that pair.
    """
    place_mine, place_theirs = np.full(len(truth), -1), np.full(len(tubes), -1)
    place_mine[mine], place_theirs[theirs] = np.arange(len(mine)), np.arange(len(theirs))
    rows_g = np.flatnonzero(place_mine[truth.tube] >= 0)
    rows_g = rows_g[np.argsort(truth.image[rows_g], kind="stable")]
    rows_d = np.flatnonzero(place_theirs[tubes.tube] >= 0)
    d, g = ImageJoin(truth.image[rows_g], images).pairs(tubes.image[rows_d])
    d, g = rows_d[d], rows_g[g]
    inter = paired_intersection(tubes.boxes[d], truth.boxes[g])
    inter[truth.ignored[g]] = 0
    hidden = np.where(truth.ignored[g], tubes.boxes[d, 2] * tubes.boxes[d, 3], 0.0)
    key = place_theirs[tubes.tube[d]] * max(len(mine), 1) + place_mine[truth.tube[g]]
    keys, inverse = np.unique(key, return_inverse=True)
    inverse = inverse.reshape(-1)
    inter = _sums(inverse, inter, len(keys))
    hidden = _sums(inverse, hidden, len(keys))
    pair_d, pair_g = keys // max(len(mine), 1), keys % max(len(mine), 1)
    area_g = _sum_by_tube(truth, ~truth.ignored)[mine][pair_g]
    area_d = _sum_by_tube(tubes, np.ones(len(tubes.boxes), dtype=bool))[theirs][pair_d]
    union = area_g + area_d - hidden - inter
    iou = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return pair_d, pair_g, iou
