"""From scored true and false positives to precision, recall and average precision.

Shape legend
    n detections of one class, by descending score      V videos        R recall points
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Rule = Literal["area", "101"]
RECALL_POINTS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, repr=False)
class ScoredMatches:
    """The detections of one class after matching, by descending score; what a precision-recall curve is made of.

    tp:        n bool       fp: n bool or float, the weight as a false positive; ignored ones have neither
    video:     n int32, position of the video       positives: V, ground truth to be found in each video
    """

    tp: np.ndarray
    fp: np.ndarray
    video: np.ndarray
    positives: np.ndarray

    def precision_recall(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Recall and precision envelope at each true positive (k float64 each).

        Precision falls on every false positive, so its envelope (the best precision at this recall or a higher one)
        only needs the points where a true positive arrives.  ``weights`` (V) counts each video that many times
        (bootstrap).  Recall is nan where there is no ground truth.
        """
        hits = np.flatnonzero(self.tp)
        if weights is None:
            total = float(self.positives.sum())
            true = np.arange(1, len(hits) + 1, dtype=np.float64)
            false = np.cumsum(self.fp, dtype=np.float64)[hits]
        else:
            total = float((self.positives * weights).sum())
            each = weights[self.video].astype(np.float64)
            true = np.cumsum(each[hits])
            false = np.cumsum(self.fp * each)[hits]
        # A true positive of a video that the bootstrap did not draw leaves 0 / 0 before the first counted one.
        precision = true / np.maximum(true + false, np.finfo(np.float64).tiny)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        recall = true / total if total > 0 else np.full(len(true), np.nan)
        return recall, envelope

    def average_precision(self, rule: Rule, weights: np.ndarray | None = None) -> float:
        """AP under the envelope: ``area`` sums over all recall steps (ImageNet VID), ``101`` averages the envelope at
        101 recall points (COCO).  nan when no ground truth counts."""
        total = self.positives.sum() if weights is None else (self.positives * weights).sum()
        if total <= 0:
            return float("nan")
        recall, envelope = self.precision_recall(weights)
        if rule == "area":
            return float((np.diff(recall, prepend=0.0) * envelope).sum())
        return float(sample_curve(recall, envelope).mean())

    def compact(self) -> ScoredMatches:
        """Without the detections that do not affect average precision: ignored ones and those after the last hit."""
        hits = np.flatnonzero(self.tp)
        last = int(hits[-1]) + 1 if len(hits) else 0
        keep = np.flatnonzero(self.tp[:last] | (self.fp[:last] > 0))
        return ScoredMatches(self.tp[keep], self.fp[keep], self.video[keep], self.positives)


def sample_curve(recall: np.ndarray, envelope: np.ndarray) -> np.ndarray:
    """101 float64: the envelope at recall 0, 0.01, ..., 1; zero where that recall is never reached."""
    place = np.searchsorted(recall, RECALL_POINTS, side="left")
    return np.append(envelope, 0.0)[place]


def mean_defined(values: list[float] | np.ndarray) -> float:
    """Mean of the values that are not nan; nan when there are none."""
    array = np.asarray(values, dtype=np.float64)
    array = array[~np.isnan(array)]
    return float(array.mean()) if len(array) else float("nan")


@dataclass(frozen=True)
class MatchTable:
    """The matches behind one metric: the metric is the mean over thresholds of the mean over classes of their AP."""

    rule: Rule
    by_threshold: list[list[ScoredMatches]]

    def compact(self) -> MatchTable:
        """The same metric from as few detections as it depends on."""
        return MatchTable(self.rule, [[matches.compact() for matches in classes] for classes in self.by_threshold])

    def value(self, weights: np.ndarray | None = None) -> float:
        """The metric with each video counted ``weights`` (V) times; nan when nothing is defined."""
        values = [
            [matches.average_precision(self.rule, weights) for matches in classes] for classes in self.by_threshold
        ]
        return mean_defined(np.array(values, dtype=np.float64))
