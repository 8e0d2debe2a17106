"""COCO's matching and accumulation on columns, for boxes of frames and for tubes alike.

A reimplementation of the rules of pycocotools ``COCOeval`` (Lin et al., "Microsoft COCO", 2014; the tests compare it
with pycocotools 2.0.11): detections by descending score choose the ground truth with the highest IoU, what is in the
size range before what is not, the later one on equal IoU; crowd ground truth may be taken any number of times; taking
ignored ground truth, or being outside the size range unmatched, counts as nothing.

Shape legend
    n detections of one class, by descending score      g ground truth of one class     p candidate pairs
    A size ranges       T IoU thresholds        K limits of detections      C classes       V videos
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .curve import ScoredMatches, mean_defined, sample_curve
from .matching import greedy_match, rank_in_group

THRESHOLDS = np.linspace(0.5, 0.95, 10)
LIMITS = (1, 10, 100)
RANGES = ("all", "small", "medium", "large")
FAR = 1e10


def size_ranges(small: float, large: float) -> np.ndarray:
    """A,2: bounds of the areas (square pixels) of all, small, medium and large objects."""
    return np.array([[0, FAR], [0, small**2], [small**2, large**2], [large**2, FAR]], dtype=np.float64)


@dataclass(frozen=True, repr=False)
class Candidates:
    """One class: detections by descending score, ground truth, and the pairs with IoU of at least 0.5.

    det_group: n integers, image (or video) inside which the limit of detections counts
    det_area: n     det_video: n int    gt_area: g      gt_crowd: g bool    gt_video: g int
    det, gt: p positions; iou: p float64
    det_excused: n bool, detections that count as nothing unless they are matched
    """

    det_group: np.ndarray
    det_area: np.ndarray
    det_video: np.ndarray
    gt_area: np.ndarray
    gt_crowd: np.ndarray
    gt_video: np.ndarray
    det: np.ndarray
    gt: np.ndarray
    iou: np.ndarray
    det_excused: np.ndarray

    def limited(self, limit: int) -> Candidates:
        """At most ``limit`` detections of each group."""
        keep = rank_in_group(self.det_group) < limit
        if keep.all():
            return self
        place = np.cumsum(keep) - 1
        pairs = keep[self.det]
        return Candidates(
            self.det_group[keep],
            self.det_area[keep],
            self.det_video[keep],
            self.gt_area,
            self.gt_crowd,
            self.gt_video,
            place[self.det[pairs]],
            self.gt[pairs],
            self.iou[pairs],
            self.det_excused[keep],
        )


@dataclass(repr=False)
class ClassScores:
    """Scores of one class, nan where no ground truth counts.

    ap: A,T     recall: A,T,K   matches: T ScoredMatches over all sizes
    """

    ap: np.ndarray
    recall: np.ndarray
    matches: list[ScoredMatches]


def score_class(candidates: Candidates, ranges: np.ndarray, videos: int) -> ClassScores:
    """AP and recall of one class in every size range (A,2) and at every threshold."""
    c = candidates.limited(LIMITS[-1])
    n, g = len(c.det_group), len(c.gt_area)
    rank = rank_in_group(c.det_group)
    ap = np.full((len(ranges), len(THRESHOLDS)), np.nan)
    recall = np.full((len(ranges), len(THRESHOLDS), len(LIMITS)), np.nan)
    kept: list[ScoredMatches] = []
    for a, (low, high) in enumerate(ranges):
        ignored = c.gt_crowd | (c.gt_area < low) | (c.gt_area > high)
        positives = np.bincount(c.gt_video[~ignored], minlength=videos)
        total = positives.sum()
        counts = (c.det_area >= low) & (c.det_area <= high) & ~c.det_excused
        order = np.lexsort((-c.gt, -c.iou, ignored[c.gt], c.det))
        det, gt, iou = c.det[order], c.gt[order], c.iou[order]
        for t, threshold in enumerate(THRESHOLDS):
            near = iou >= min(threshold, 1 - 1e-10)
            taker, taken = greedy_match(det[near], gt[near], n, g, reusable=c.gt_crowd)
            true = np.zeros(n, dtype=bool)
            true[taker] = ~ignored[taken]
            false = counts.copy()
            false[taker] = False
            matches = ScoredMatches(true, false, c.det_video, positives)
            if a == 0:
                kept.append(matches)
            if total:
                ap[a, t] = matches.average_precision("101")
                for k, limit in enumerate(LIMITS):
                    recall[a, t, k] = (true & (rank < limit)).sum() / total
    return ClassScores(ap, recall, kept)


def summarise(classes: list[ClassScores]) -> dict[str, float]:
    """COCO's twelve numbers from the scores of C classes; nan where not defined."""
    if not classes:
        ap, recall = np.full((4, 1, 10), np.nan), np.full((4, 1, 10, 3), np.nan)
    else:
        ap = np.stack([scores.ap for scores in classes], axis=1)
        recall = np.stack([scores.recall for scores in classes], axis=1)
    return twelve(ap, recall)


def twelve(ap: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """COCO's twelve numbers from AP (A,C,T) and recall (A,C,T,K), nan where no ground truth counts."""
    metrics = {"AP": mean_defined(ap[0]), "AP50": mean_defined(ap[0, :, 0]), "AP75": mean_defined(ap[0, :, 5])}
    metrics |= {f"AP_{name}": mean_defined(ap[a]) for a, name in enumerate(RANGES) if a}
    metrics |= {f"AR{limit}": mean_defined(recall[0, ..., k]) for k, limit in enumerate(LIMITS)}
    return metrics | {f"AR_{name}": mean_defined(recall[a, ..., -1]) for a, name in enumerate(RANGES) if a}


def mean_curve(classes: list[list[ScoredMatches]], threshold: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Recall (101) and precision averaged over the classes that have ground truth (101 float64; empty for none)."""
    curves = [
        sample_curve(*matches[threshold].precision_recall())
        for matches in classes
        if matches[threshold].positives.sum()
    ]
    if not curves:
        return np.zeros(0), np.zeros(0)
    return np.linspace(0, 1, 101), np.mean(curves, axis=0)
