"""ImageNet VID AP50 by the devkit's rules, overall and by motion.

The rules are those of the Python ports in Flow-Guided Feature Aggregation (Zhu et al., 2017) and YOLOV (Shi et al.,
2023): inclusive pixels, a threshold that is lower for small objects, the area under the whole precision envelope, no
limit of detections.  In a motion split, ground truth outside the range is ignored; an unmatched detection then counts
only if it lies nearer to ground truth inside the range than outside, of any class.

Shape legend
    n detections of one class, by descending score      A annotations       M images        C classes
    g annotations that the detections of one class are compared with        p pairs of both
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from stdetr.evaluation.curve import RECALL_POINTS, MatchTable, ScoredMatches, mean_defined, sample_curve
from stdetr.evaluation.detections import BoundDetections
from stdetr.evaluation.ground_truth import GroundTruth
from stdetr.evaluation.ignored import federation_note, ignored_unless_matched, region_note
from stdetr.evaluation.matching import ImageJoin, Pairs, greedy_match
from stdetr.evaluation.motion import Split, motion_splits
from stdetr.evaluation.protocol import Evaluator, Inputs, Result


class VidEvaluator(Evaluator):
    """``vid/AP50`` and, with ``motion``, ``vid/AP50_fast|medium|slow``; per class as well."""

    name = "vid"
    rule = "ImageNet VID devkit AP50: inclusive pixels, threshold min(0.5, wh/((w+10)(h+10))), area under the curve"
    grow: ClassVar[float] = 1.0  # pixels added to every width and height
    class_by_class: ClassVar[bool] = False  # unmatched detections are compared with ground truth of their class only

    def __init__(self, motion: bool = True) -> None:
        self.motion = motion

    def evaluate(self, inputs: Inputs) -> Result:
        names = ("all", "fast", "medium", "slow") if self.motion else ("all",)
        keys = {split: "AP50" if split == "all" else f"AP50_{split}" for split in names}
        gt = inputs.gt.objects()
        reason = undefined(gt)
        if reason:
            return Result(dict.fromkeys(keys.values(), float("nan")), undefined=reason)
        no_motion = "" if gt.has_tracks or not self.motion else "motion splits need instance_id in the annotations"
        splits = motion_splits(gt, ("all",) if no_motion else names)
        table = {split: np.full(len(gt.category_ids), np.nan) for split in names}
        curves = []
        for category, matches in enumerate(self._classes(inputs, splits)):
            for split, detections in zip(splits, matches, strict=True):
                table[split.name][category] = detections.average_precision("area")
            if matches[0].positives.sum():
                curves.append(sample_curve(*matches[0].precision_recall()))
        classes = len(gt.category_ids)
        details = {
            "ground_truth": {split.name: int((~split.ignored).sum()) for split in splits},
            "empty_weight": {split.name: split.empty_weight for split in splits},
            "ground_truth_per_class": {
                split.name: np.bincount(gt.category[~split.ignored], minlength=classes).tolist() for split in splits
            },
        }
        return Result(
            {key: mean_defined(table[split]) for split, key in keys.items()},
            {key: table[split] for split, key in keys.items()},
            {f"{self.name}/AP50": (RECALL_POINTS, np.mean(curves, axis=0))} if curves else {},
            details,
            no_motion,
            "; ".join(note for note in (region_note(inputs.gt), federation_note(inputs.gt)) if note),
        )

    def matches(self, inputs: Inputs) -> dict[str, MatchTable]:
        gt = inputs.gt.objects()
        if undefined(gt):
            return {}
        classes = [detections for (detections,) in self._classes(inputs, motion_splits(gt, ("all",)))]
        return {f"{self.name}/AP50": MatchTable("area", [classes])}

    def thresholds(self, boxes: np.ndarray) -> np.ndarray:
        """g float64: the IoU that a detection of each ground truth (g,4 xywh) needs."""
        width, height = boxes[:, 2] + 1, boxes[:, 3] + 1
        return np.minimum(0.5, width * height / ((width + 10) * (height + 10)))

    def ranking(self, image: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The order of one class's detections (n positions), and the turn in which each chooses within its image (n, in
        that order; a smaller number first).

        Here: by descending score, equal scores by image in the order of the annotations, then as given.
        """
        return np.lexsort((image, -scores)), np.arange(len(image))

    def preference(self, pairs: Pairs, ignored: np.ndarray) -> tuple[np.ndarray, ...]:
        """Sort keys (p each, the last is the primary key) by which a detection ranks its candidates.

        Here: the highest IoU, then the first ground truth.  ignored: g bool, out of the motion range
        """
        return (pairs.gt, -pairs.iou)

    def _classes(self, inputs: Inputs, splits: list[Split]) -> Iterator[list[ScoredMatches]]:
        """For each class in turn, its matches in each split (of ``inputs.gt.objects()``)."""
        gt, images = inputs.gt.objects(), len(inputs.gt.image_ids)
        for category in range(len(gt.category_ids)):
            detections, turn = self._detections(inputs.detections, category)
            n, video = len(detections), gt.image_video[detections.image].astype(np.int32)
            of_class = gt.category == category
            near = np.flatnonzero(of_class) if self.class_by_class else np.arange(len(gt.boxes))
            join = ImageJoin(gt.image[near], images)
            threshold = np.where(of_class[near], self.thresholds(gt.boxes[near]), np.inf)
            inside, outside = np.full((len(splits), n), -1.0), np.full((len(splits), n), -1.0)
            parts = []
            for pairs in join.overlaps(detections.image, detections.boxes, gt.boxes[near], self.grow):
                for s, split in enumerate(splits):
                    ignored = split.ignored[near[pairs.gt]]
                    for best, rows in ((inside[s], ~ignored), (outside[s], ignored)):
                        _best_overlap(pairs.det[rows], pairs.iou[rows], best)
                parts.append(pairs.take(pairs.iou >= threshold[pairs.gt]))
            candidates = Pairs.joined(parts)
            nothing = join.counts[detections.image] == 0
            neutral = ignored_unless_matched(inputs.gt, category, detections.image, detections.boxes)
            results = []
            for s, split in enumerate(splits):
                ignored = split.ignored[near]
                taker, taken = _assign(candidates, turn, self.preference(candidates, ignored), len(near))
                share = np.bincount(gt.image[near[ignored]], minlength=images) / np.maximum(join.counts, 1)
                # Equally near to both: by the share of the image's ground truth that is ignored.
                equal = share[detections.image]
                false = np.where(inside[s] > outside[s], 1.0, np.where(inside[s] < outside[s], 0.0, equal))
                false[nothing] = split.empty_weight
                false[taker] = 0.0
                false[neutral] = 0.0
                true = np.zeros(n, dtype=bool)
                true[taker] = ~ignored[taken]
                positives = np.bincount(gt.video[of_class & ~split.ignored], minlength=len(gt.video_ids))
                results.append(ScoredMatches(true, false, video, positives))
            yield results

    def _detections(self, detections: BoundDetections, category: int) -> tuple[BoundDetections, np.ndarray]:
        """The detections of one class in the order of ``ranking``, and their turns."""
        rows = np.flatnonzero(detections.category == category)
        order, turn = self.ranking(detections.image[rows], detections.scores[rows])
        return detections.take(rows[order]), turn


def undefined(gt: GroundTruth) -> str:
    """Why the ImageNet VID evaluators cannot score these objects; empty when they can."""
    count = int(gt.crowd.sum())
    if count:
        return f"the ImageNet VID rules have no crowd boxes, and the annotations hold {count} (iscrowd without ignore)"
    return "" if len(gt.boxes) else "the annotations have no box"


def _assign(
    pairs: Pairs, turn: np.ndarray, preference: tuple[np.ndarray, ...], ground_truth: int
) -> tuple[np.ndarray, np.ndarray]:
    """The detections that take a ground truth, and the ground truth of each; they choose in the order ``turn`` (n)."""
    ranked = turn[pairs.det]
    order = np.lexsort((*preference, ranked))
    taker, taken = greedy_match(ranked[order], pairs.gt[order], len(turn), ground_truth)
    by_turn = np.empty(len(turn), dtype=np.int64)
    by_turn[turn] = np.arange(len(turn))
    return by_turn[taker], taken


def _best_overlap(det: np.ndarray, iou: np.ndarray, best: np.ndarray) -> None:
    """Write the largest IoU of each detection into ``best`` (n); ``det`` (p) is grouped by detection."""
    if len(det):
        first = np.flatnonzero(np.concatenate([[True], det[1:] != det[:-1]]))
        best[det[first]] = np.maximum.reduceat(iou, first)
