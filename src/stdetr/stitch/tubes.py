"""Which of a clip's tubes, and which of their frames, count as a track.

Shape legend
    N tubes of a clip      T frames
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from stdetr.structures import Tubes


def best_class_only(tubes: Tubes) -> Tubes:
    """Each sequence of boxes once, under its surest class, surest tube first.

    DETR's evaluation reports a query under several classes, which average precision rewards; as a track it is one
    object.  Entries of one query have equal boxes, bit for bit.
    """
    if not len(tubes):
        return tubes
    _, group = torch.unique(tubes.boxes.flatten(1), dim=0, return_inverse=True)
    order = tubes.tube_scores.argsort(descending=True, stable=True)
    # The first of each group in the order of scores: position of its first appearance, by a stable sort of the groups.
    ranked = group[order]
    by_group = ranked.argsort(stable=True)
    first = torch.ones(len(tubes), dtype=torch.bool)
    first[1:] = ranked[by_group][1:] != ranked[by_group][:-1]
    return tubes.select(order[by_group[first].sort().values])


def visible_frames(tubes: Tubes, *, score_threshold: float) -> Tubes:
    """Keep as present only the frames whose score reaches ``score_threshold``; tubes without one are dropped."""
    there = (tubes.scores >= score_threshold) & tubes.present
    return replace(tubes, present=there).select(there.any(1))


def iou_per_frame(first: Tensor, second: Tensor) -> Tensor:
    """M,N,T IoU of M,T,4 and N,T,4 xyxy boxes, frame by frame."""
    first, second = first[:, None], second[None]
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    inter = (high - low).clamp_min(0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp_min(0).prod(-1) for box in (first, second)]
    return inter / (areas[0] + areas[1] - inter).clamp_min(1e-6)


def duplicates(tubes: Tubes, *, iou: float, iou_other_class: float) -> Tensor:
    """N bool, by greedy non-maximum suppression of whole tubes, surest first (sum of a tube's scores over its frames).

    A tube is a duplicate when a surer one covers it: the mean, over the weaker one's frames, of the IoU with the other
    (0 on a frame that the other does not report) exceeds ``iou``, or ``iou_other_class`` where the classes differ.
    Frames count by the weaker one's scores.  1 finds none.
    """
    weight = tubes.scores.clamp_min(1e-6) * tubes.present
    covered = iou_per_frame(tubes.boxes, tubes.boxes) * tubes.present[:, None]  # by N (first), of N (second)
    share = (covered * weight[None]).sum(-1) / weight.sum(-1).clamp_min(1e-12)
    same = tubes.labels[:, None] == tubes.labels[None]
    covers = share > torch.where(same, iou, iou_other_class)
    kept: list[int] = []
    for row in weight.sum(1).argsort(descending=True, stable=True).tolist():
        if not covers[kept, row].any():
            kept.append(row)
    found = torch.ones(len(tubes), dtype=torch.bool)
    found[kept] = False
    return found
