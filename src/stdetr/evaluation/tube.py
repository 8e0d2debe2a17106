"""Tube AP: YouTube-VIS average precision on boxes instead of masks.

Tube IoU is the sum over frames of the intersections over the sum of the unions; a frame where one side is absent adds
the other's area to the union (Yang et al., "Video Instance Segmentation", 2019).  The numbers are those of the public
``YTVISeval`` in box mode.

Shape legend
    N tubes     n boxes of all tubes        g ground-truth tubes of one class       p pairs of tubes    V videos
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from stdetr.evaluation.boxes import paired_intersection
from stdetr.evaluation.coco_rules import THRESHOLDS, Candidates, CocoRulesEvaluator
from stdetr.evaluation.ground_truth import GroundTruth
from stdetr.evaluation.ignored import not_exhaustive
from stdetr.evaluation.matching import ImageJoin, Pairs
from stdetr.evaluation.protocol import Inputs, Result
from stdetr.evaluation.tubes import TubeResults

Area = Literal["all_frames", "present_frames"]


class TubeEvaluator(CocoRulesEvaluator):
    """``tube/AP``, ``AP50``, ``AP75``, ``AP_small|medium|large`` (128 and 256 pixels), ``AR1``, ``AR10``, ``AR100``.

    area: frames over which the mean area of a tube is taken: ``all_frames`` of the video, absent ones counting 0
        (SAM 3's evaluator), or the ``present_frames`` (YouTube-VOS's)
    """

    name = "tube"
    rule = "YouTube-VIS AP on boxes: IoU of whole tubes 0.50:0.95, 101 recall points, 100 tubes per video and class"
    sizes = (128, 256)

    def __init__(self, area: Area = "all_frames") -> None:
        if area not in ("all_frames", "present_frames"):
            raise ValueError(f"tube area={area!r}; choose 'all_frames' or 'present_frames'")
        self.area = area

    def undefined(self, inputs: Inputs) -> str:
        if not inputs.gt.has_tracks:
            return "the annotations have no instance_id, so there are no ground-truth tubes"
        if inputs.tubes is None:
            return "there are no tubes, and no prediction has a track_id to build them from"
        return ""

    def evaluate(self, inputs: Inputs) -> Result:
        result = super().evaluate(inputs)
        if not result.undefined:
            truth = TubeResults.from_ground_truth(inputs.gt)
            counted = truth.category[~truth.crowd]
            result.details = {
                "ground_truth_tubes": len(counted),
                "predicted_tubes": len(inputs.tubes or ()),
                "ground_truth_tubes_per_class": np.bincount(counted, minlength=len(inputs.gt.category_ids)).tolist(),
            }
        return result

    def candidates(self, inputs: Inputs) -> Iterator[Candidates]:
        """The tubes of each class, the predictions by descending score (ties: ascending video id, then as given)."""
        gt, truth, tubes = inputs.gt, TubeResults.from_ground_truth(inputs.gt), inputs.tubes
        assert tubes is not None
        gt_area, det_area = self._mean_area(truth, gt), self._mean_area(tubes, gt)
        for category in range(len(gt.category_ids)):
            gt_rows, tube_rows = np.flatnonzero(truth.category == category), np.flatnonzero(tubes.category == category)
            tube_rows = tube_rows[np.lexsort((gt.video_ids[tubes.video[tube_rows]], -tubes.scores[tube_rows]))]
            pairs = tube_iou(truth, tubes, gt_rows, tube_rows, len(gt.image_ids))
            yield Candidates(
                det_group=tubes.video[tube_rows],
                det_area=det_area[tube_rows],
                det_video=tubes.video[tube_rows],
                det_ignored=not_exhaustive(gt, tubes.video[tube_rows], category),
                gt_area=gt_area[gt_rows],
                gt_crowd=truth.crowd[gt_rows],
                gt_video=truth.video[gt_rows],
                pairs=pairs.take(pairs.iou >= THRESHOLDS[0] - 1e-9),
            )

    def _mean_area(self, tubes: TubeResults, gt: GroundTruth) -> np.ndarray:
        """N float64, mean area of each tube in square pixels."""
        frames = gt.video_lengths[tubes.video]
        if self.area == "present_frames":
            frames = np.bincount(tubes.tube, minlength=len(tubes))
        return _total_area(tubes, np.ones(len(tubes.boxes), dtype=bool)) / np.maximum(frames, 1)


def _total_area(tubes: TubeResults, rows: np.ndarray) -> np.ndarray:
    """N float64, area of the boxes that the mask (n bool) names, summed over each tube."""
    return _sums(tubes.tube, tubes.boxes[:, 2] * tubes.boxes[:, 3] * rows, len(tubes))


def _sums(group: np.ndarray, values: np.ndarray, groups: int) -> np.ndarray:
    """Sum of ``values`` in each group, float64 also when there is nothing to sum."""
    return np.bincount(group, weights=values, minlength=groups).astype(np.float64)


def tube_iou(truth: TubeResults, tubes: TubeResults, gt_rows: np.ndarray, tube_rows: np.ndarray, images: int) -> Pairs:
    """IoU of the ground-truth tubes ``mine`` (g) and the predicted tubes ``theirs`` that share a frame, as positions in
    ``theirs`` and in ``mine``.

    Frames on which a ground-truth box is ignored count for neither side of that pair.
    """
    place_mine, place_theirs = np.full(len(truth), -1), np.full(len(tubes), -1)
    place_mine[gt_rows], place_theirs[tube_rows] = np.arange(len(gt_rows)), np.arange(len(tube_rows))
    rows_g = np.flatnonzero(place_mine[truth.tube] >= 0)
    rows_g = rows_g[np.argsort(truth.image[rows_g], kind="stable")]
    rows_d = np.flatnonzero(place_theirs[tubes.tube] >= 0)
    d, g = ImageJoin(truth.image[rows_g], images).pairs(tubes.image[rows_d])
    d, g = rows_d[d], rows_g[g]
    inter = paired_intersection(tubes.boxes[d], truth.boxes[g])
    inter[truth.ignored[g]] = 0
    hidden = np.where(truth.ignored[g], tubes.boxes[d, 2] * tubes.boxes[d, 3], 0.0)
    key = place_theirs[tubes.tube[d]] * max(len(gt_rows), 1) + place_mine[truth.tube[g]]
    keys, inverse = np.unique(key, return_inverse=True)
    inverse = inverse.reshape(-1)
    inter = _sums(inverse, inter, len(keys))
    hidden = _sums(inverse, hidden, len(keys))
    pair_d, pair_g = keys // max(len(gt_rows), 1), keys % max(len(gt_rows), 1)
    area_g = _total_area(truth, ~truth.ignored)[gt_rows][pair_g]
    area_d = _total_area(tubes, np.ones(len(tubes.boxes), dtype=bool))[tube_rows][pair_d]
    union = area_g + area_d - hidden - inter
    return Pairs(pair_d, pair_g, np.divide(inter, union, out=np.zeros_like(inter), where=union > 0))
