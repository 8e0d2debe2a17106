"""Greedy assignment of detections to ground truth, for all images at once.

Every AP protocol here assigns greedily: in order of score, each detection takes the free ground truth that it ranks
highest.  As all ground truth prefers higher scores, the result is the unique stable matching of detections and ground
truth (Gale and Shapley, "College admissions and the stability of marriage", 1962), which a few vectorised rounds of
proposals compute instead of a Python loop over images, detections and ground truth.

Shape legend
    n detections    g ground truth boxes    p candidate pairs of one detection and one ground truth     M images
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from stdetr.evaluation.boxes import paired_iou

FREE = -1
PAIRS = 1 << 20  # pairs whose overlaps are held at a time


class ImageJoin:
    """Pairs detections with the ground truth of their image.

    gt_image: g integers, image of each ground truth, ascending
    """

    def __init__(self, gt_image: np.ndarray, images: int) -> None:
        assert (np.diff(gt_image) >= 0).all(), "ground truth must be ordered by image"
        self.counts = np.bincount(gt_image, minlength=images)
        self.starts = np.cumsum(self.counts) - self.counts

    def pairs(self, det_image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All (detection, ground truth) of one image: two p int64, ordered by detection, then ground truth."""
        counts = self.counts[det_image]
        det = np.repeat(np.arange(len(det_image)), counts)
        first = np.cumsum(counts) - counts
        gt = np.arange(len(det)) - np.repeat(first - self.starts[det_image], counts)
        return det, gt

    def overlaps(
        self,
        det_image: np.ndarray,
        det_boxes: np.ndarray,
        gt_boxes: np.ndarray,
        grow: float = 0.0,
        crowd: np.ndarray | None = None,
    ) -> Iterator[Pairs]:
        """The same pairs with their IoU, about ``PAIRS`` at a time; all pairs of one detection come together.

        det_boxes: n,4 xywh     gt_boxes: g,4 xywh      grow: see ``paired_iou``
        crowd: g bool, ground truth whose overlap is a share of the detection's area; None for none
        """
        total = np.cumsum(self.counts[det_image] + 1)
        cuts = np.searchsorted(total, np.arange(PAIRS, total[-1], PAIRS), side="right") if len(total) else []
        edges = np.unique(np.concatenate([[0], cuts, [len(total)]]).astype(np.int64))
        for start, stop in pairwise(edges.tolist()):
            det, gt = self.pairs(det_image[start:stop])
            det += start
            over_det = None if crowd is None else crowd[gt]
            yield Pairs(det, gt, paired_iou(det_boxes[det].astype(np.float64), gt_boxes[gt], grow, over_det))


@dataclass(frozen=True, repr=False)
class Pairs:
    """det, gt: p int64 positions of a detection and a ground truth of one image; iou: p float64, their overlap."""

    det: np.ndarray
    gt: np.ndarray
    iou: np.ndarray

    def take(self, rows: np.ndarray) -> Pairs:
        """The pairs that the mask or positions ``rows`` name."""
        return Pairs(self.det[rows], self.gt[rows], self.iou[rows])

    @classmethod
    def joined(cls, parts: Sequence[Pairs]) -> Pairs:
        names = {"det": np.int64, "gt": np.int64, "iou": np.float64}
        columns = {name: [getattr(part, name) for part in parts] for name in names}
        return cls(**{name: np.concatenate([*columns[name], np.zeros(0, kind)]) for name, kind in names.items()})


def greedy_match(
    det: np.ndarray, gt: np.ndarray, n: int, g: int, *, reusable: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Assign detections to ground truth greedily.

    det: p positions of detections; a smaller position chooses first
    gt:  p positions of ground truth; pairs must be grouped by ``det`` ascending and, inside a group, ordered from
         the ground truth that the detection ranks highest to the one it ranks lowest
    n, g: number of detections and ground truth
    reusable: g bool, ground truth that any number of detections may take (crowd); None for none

    Returns the matched detections, ascending, and the ground truth of each.
    """
    holder = np.full(g, n, dtype=np.int64)
    if not len(det):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    first = np.flatnonzero(np.concatenate([[True], det[1:] != det[:-1]]))
    chooser = det[first]
    end = np.append(first[1:], len(det))
    slot = np.full(n, -1, dtype=np.int64)
    slot[chooser] = np.arange(len(chooser))
    place = first.copy()
    chosen = np.full(len(chooser), FREE, dtype=np.int64)
    active = np.arange(len(chooser))
    while len(active):
        active = active[place[active] < end[active]]
        wish = gt[place[active]]
        free = np.zeros(len(active), dtype=bool) if reusable is None else reusable[wish]
        chosen[active[free]] = wish[free]
        active, wish = active[~free], wish[~free]
        before = holder[wish]
        np.minimum.at(holder, wish, chooser[active])
        won = holder[wish] == chooser[active]
        chosen[active[won]] = wish[won]
        # A better detection takes over: the previous holder proposes to its next choice.
        lost = np.unique(before[won & (before < n)])
        evicted = slot[lost]
        chosen[evicted] = FREE
        place[evicted] += 1
        refused = active[~won]
        place[refused] += 1
        active = np.concatenate([refused, evicted])
    matched = chosen != FREE
    return chooser[matched], chosen[matched]


def rank_in_group(group: np.ndarray) -> np.ndarray:
    """n int64: how many earlier items have the same ``group`` (n integers)."""
    order = np.argsort(group, kind="stable")
    sorted_group = group[order]
    fresh = np.concatenate([[True], sorted_group[1:] != sorted_group[:-1]]) if len(group) else np.zeros(0, bool)
    start = np.maximum.accumulate(np.where(fresh, np.arange(len(group)), 0)) if len(group) else np.zeros(0, int)
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - start
    return rank
