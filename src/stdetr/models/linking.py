"""Linking proposals through time: from boxes found frame by frame to tubes.

Shape legend
    B clips, T frames, M candidates of a frame, P seeds, C feature width, N classes

A seed is one candidate of one frame.  From there a tube is followed outwards, frame by frame, both ways: the place
where its velocity carries it is compared with the candidates there, by distance, size, class and feature, and the best
one is taken or, if "not seen" is likelier, none.  Frames without one get the local straight line through the others.
No gradient flows and T is arbitrary.  The scheme is our own; hard linking of detections through time goes back to
Seq-NMS (Han et al. 2016), and keeping one query an object before the decoder to DDQ (Zhang et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

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
    overlap: a candidate with more IoU than this with one that a better tube has taken is taken as well
    appearance: weight of the cosine between token features
    reach: standard deviation of the search, in object sizes: once the velocity is known, before, and growth a frame
    floor: logit of "not seen on this frame", against a candidate of score 1 exactly where it is expected
    """

    def __init__(
        self,
        *,
        seeds: int = 64,
        overlap: float = 0.6,
        appearance: float = 4.0,
        reach: tuple[float, float, float] = (0.2, 0.3, 0.08),
        floor: float = -3.0,
    ) -> None:
        self.seeds, self.overlap = seeds, overlap
        self.appearance, self.floor = appearance, floor
        self.reach = (float(reach[0]), float(reach[1]), float(reach[2]))

    @torch.no_grad()
    def __call__(self, found: Candidates, tubes: int) -> LinkedTubes:
        return self.select(self.link(found), found, tubes)

    def select(self, linked: LinkedTubes, found: Candidates, tubes: int) -> LinkedTubes:
        """The best ``tubes`` tubes, each explained by candidates that no better one has taken.

        Greedy: the tube with most score left comes next and takes its candidates and whatever overlaps them; a tube
        that only followed candidates of others has nothing left and comes last, with a score of about zero.
        """
        scores = found.scores.float() * found.frame_mask[..., None]
        corners = to_xyxy(found.boxes.float())
        close = paired_iou(corners[:, :, :, None], corners[:, :, None])[0] > self.overlap  # B,T,M,M
        free = torch.ones_like(scores)
        length = found.frame_mask.sum(-1, keepdim=True).clamp(min=1)
        value = linked.assignment * scores[:, None]
        open_tubes = torch.zeros_like(linked.scores)
        index, kept_scores, kept = [], [], []
        for _ in range(min(tubes, value.shape[1])):
            left = (value * free[:, None]).sum(-1)  # B,P,T
            rank = 0.5 * left.amax(-1) + 0.5 * left.sum(-1) / length + open_tubes
            best = rank.argmax(1, keepdim=True)  # B,1
            open_tubes.scatter_(1, best, float("-inf"))
            mine = linked.assignment.gather(1, best[..., None, None].expand(-1, -1, *value.shape[2:]))[:, 0] * free
            index.append(best)
            kept_scores.append(rank.gather(1, best))
            kept.append(mine)
            covered = ((mine > 0.5).to(mine.dtype)[:, :, None] @ close.to(mine.dtype))[:, :, 0]
            free = free * (covered == 0)
        keep, assignment = torch.cat(index, 1), torch.stack(kept, 1)
        boxes = linked.boxes.gather(1, keep[..., None, None].expand(-1, -1, *linked.boxes.shape[2:]))
        visible = assignment.sum(-1)
        if boxes.shape[2] > 1:
            before = linked.visible.gather(1, keep[..., None].expand(-1, -1, boxes.shape[2]))
            lost = (before - visible).clamp(0, 1)[..., None]  # frames whose candidate belongs to a better tube
            path = torch.cat((boxes[..., :2], boxes[..., 2:].clamp(min=1e-4).log()), -1)
            strength = (assignment * scores[:, None]).sum(-1)
            line = _local_line(path, strength, found.frame_index.float())
            path = (1 - lost) * path + lost * line
            boxes = torch.cat((path[..., :2].clamp(0, 1), path[..., 2:].exp().clamp(max=1)), -1)
        return LinkedTubes(boxes, torch.cat(kept_scores, 1), assignment, visible)

    def link(self, found: Candidates) -> LinkedTubes:
        """The tubes of all seeds, in the order of the seeds' own scores."""
        frames, count = found.scores.shape[1:]
        scores = found.scores.float() * found.frame_mask[..., None]
        seeds = min(self.seeds, frames * count)
        own_score, best = scores.flatten(1).topk(seeds, dim=1)  # B,P
        own_frame, own_place = best // count, best % count
        boxes = found.boxes.float()
        if frames == 1:
            one_hot = functional.one_hot(best, count).to(scores.dtype)[:, :, None]
            seed_box = _take(boxes.flatten(1, 2), best)
            return LinkedTubes(seed_box[:, :, None], own_score, one_hot, torch.ones_like(own_score)[..., None])

        state = torch.cat((boxes[..., :2], boxes[..., 2:].clamp(min=1e-4).log()), -1)  # B,T,M: x, y, log w, log h
        start = _take(state.flatten(1, 2), best)
        like = self._likeness(found, scores, best)
        index = found.frame_index.float()
        own = functional.one_hot(own_frame, frames).bool()  # B,P,T
        place = torch.where(own, own_place[..., None], 0)  # B,P,T: which candidate
        visible = own.float()
        velocity = torch.zeros_like(start[..., :2])
        known = torch.zeros_like(own_score, dtype=torch.bool)
        for direction in (1, -1):
            here, speed, sure, since = start, velocity, known, torch.zeros_like(own_score)
            for step in range(1, frames):
                target = own_frame + direction * step
                inside = (target >= 0) & (target < frames)
                target = target.clamp(0, frames - 1)
                inside = inside & found.frame_mask.gather(1, target)
                gap = index.gather(1, target) - index.gather(1, (target - direction).clamp(0, frames - 1))
                here = torch.cat((here[..., :2] + speed * gap[..., None], here[..., 2:]), -1)
                since = since + gap.abs()
                flat = target[..., None] * count + torch.arange(count, device=target.device)
                there = state.flatten(1, 2).gather(1, flat.flatten(1)[..., None].expand(-1, -1, 4))
                there = there.view(*flat.shape, 4)  # B,P,M,4
                size = here[..., 2:].mean(-1).exp()
                reach = torch.where(sure, self.reach[0], self.reach[1]) + self.reach[2] * since
                distance = (there[..., :2] - here[..., None, :2]).norm(dim=-1) / (size * reach)[..., None]
                scale = (there[..., 2:] - here[..., None, 2:]).square().sum(-1)
                affinity = like.flatten(2).gather(2, flat) - 0.5 * distance.square() - 2.0 * scale
                top, choice = affinity.max(-1)
                seen = torch.sigmoid(top - self.floor) * inside
                chosen = there.gather(2, choice[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
                error = (chosen - here) * seen[..., None]
                gain = (
                    torch.where(sure, 0.5, 1.0)[..., None] / torch.where(gap == 0, 1.0, since * gap.sign())[..., None]
                )
                speed = speed + gain * error[..., :2]
                here = here + error
                taken = seen > 0.5
                sure, since = sure | taken, torch.where(taken, 0.0, since)
                write = functional.one_hot(target, frames).bool() & inside[..., None]
                place = torch.where(write, choice[..., None], place)
                visible = torch.where(write, seen[..., None], visible)
                if step == 1 and direction == 1:
                    # Looking back, the object came from where the first step forward points away from.
                    velocity, known = speed, sure
        assignment = functional.one_hot(place, count).to(scores.dtype) * visible[..., None]
        where = state[:, None].expand(-1, seeds, -1, -1, -1).gather(3, place[..., None, None].expand(-1, -1, -1, 1, 4))
        where = where[..., 0, :]
        strength = torch.einsum("bptm,btm->bpt", assignment, scores)
        path = visible[..., None] * where + (1 - visible[..., None]) * _local_line(where, strength, index)
        path_boxes = torch.cat((path[..., :2].clamp(0, 1), path[..., 2:].exp().clamp(max=1)), -1)
        mean = strength.sum(-1) / found.frame_mask.sum(-1, keepdim=True).clamp(min=1)
        return LinkedTubes(path_boxes, 0.5 * strength.amax(-1) + 0.5 * mean, assignment, visible)

    def _likeness(self, found: Candidates, scores: Tensor, best: Tensor) -> Tensor:
        """B,P,T,M: how much a candidate looks like the seed, wherever it is; 0 for a sure twin of score 1."""
        feature = functional.normalize(found.features.float(), dim=-1)
        share = (found.classes.float() / found.classes.float().sum(-1, keepdim=True).clamp(min=1e-6)).sqrt()
        seed_feature, seed_share = _take(feature.flatten(1, 2), best), _take(share.flatten(1, 2), best)
        like = self.appearance * (torch.einsum("bpc,btmc->bptm", seed_feature, feature) - 1)
        like = like + (torch.einsum("bpn,btmn->bptm", seed_share, share) + 0.02).log()
        return like + scores.clamp(min=1e-4).log()[:, None]


def distinct_boxes(boxes_NM4: Tensor, overlap: float) -> Tensor:
    """N,M indices that put boxes (cxcywh, best first) that overlap a better, kept one by more than ``overlap`` last."""
    corners = to_xyxy(boxes_NM4)
    return _distinct_first(paired_iou(corners[:, :, None], corners[:, None])[0] > overlap)


def _distinct_first(close_NPP: Tensor) -> Tensor:
    """N,P order of P things, best first, of which some are close to others: greedily kept ones, then the rest."""
    count = close_NPP.shape[1]
    close = close_NPP & torch.ones(count, count, dtype=torch.bool, device=close_NPP.device).triu(1)
    kept = torch.ones(close.shape[:2], dtype=torch.bool, device=close.device)
    for i in range(count):
        kept = kept & ~(close[:, i] & kept[:, i : i + 1])
    # Duplicates after the others, and both in the order they came in; ONNX has no stable sort, but these keys differ.
    return ((~kept) * count + torch.arange(count, device=kept.device)).argsort(dim=1)


def _take(x_BPk: Tensor, index_BP: Tensor) -> Tensor:
    return x_BPk.gather(1, index_BP[..., None].expand(-1, -1, x_BPk.shape[-1]))


def _local_line(where_BPTk: Tensor, weight_BPT: Tensor, index_BT: Tensor, width: float = 3.0) -> Tensor:
    """B,P,T,k: at each frame the weighted straight line through the others, near frames (Gaussian, ``width`` frames of
    the source) first; the ridge holds the slope near zero where few frames carry weight."""
    t = index_BT[:, None, :] - index_BT[:, :, None]  # B,T,T: from the row's frame to the column's
    w = (weight_BPT[:, :, None] + 1e-6) * (torch.exp(-0.5 * (t / width).square()) + 1e-6)[:, None]  # B,P,T,T
    t = t[:, None].expand_as(w)
    total = w.sum(-1, keepdim=True)
    mean_t = (w * t).sum(-1, keepdim=True) / total
    mean_x = w @ where_BPTk / total
    centred = w * (t - mean_t)
    slope = (centred @ where_BPTk) / ((centred * (t - mean_t)).sum(-1, keepdim=True) + 0.05 * total)
    return mean_x - slope * mean_t
