"""Motion IoU: how fast each annotated box moves, for any data set with tracks, and splits by motion.

Zhu et al., "Flow-Guided Feature Aggregation for Video Object Detection" (2017) introduced the slow, medium and fast
splits; the published values are the mean IoU of a box with the boxes of the same track up to ten frames away.

Shape legend
    A annotations       M images        p pairs of boxes of one track
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stdetr.evaluation.boxes import paired_iou
from stdetr.evaluation.ground_truth import GroundTruth

WINDOW = 10
# Inclusive on both sides, as in the public code: a value on a boundary belongs to both splits.
SPLITS: dict[str, tuple[float, float]] = {
    "all": (0.0, 1.0),
    "fast": (0.0, 0.7),
    "medium": (0.7, 0.9),
    "slow": (0.9, 1.0),
}


def motion_iou(gt: GroundTruth, window: int = WINDOW) -> np.ndarray:
    """A float64: mean IoU (inclusive pixels) of each box with those of its track in frames f-window .. f+window.

    The frame itself and frames where the track is absent are left out; a box with no other box of its track in the
    window has 1, as in the published ImageNet VID values.  Frames are told apart by ``frame_id``.
    """
    total, count = np.zeros(len(gt.boxes)), np.zeros(len(gt.boxes), dtype=np.int64)
    frame = gt.frame_ids[gt.image]
    order = np.lexsort((frame, gt.track))
    # A track has one box per frame, so the boxes up to ``window`` frames later are among its next ``window`` rows.
    for step in range(1, window + 1):
        first, second = order[:-step], order[step:]
        near = (gt.track[first] == gt.track[second]) & (frame[second] - frame[first] <= window)
        first, second = first[near], second[near]
        iou = paired_iou(gt.boxes[first], gt.boxes[second], grow=1.0)
        for side in (first, second):  # every box appears at most once on each side
            total[side] += iou
            count[side] += 1
    return np.divide(total, count, out=np.ones_like(total), where=count > 0)


@dataclass(frozen=True)
class Split:
    """One range of motion.

    ignored: A bool, boxes out of the range      empty_weight: weight of a false positive where nothing is annotated
    """

    name: str
    ignored: np.ndarray
    empty_weight: float


def motion_splits(gt: GroundTruth, names: tuple[str, ...]) -> list[Split]:
    """The splits of these names.

    ``empty_weight`` is the share of motion values inside the range, where an image without objects contributes one
    value of 0, as in the public code.
    """
    values = motion_iou(gt) if names != ("all",) else np.zeros(len(gt.boxes))
    empty = len(gt.image_ids) - len(np.unique(gt.image))
    splits = []
    for name in names:
        low, high = SPLITS[name]
        inside = (values >= low) & (values <= high)
        zeros = empty if low <= 0.0 <= high else 0
        splits.append(Split(name, ~inside, (inside.sum() + zeros) / max(len(values) + empty, 1)))
    return splits
