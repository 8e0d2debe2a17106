"""Which of a clip's tubes, and which of their frames, count as a track.

Shape legend
    N tubes of a clip      T frames
"""

from __future__ import annotations

from dataclasses import replace

import torch

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


def visible_frames(tubes: Tubes, *, score_threshold: float, presence: float) -> Tubes:
    """Mark as present only the frames whose score reaches ``score_threshold`` and the share ``presence`` of the tube's
    score; tubes without such a frame are dropped."""
    there = (tubes.scores >= score_threshold) & (tubes.scores >= presence * tubes.tube_scores[:, None]) & tubes.present
    return replace(tubes, present=there).select(there.any(1))
