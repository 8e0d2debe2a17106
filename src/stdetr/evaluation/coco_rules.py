"""COCO's matching and accumulation on columns, for boxes of frames and for tubes alike.

A reimplementation of the rules of pycocotools ``COCOeval`` (Lin et al., "Microsoft COCO", 2014; the tests compare it
with pycocotools 2.0.11): detections by descending score choose the ground truth with the highest IoU, those in the size
range before others, the later one on equal IoU; crowd ground truth may be matched any number of times; detections that
match ignored ground truth, or are unmatched and outside the size range, count as nothing.

Shape legend
    n detections of one class, by descending score      g ground truth of one class     p candidate pairs
    A size ranges       T IoU thresholds        K limits of detections      C classes       V videos
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from stdetr.evaluation.curve import RECALL_POINTS, MatchTable, ScoredMatches, mean_defined, sample_curve
from stdetr.evaluation.ignored import federation_note
from stdetr.evaluation.matching import Pairs, greedy_match, rank_in_group
from stdetr.evaluation.protocol import Evaluator, Inputs, Result

THRESHOLDS = np.linspace(0.5, 0.95, 10)
LIMITS = (1, 10, 100)
RANGES = ("all", "small", "medium", "large")
FAR = 1e10


@dataclass(frozen=True, repr=False)
class Candidates:
    """One class: detections by descending score, ground truth, and the pairs with IoU of at least 0.5.

    det_group: n integers, image (or video) inside which the limit of detections counts
    det_area: n     det_video: n int    gt_area: g      gt_crowd: g bool    gt_video: g int
    det_ignored: n bool, detections that count as nothing unless they are matched
    """

    det_group: np.ndarray
    det_area: np.ndarray
    det_video: np.ndarray
    det_ignored: np.ndarray
    gt_area: np.ndarray
    gt_crowd: np.ndarray
    gt_video: np.ndarray
    pairs: Pairs

    def limited(self, limit: int) -> Candidates:
        """At most ``limit`` detections of each group."""
        keep = rank_in_group(self.det_group) < limit
        if keep.all():
            return self
        pairs = self.pairs.take(keep[self.pairs.det])
        pairs = replace(pairs, det=(np.cumsum(keep) - 1)[pairs.det])
        names = ("det_group", "det_area", "det_video", "det_ignored")
        return replace(self, pairs=pairs, **{name: getattr(self, name)[keep] for name in names})


@dataclass(repr=False)
class ClassScores:
    """Scores of one class, nan where no ground truth counts.

    ap: A,T     recall: A,T,K   matches: T ScoredMatches over all sizes
    """

    ap: np.ndarray
    recall: np.ndarray
    matches: list[ScoredMatches]


class CocoRulesEvaluator(Evaluator):
    """An evaluator by COCO's rules: ``AP``, ``AP50``, ``AP75``, ``AP_small|medium|large``, ``AR1``, ``AR10``,
    ``AR100``, ``AR_small|medium|large``.

    sizes: the sides of a square (pixels) between small and medium, and between medium and large
    """

    sizes: ClassVar[tuple[int, int]]

    @abstractmethod
    def candidates(self, inputs: Inputs) -> Iterator[Candidates]:
        """``Candidates`` of each class in turn."""

    def undefined(self, inputs: Inputs) -> str:
        """Why there is nothing to score; empty where there is."""
        return ""

    def evaluate(self, inputs: Inputs) -> Result:
        reason = self.undefined(inputs)
        scored = [] if reason else list(self._classes(inputs))
        nothing = np.zeros((len(RANGES), 0, len(THRESHOLDS), len(LIMITS)))
        ap = np.stack([one.ap for one in scored], axis=1) if scored else nothing[..., 0]
        recall = np.stack([one.recall for one in scored], axis=1) if scored else nothing
        metrics = _twelve(ap, recall)
        if reason:
            return Result(metrics, undefined=reason)
        curves = [sample_curve(*one.matches[0].precision_recall()) for one in scored if one.matches[0].positives.sum()]
        return Result(
            metrics,
            {"AP": ap[0].mean(axis=1), "AP50": ap[0, :, 0]},
            {f"{self.name}/AP50": (RECALL_POINTS, np.mean(curves, axis=0))} if curves else {},
            note=federation_note(inputs.gt),
        )

    def matches(self, inputs: Inputs) -> dict[str, MatchTable]:
        if self.undefined(inputs):
            return {}
        classes = [one.matches for one in self._classes(inputs, len(THRESHOLDS))]
        by_threshold = [list(group) for group in zip(*classes, strict=True)]
        return {
            f"{self.name}/AP": MatchTable("101", by_threshold),
            f"{self.name}/AP50": MatchTable("101", by_threshold[:1]),
        }

    def _classes(self, inputs: Inputs, kept: int = 1) -> Iterator[ClassScores]:
        """Scores of each class, with the matches at the first ``kept`` thresholds: more cost much memory."""
        small, large = (side**2 for side in self.sizes)
        ranges = np.array([[0, FAR], [0, small], [small, large], [large, FAR]], dtype=np.float64)
        for candidates in self.candidates(inputs):
            scores = score_class(candidates, ranges, len(inputs.gt.video_ids))
            scores.matches = scores.matches[:kept]
            yield scores


def score_class(candidates: Candidates, ranges: np.ndarray, videos: int) -> ClassScores:
    """AP and recall of one class in every range of areas (A,2 square pixels) and at every threshold."""
    c = candidates.limited(LIMITS[-1])
    n, g = len(c.det_group), len(c.gt_area)
    rank = rank_in_group(c.det_group)
    ap = np.full((len(ranges), len(THRESHOLDS)), np.nan)
    recall = np.full((len(ranges), len(THRESHOLDS), len(LIMITS)), np.nan)
    over_all_sizes: list[ScoredMatches] = []
    for a, (low, high) in enumerate(ranges):
        ignored = c.gt_crowd | (c.gt_area < low) | (c.gt_area > high)
        positives = np.bincount(c.gt_video[~ignored], minlength=videos)
        total = positives.sum()
        counts = (c.det_area >= low) & (c.det_area <= high) & ~c.det_ignored
        pairs = c.pairs.take(np.lexsort((-c.pairs.gt, -c.pairs.iou, ignored[c.pairs.gt], c.pairs.det)))
        for t, threshold in enumerate(THRESHOLDS):
            near = pairs.take(pairs.iou >= min(threshold, 1 - 1e-10))
            taker, taken = greedy_match(near.det, near.gt, n, g, reusable=c.gt_crowd)
            true = np.zeros(n, dtype=bool)
            true[taker] = ~ignored[taken]
            false = counts.copy()
            false[taker] = False
            matches = ScoredMatches(true, false, c.det_video, positives)
            if a == 0:
                over_all_sizes.append(matches)
            if total:
                ap[a, t] = matches.average_precision("101")
                for k, limit in enumerate(LIMITS):
                    recall[a, t, k] = (true & (rank < limit)).sum() / total
    return ClassScores(ap, recall, over_all_sizes)


def _twelve(ap: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """COCO's twelve numbers from AP (A,C,T) and recall (A,C,T,K), nan where no ground truth counts."""
    metrics = {"AP": mean_defined(ap[0]), "AP50": mean_defined(ap[0, :, 0]), "AP75": mean_defined(ap[0, :, 5])}
    metrics |= {f"AP_{name}": mean_defined(ap[a]) for a, name in enumerate(RANGES) if a}
    metrics |= {f"AR{limit}": mean_defined(recall[0, ..., k]) for k, limit in enumerate(LIMITS)}
    return metrics | {f"AR_{name}": mean_defined(recall[a, ..., -1]) for a, name in enumerate(RANGES) if a}
