"""ImageNet VID AP50 by the devkit's rules, overall and by motion.

The rules are those of the Python ports in Flow-Guided Feature Aggregation (Zhu et al., 2017) and YOLOV (Shi et al.,
2023): inclusive pixels, a threshold that is lower for small objects, the area under the whole precision envelope, no
limit of detections.  In a motion split, ground truth outside the range is ignored; an unmatched detection then counts
by whether it lies nearer to ground truth inside or outside the range, of whatever class.

Shape legend
    n detections of one class, by descending score      A annotations       g annotations of one class
    p pairs     V videos    C classes
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .boxes import paired_iou
from .curve import ScoredMatches, mean_defined, sample_curve
from .detections import BoundDetections
from .excuses import excused, federation_note, region_note
from .ground_truth import GroundTruth
from .matching import ImageJoin, chunks, greedy_match
from .motion import Split, motion_splits
from .protocol import Inputs, MatchTable, Result

PAIRS = 1 << 20  # pairs whose overlaps are held at a time
NO_CROWD = "ImageNet VID rules know no crowd boxes, and the annotations hold {count} (iscrowd without ignore)"


def split_names(motion: bool) -> tuple[str, ...]:
    """The ranges that an evaluator reports."""
    return ("all", "fast", "medium", "slow") if motion else ("all",)


def undefined(inputs: Inputs, motion: bool) -> str:
    """Why the ImageNet VID evaluators cannot score these annotations; empty when they can."""
    gt = inputs.gt.objects()
    count = int(gt.crowd.sum())
    if count:
        return NO_CROWD.format(count=count)
    if not len(gt.boxes):
        return "the annotations have no box"
    return "motion splits need instance_id in the annotations" if motion and not gt.has_tracks else ""


class VidEvaluator:
    """``vid/AP50`` and, with ``motion``, ``vid/AP50_fast|medium|slow``; per class as well."""

    name = "vid"
    rule = "ImageNet VID devkit AP50: inclusive pixels, threshold min(0.5, wh/((w+10)(h+10))), area under the curve"

    def __init__(self, motion: bool = True) -> None:
        self.motion = motion

    def evaluate(self, inputs: Inputs) -> Result:
        return summarise(self.name, inputs, self.motion, score_classes)

    def matches(self, inputs: Inputs) -> Mapping[str, MatchTable]:
        if undefined(inputs, False):
            return {}
        splits = motion_splits(inputs.gt.objects(), ("all",))
        return {"vid/AP50": MatchTable("area", [[c[0] for c in score_classes(inputs, splits)]])}


def summarise(
    name: str,
    inputs: Inputs,
    motion: bool,
    score_classes: Callable[[Inputs, list[Split]], Iterator[list[ScoredMatches]]],
) -> Result:
    """The result of an evaluator whose ``score_classes(inputs, splits)`` yields the matches of class after class."""
    motion_defined = motion and not undefined(inputs, True)
    names = split_names(motion)
    keys = {split: "AP50" if split == "all" else f"AP50_{split}" for split in names}
    reason = undefined(inputs, False)
    if reason:
        return Result(dict.fromkeys(keys.values(), float("nan")), undefined=reason)
    gt = inputs.gt.objects()
    splits = motion_splits(gt, names if motion_defined else ("all",))
    classes = len(gt.category_ids)
    table = {split: np.full(classes, np.nan) for split in names}
    curves = []
    for c, matches in enumerate(score_classes(inputs, splits)):
        for split, found in zip(splits, matches, strict=True):
            table[split.name][c] = found.average_precision("area")
        if matches[0].positives.sum():
            curves.append(sample_curve(*matches[0].precision_recall()))
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
        {f"{name}/AP50": (np.linspace(0, 1, 101), np.mean(curves, axis=0))} if curves else {},
        details,
        undefined(inputs, True) if motion and not motion_defined else "",
        "; ".join(note for note in (region_note(inputs.gt), federation_note(inputs.gt)) if note),
    )


@dataclass(frozen=True, repr=False)
class ClassRows:
    """The detections of one class by descending score.

    image: n int32      boxes: n,4 xywh     video: n int32
    """

    image: np.ndarray
    boxes: np.ndarray
    video: np.ndarray


def class_rows(
    detections: BoundDetections, gt: GroundTruth, category: int, *, reverse: bool = False
) -> tuple[ClassRows, np.ndarray]:
    """The rows of one class and, as the second value, how early each one chooses inside its image (n, smaller first).

    Equal scores go by image in the order of the annotations, then as given; with ``reverse`` later images come first
    and inside an image the later detection chooses first, which is how MEGA's reversed sort leaves them.
    """
    rows = np.flatnonzero(detections.category == category)
    image = detections.image[rows]
    order = np.lexsort((-image if reverse else image, -detections.scores[rows]))
    rows, image = rows[order], image[order]
    turn = np.arange(len(rows))
    if reverse and len(rows):
        # Inside one image equal scores choose in reverse: renumber the runs of equal score and image backwards.
        scores = detections.scores[rows]
        fresh = np.concatenate([[True], (scores[1:] != scores[:-1]) | (image[1:] != image[:-1])])
        start = np.flatnonzero(fresh)
        stop = np.append(start[1:], len(rows))
        run = np.cumsum(fresh) - 1
        turn = start[run] + stop[run] - 1 - turn
    return ClassRows(image, detections.boxes[rows], gt.image_video[image].astype(np.int32)), turn


def score_classes(inputs: Inputs, splits: list[Split]) -> Iterator[list[ScoredMatches]]:
    """For each class in turn, its matches in each split (of ``inputs.gt.objects()``)."""
    gt = inputs.gt.objects()
    width, height = gt.boxes[:, 2] + 1, gt.boxes[:, 3] + 1
    threshold = np.minimum(0.5, width * height / ((width + 10) * (height + 10)))
    join = ImageJoin(gt.image, len(gt.image_ids))
    nothing = join.counts == 0
    shares = [_ignored_share(gt, split, join.counts) for split in splits]
    for category in range(len(gt.category_ids)):
        rows, _ = class_rows(inputs.detections, gt, category)
        n = len(rows.image)
        inside, outside = np.full((len(splits), n), -1.0), np.full((len(splits), n), -1.0)
        det, truth, iou = [], [], []
        for start, stop in chunks(join.counts[rows.image], PAIRS):
            d, g = join.pairs(rows.image[start:stop])
            overlap = paired_iou(rows.boxes[start:stop].astype(np.float64)[d], gt.boxes[g], grow=1.0)
            for s, split in enumerate(splits):
                best_overlaps(overlap, d, split.ignored[g], inside[s, start:stop], outside[s, start:stop])
            near = (gt.category[g] == category) & (overlap >= threshold[g])
            det.append(d[near] + start)
            truth.append(g[near])
            iou.append(overlap[near])
        pairs = [np.concatenate([*part, np.zeros(0, kind)]) for part, kind in ((det, int), (truth, int), (iou, float))]
        order = np.lexsort((pairs[1], -pairs[2], pairs[0]))
        taker, taken = greedy_match(pairs[0][order], pairs[1][order], n, len(gt.boxes))
        nought = excused(inputs.gt, category, rows.image, rows.boxes)
        results = []
        for s, split in enumerate(splits):
            weight = np.where(inside[s] > outside[s], 1.0, np.where(inside[s] < outside[s], 0.0, shares[s][rows.image]))
            weight[nothing[rows.image]] = split.empty_weight if split.name != "all" else 1.0
            weight[taker] = 0.0
            weight[nought] = 0.0
            true = np.zeros(n, dtype=bool)
            true[taker] = ~split.ignored[taken]
            mine = (gt.category == category) & ~split.ignored
            positives = np.bincount(gt.video[mine], minlength=len(gt.video_ids))
            results.append(ScoredMatches(true, weight, rows.video, positives))
        yield results


def _ignored_share(gt: GroundTruth, split: Split, counts: np.ndarray) -> np.ndarray:
    """M float64: the share of the ground truth of each image that lies outside the range."""
    ignored = np.bincount(gt.image[split.ignored], minlength=len(gt.image_ids))
    return ignored / np.maximum(counts, 1)


def best_overlaps(
    overlap: np.ndarray, det: np.ndarray, ignored: np.ndarray, inside: np.ndarray, outside: np.ndarray
) -> None:
    """Write the largest overlap of each detection with ground truth inside and outside the range; -1 for none."""
    for best, mask in ((inside, ~ignored), (outside, ignored)):
        d, value = det[mask], overlap[mask]
        if len(d):
            first = np.flatnonzero(np.concatenate([[True], d[1:] != d[:-1]]))  # pairs are grouped by detection
            best[d[first]] = np.maximum.reduceat(value, first)
