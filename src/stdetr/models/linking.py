"""Linking proposals through time: from boxes found frame by frame to tubes.

Shape legend
    B clips, T frames, M candidates of a frame, P seeds, C feature width, N classes

A seed is one candidate of one frame.  In every other frame it is softly assigned to the candidates there, by feature,
class, size and distance; a confidence-weighted straight line through time, refitted once with outliers weighed down,
carries it over frames where nothing can be seen.  No gradient flows and T is arbitrary.  The scheme is our own; hard
linking of detections through time goes back to Seq-NMS (Han et al. 2016), and keeping one query an object before the
decoder to DDQ (Zhang et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stdetr.models.boxes import paired_iou, to_xyxy


@dataclass(frozen=True)
class Candidates:
    """The best tokens of each frame.  boxes B,T,M,4 cxcywh in [0,1]; scores B,T,M in [0,1]; classes B,T,M,N in [0,1];
    features B,T,M,C; frame_mask B,T bool; frame_index B,T source frame numbers."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    features: Tensor
    frame_mask: Tensor
    frame_index: Tensor


@dataclass(frozen=True)
class LinkedTubes:
    """boxes B,P,T,4 cxcywh in [0,1]; scores B,P; assignment B,P,T,M (sums to ``visible``); visible B,P,T in [0,1]: how
    surely the frame shows the object."""

    boxes: Tensor
    scores: Tensor
    assignment: Tensor
    visible: Tensor


class TubeLinker:
    """Links candidates into tubes, best first, without near duplicates.

    seeds: P, how many candidates of the clip start a tube
    tubes: how many are returned (P if fewer)
    overlap: mean IoU over the clip above which the lower tube is a duplicate
    appearance: weight of the cosine between token features
    spread: standard deviation of the search, in object sizes, at dt = 0 and its growth a frame
    floor: logit of "not seen in this frame"
    """

    def __init__(
        self,
        *,
        seeds: int = 64,
        overlap: float = 0.65,
        appearance: float = 3.0,
        spread: tuple[float, float] = (0.4, 0.3),
        floor: float = -3.0,
    ) -> None:
        self.seeds, self.overlap, self.appearance, self.floor = seeds, overlap, appearance, floor
        self.spread = (float(spread[0]), float(spread[1]))

    @torch.no_grad()
    def __call__(self, found: Candidates, tubes: int) -> LinkedTubes:
        linked = self.link(found)
        keep = self.distinct(linked, found.frame_mask, tubes)

        def pick(x: Tensor) -> Tensor:
            return x.gather(1, keep.view(*keep.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:]))

        return LinkedTubes(pick(linked.boxes), pick(linked.scores), pick(linked.assignment), pick(linked.visible))

    def link(self, found: Candidates) -> LinkedTubes:
        """All seeds, sorted by nothing but their own score."""
        clips, frames, count = found.scores.shape
        scores = found.scores.float() * found.frame_mask[..., None]
        seeds = min(self.seeds, frames * count)
        best = scores.flatten(1).topk(seeds, dim=1).indices  # B,P
        own_frame = best // count
        own_score = scores.flatten(1).gather(1, best)
        boxes = found.boxes.float()
        seed_box = _take(boxes.flatten(1, 2), best)
        if frames == 1:
            one_hot = torch.nn.functional.one_hot(best, count).to(scores.dtype)[:, :, None]
            return LinkedTubes(seed_box[:, :, None], own_score, one_hot, torch.ones_like(own_score)[..., None])

        feature = torch.nn.functional.normalize(found.features.float(), dim=-1)
        share = (found.classes.float() / found.classes.float().sum(-1, keepdim=True).clamp(min=1e-6)).sqrt()
        seed_feature, seed_share = _take(feature.flatten(1, 2), best), _take(share.flatten(1, 2), best)
        like = self.appearance * torch.einsum("bpc,btmc->bptm", seed_feature, feature)
        like = like + (torch.einsum("bpn,btmn->bptm", seed_share, share) + 0.02).log()
        like = like + scores.clamp(min=1e-4).log()[:, None]
        index = found.frame_index.float()
        dt = index[:, None, :] - index.gather(1, own_frame)[..., None]  # B,P,T
        own = torch.nn.functional.one_hot(own_frame, frames).bool()  # B,P,T

        observed = torch.cat((boxes[..., :2], boxes[..., 2:].clamp(min=1e-4).log()), -1)  # x, y, log w, log h
        start = torch.cat((seed_box[..., :2], seed_box[..., 2:].clamp(min=1e-4).log()), -1)
        predicted = start[:, :, None].expand(-1, -1, frames, -1)
        size = (seed_box[..., 2] * seed_box[..., 3]).clamp(min=1e-6).sqrt()[..., None, None]
        seed_one_hot = torch.nn.functional.one_hot(best % count, count).to(like.dtype)[:, :, None]
        assignment = visible = where = None
        for narrowing in (1.0, 0.5):
            reach = (self.spread[0] + self.spread[1] * dt.abs())[..., None] * narrowing
            gap = (observed[:, None, ..., :2] - predicted[..., None, :2]).norm(dim=-1) / size
            scale = (observed[:, None, ..., 2:] - predicted[..., None, 2:]).square().sum(-1)
            affinity = like - 0.5 * (gap / reach).square() - 2.0 * scale
            affinity = torch.cat((affinity, torch.full_like(affinity[..., :1], self.floor)), -1).softmax(-1)
            assignment = torch.where(own[..., None], seed_one_hot, affinity[..., :-1])
            assignment = assignment * found.frame_mask[:, None, :, None]
            visible = assignment.sum(-1)
            where = torch.einsum("bptm,btmk->bptk", assignment, observed) / visible.clamp(min=1e-6)[..., None]
            strength = torch.einsum("bptm,btm->bpt", assignment, scores)
            line = _fit(where, strength, dt)
            off = ((where - line)[..., :2].norm(dim=-1) / size[..., 0] / 0.3).square()
            predicted = _fit(where, strength / (1 + off), dt)
        assert assignment is not None and visible is not None and where is not None
        path = visible[..., None] * where + (1 - visible[..., None]) * predicted
        boxes_out = torch.cat((path[..., :2].clamp(0, 1), path[..., 2:].exp().clamp(max=1)), -1)
        strength = torch.einsum("bptm,btm->bpt", assignment, scores)
        mean = strength.sum(-1) / found.frame_mask.sum(-1, keepdim=True).clamp(min=1)
        return LinkedTubes(boxes_out, 0.5 * strength.amax(-1) + 0.5 * mean, assignment, visible)

    def distinct(self, linked: LinkedTubes, frame_mask: Tensor, tubes: int) -> Tensor:
        """B,Q indices of the best tubes; near duplicates come only after everything else."""
        order = linked.scores.argsort(dim=1, descending=True, stable=True)
        corners = to_xyxy(_take(linked.boxes.flatten(2), order).view_as(linked.boxes))
        iou = paired_iou(corners[:, :, None], corners[:, None])[0] * frame_mask[:, None, None]
        close = iou.sum(-1) / frame_mask.sum(-1).clamp(min=1)[:, None, None] > self.overlap
        seeds = order.shape[1]
        close = close & torch.ones(seeds, seeds, dtype=torch.bool, device=order.device).triu(1)
        kept = torch.ones_like(order, dtype=torch.bool)
        for i in range(seeds):  # greedy, best first
            kept = kept & ~(close[:, i] & kept[:, i : i + 1])
        # A stable sort on "is a duplicate" keeps the order by score inside both groups.
        rank = (~kept).to(torch.int8).argsort(dim=1, stable=True)
        return order.gather(1, rank)[:, : min(tubes, seeds)]


def _take(x_BPk: Tensor, index_BP: Tensor) -> Tensor:
    return x_BPk.gather(1, index_BP[..., None].expand(-1, -1, x_BPk.shape[-1]))


def _fit(where_BPTk: Tensor, weight_BPT: Tensor, dt_BPT: Tensor, ridge: float = 0.5) -> Tensor:
    """Weighted straight line through time; the ridge holds the slope near zero where few frames carry weight."""
    w, t = weight_BPT[..., None] + 1e-6, dt_BPT[..., None]
    total = w.sum(2, keepdim=True)
    mean_t = (w * t).sum(2, keepdim=True) / total
    mean_x = (w * where_BPTk).sum(2, keepdim=True) / total
    spread = (w * (t - mean_t).square()).sum(2, keepdim=True)
    slope = (w * (t - mean_t) * (where_BPTk - mean_x)).sum(2, keepdim=True) / (spread + ridge * total * 0.1)
    return mean_x + slope * (t - mean_t)
