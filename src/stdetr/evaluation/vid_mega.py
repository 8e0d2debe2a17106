"""ImageNet VID AP50 as MEGA computes it, overall and by motion.

The rules are those of MEGA (Chen et al., "Memory Enhanced Global-Local Aggregation", 2020) and of the systems built
on its code: a fixed threshold of 0.5, one pixel added twice to every width and height, and everything, also the
ignoring of ground truth outside a motion range, class by class.

Shape legend
    n detections of one class, by descending score      g annotations of one class      p pairs of both
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from .boxes import paired_iou
from .curve import ScoredMatches
from .excuses import excused
from .ground_truth import GroundTruth
from .matching import ImageJoin, chunks, greedy_match
from .motion import Split, motion_splits
from .protocol import Inputs, MatchTable, Result
from .vid import PAIRS, best_overlaps, class_rows, summarise, undefined

THRESHOLD = 0.5


class VidMegaEvaluator:
    """``vid_mega/AP50`` and, with ``motion``, ``vid_mega/AP50_fast|medium|slow``; per class as well."""

    name = "vid_mega"
    rule = "ImageNet VID AP50 as in MEGA: threshold 0.5, widths and heights + 2 pixels, area under the curve"

    def __init__(self, motion: bool = True) -> None:
        self.motion = motion

    def evaluate(self, inputs: Inputs) -> Result:
        return summarise(self.name, inputs, self.motion, score_classes)

    def matches(self, inputs: Inputs) -> Mapping[str, MatchTable]:
        if undefined(inputs, False):
            return {}
        splits = motion_splits(inputs.gt.objects(), ("all",))
        return {"vid_mega/AP50": MatchTable("area", [[c[0] for c in score_classes(inputs, splits)]])}


def score_classes(inputs: Inputs, splits: list[Split]) -> Iterator[list[ScoredMatches]]:
    """For each class in turn, its matches in each split (of ``inputs.gt.objects()``)."""
    gt = inputs.gt.objects()
    for category in range(len(gt.category_ids)):
        rows, turn = class_rows(inputs.detections, gt, category, reverse=True)
        n = len(rows.image)
        mine = np.flatnonzero(gt.category == category)
        join = ImageJoin(gt.image[mine], len(gt.image_ids))
        inside, outside = np.full((len(splits), n), -1.0), np.full((len(splits), n), -1.0)
        det, truth, iou = [], [], []
        for start, stop in chunks(join.counts[rows.image], PAIRS):
            d, g = join.pairs(rows.image[start:stop])
            overlap = paired_iou(rows.boxes[start:stop].astype(np.float64)[d], gt.boxes[mine[g]], grow=2.0)
            for s, split in enumerate(splits):
                best_overlaps(overlap, d, split.ignored[mine[g]], inside[s, start:stop], outside[s, start:stop])
            near = overlap >= THRESHOLD
            det.append(d[near] + start)
            truth.append(g[near])
            iou.append(overlap[near])
        pairs = [np.concatenate([*part, np.zeros(0, kind)]) for part, kind in ((det, int), (truth, int), (iou, float))]
        nought = excused(inputs.gt, category, rows.image, rows.boxes)
        results = []
        for s, split in enumerate(splits):
            found = _match(pairs, turn, rows.image, join, split, inside[s], outside[s], mine, rows.video, gt)
            found.fp[nought] = 0.0
            results.append(found)
        yield results


def _match(
    pairs: list[np.ndarray],
    turn: np.ndarray,
    image: np.ndarray,
    join: ImageJoin,
    split: Split,
    inside: np.ndarray,
    outside: np.ndarray,
    mine: np.ndarray,
    video: np.ndarray,
    gt: GroundTruth,
) -> ScoredMatches:
    """One class in one split."""
    n = len(image)
    det, truth, iou = pairs
    ignored = split.ignored[mine]
    # On equal overlap: the first ground truth in range, otherwise the last one out of it.
    out = ignored[truth]
    order = np.lexsort((np.where(out, -truth, truth), out, -iou, turn[det]))
    back = np.empty(n, dtype=np.int64)
    back[turn] = np.arange(n)
    taker, taken = greedy_match(turn[det][order], truth[order], n, len(mine))
    taker = back[taker]
    share = np.bincount(gt.image[mine[ignored]], minlength=len(gt.image_ids)) / np.maximum(join.counts, 1)
    # How much of an unmatched detection is ignored; what is not ignored at all counts fully, and so does, in the
    # public code, a weight that happens to be 0.
    weight = np.where(inside > outside, 0.0, np.where(inside < outside, 1.0, share[image]))
    empty = 0.0 if split.name == "all" or split.empty_weight == 1.0 else split.empty_weight
    weight[join.counts[image] == 0] = empty
    false = np.where(weight == 1.0, 0.0, np.where(weight == 0.0, 1.0, weight))
    false[taker] = 0.0
    true = np.zeros(n, dtype=bool)
    true[taker] = ~ignored[taken]
    positives = np.bincount(gt.video[mine[~ignored]], minlength=len(gt.video_ids))
    return ScoredMatches(true, false, video, positives)
