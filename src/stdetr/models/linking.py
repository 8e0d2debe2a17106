"""Linking proposals through time: from boxes on single frames to tubes.

Shape legend
    B clips, T frames, M candidates of a frame, P seeds or tubes, C feature width, N classes

A seed is one candidate of one frame.  From there a tube is followed frame by frame in both directions: its velocity
predicts the position, which is compared with the frame's candidates by distance, size, class and feature.  The best
candidate is taken or, if "not seen" is likelier, none.  Frames without a candidate get their box from a local straight
line fitted through the other frames.  A causal tube begins on the first frame that proposes it and is followed forwards
only; where it gets no candidate, it continues with its velocity.
No gradient flows and T is arbitrary.  The scheme is our own; hard linking of detections through time goes back to
Seq-NMS (Han et al. 2016), and keeping one query per object before the decoder to DDQ (Zhang et al. 2023).
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
    """boxes B,P,T,4 cxcywh in [0,1]; scores B,P; assignment B,P,T,M (sums to ``visible``); visible B,P,T in [0,1]:
    confidence that the object is seen; exists B,P,T bool: the tube has begun, None = all tubes exist on all frames."""

    boxes: Tensor
    scores: Tensor
    assignment: Tensor
    visible: Tensor
    exists: Tensor | None = None


@dataclass(frozen=True)
class _Motion:
    """Position and motion of tubes on a frame.

    here: B,P,4 (x, y, log w, log h); speed: B,P,2 per source frame; sure: B,P bool, the speed is known;
    since: B,P source frames since the tube was seen
    """

    here: Tensor
    speed: Tensor
    sure: Tensor
    since: Tensor

    def moved(self, gap_BP: Tensor) -> _Motion:
        """The prediction ``gap`` source frames later (negative: earlier)."""
        centre = self.here[..., :2] + self.speed * gap_BP[..., None]
        return _Motion(torch.cat((centre, self.here[..., 2:]), -1), self.speed, self.sure, self.since + gap_BP.abs())

    def corrected(self, chosen_BP4: Tensor, seen_BP: Tensor, gap_BP: Tensor) -> _Motion:
        """Corrected by the observation ``chosen``, with confidence ``seen``, after a step of ``gap`` source frames."""
        error = (chosen_BP4 - self.here) * seen_BP[..., None]
        gain = (1 - 0.5 * self.sure) / (self.since * gap_BP.sign()).masked_fill(gap_BP == 0, 1.0)
        speed = self.speed + gain[..., None] * error[..., :2]
        taken = seen_BP > 0.5
        return _Motion(self.here + error, speed, self.sure | taken, self.since.masked_fill(taken, 0.0))

    def joined(self, other: _Motion) -> _Motion:
        """The tubes of both, concatenated along P."""
        return _Motion(*(torch.cat((getattr(self, name), getattr(other, name)), 1) for name in _Motion.__annotations__))


class TubeLinker:
    """Links candidates into tubes, best first, without near duplicates.

    seeds: P, number of candidates of the clip that start a tube (not used by ``follow``)
    overlap: a tube that takes a candidate also takes all candidates whose IoU with it exceeds this value
    appearance: weight of the cosine similarity of token features
    reach: standard deviation of the search, in object sizes: with known velocity, without, and growth per frame
    floor: logit of "not seen on this frame", relative to a candidate of score 1 exactly at the predicted position
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
    def __call__(self, candidates: Candidates, tubes: int) -> LinkedTubes:
        return self.select(self.link(candidates), candidates, tubes)

    def select(self, linked: LinkedTubes, candidates: Candidates, tubes: int) -> LinkedTubes:
        """The best ``tubes`` tubes; each keeps only candidates that no better tube has taken.

        Greedy: the tube with the highest remaining score comes next and takes its candidates and all that overlap them;
        a tube that only followed candidates of others has nothing left and comes last, with a score near zero.

        Remaining scores only decrease.  A tube's rank and share are therefore final as soon as no undecided tube ahead
        of it shares its candidates; each iteration of the loop settles all tubes for which that holds.
        """
        scores = candidates.scores.float() * candidates.frame_mask[..., None]
        close = self._close(candidates.boxes)
        length = candidates.frame_mask.sum(-1, keepdim=True).clamp(min=1)
        held, place = (x.transpose(1, 2).contiguous() for x in linked.assignment.max(-1))  # B,T,P
        clips, frames, count = place.shape
        tubes = min(tubes, count)
        value = held * scores.gather(2, place)
        both = place[:, None].expand(-1, 2, -1, -1)  # for tubes that take a candidate, and for all that hold it
        holds = torch.stack((held > 0.5, held > 0), 1)
        number = torch.arange(count, device=place.device)
        last, never = number.new_tensor(count), torch.full((clips, 2, *scores.shape[1:]), count, device=place.device)
        nothing = torch.zeros_like(scores)
        taken, covers = nothing, close.flatten(0, 1).to(scores.dtype)
        first = number[:, None] < number
        settled, rank = torch.zeros_like(linked.scores, dtype=torch.bool), torch.zeros_like(linked.scores)
        free = share = torch.ones_like(place, dtype=torch.bool)
        turn = number.expand(clips, -1)
        for _ in range(tubes):
            free = (taken == 0).gather(2, place)
            left = value * free
            total = left.transpose(1, 2).contiguous().sum(-1)
            rank = torch.where(settled, rank, 0.5 * left.amax(1) + 0.5 * total / length)
            turn = _before(rank, first).sum(1)
            queue = turn[:, None, None]
            free = free & ~settled[:, None]
            share = (share & settled[:, None]) | free  # ONNX cannot choose between booleans
            active = holds & free[:, None]  # B,2,T,P
            earliest = never.scatter_reduce(3, both, torch.where(active, queue, last), "amin")
            earliest = torch.where(close[:, None], earliest[..., None], last).amin(3).gather(3, both)
            # A tube that takes a candidate waits for those that hold it, and vice versa.
            waits = (active.flip(1) & (earliest < queue)).flatten(1, 2).any(1)
            ready = ~(waits | settled)
            taking = (active[:, 0] & ready[:, None]).to(scores.dtype)
            taking = nothing.scatter_reduce(2, place, taking, "amax").flatten(0, 1)[:, None]
            taken = taken + torch.bmm(taking, covers).view_as(taken)
            settled = settled | ready
            if not torch.compiler.is_compiling() and bool((settled | (turn >= tubes)).all()):
                break
        keep = torch.empty_like(turn).scatter(1, turn, number.expand(clips, -1))[:, :tubes]
        kept = keep[..., None].expand(-1, -1, frames)
        share = share.transpose(1, 2).gather(1, kept)
        assignment = linked.assignment.gather(1, kept[..., None].expand(-1, -1, -1, scores.shape[2])) * share[..., None]
        boxes = linked.boxes.gather(1, kept[..., None].expand(-1, -1, -1, 4))
        visible = assignment.sum(-1)
        if frames > 1:
            lost = (linked.visible.gather(1, kept) - visible).clamp(0, 1)[..., None]  # taken by a better tube
            path = torch.cat((boxes[..., :2], boxes[..., 2:].clamp(min=1e-4).log()), -1)
            strength = (assignment * scores[:, None]).sum(-1)
            line = _local_line(path, strength, candidates.frame_index.float())
            boxes = _boxes((1 - lost) * path + lost * line)
        return LinkedTubes(boxes, rank.gather(1, keep), assignment, visible)

    def link(self, candidates: Candidates) -> LinkedTubes:
        """The tubes of all seeds, in descending order of the seeds' scores."""
        clips, frames, count = candidates.scores.shape
        scores = candidates.scores.float() * candidates.frame_mask[..., None]
        seeds = min(self.seeds, frames * count)
        seed_score, best = scores.flatten(1).topk(seeds, dim=1)  # B,P
        seed_frame, seed_place = best // count, best % count
        if frames == 1:
            one_hot = functional.one_hot(best, count).to(scores.dtype)[:, :, None]
            seed_box = _take(candidates.boxes.float().flatten(1, 2), best)
            return LinkedTubes(seed_box[:, :, None], seed_score, one_hot, torch.ones_like(seed_score)[..., None])

        state = _state(candidates.boxes)  # B,T,M,4
        start = _take(state.flatten(1, 2), best)
        feature, share = _looks(candidates)
        looks = _take(feature.flatten(1, 2), best), _take(share.flatten(1, 2), best)
        like = self._likeness(*looks, feature.flatten(1, 2), share.flatten(1, 2), scores.flatten(1))
        like = like.unflatten(2, (frames, count))
        index = candidates.frame_index.float()
        clip = torch.arange(clips, device=best.device)[:, None]
        tube = torch.arange(seeds, device=best.device).repeat(2)

        def look(motion: _Motion, frame: Tensor, direction: Tensor) -> tuple[_Motion, tuple[Tensor, Tensor, Tensor]]:
            """The motion after observing ``frame`` (B,P); the frame, the candidate and the confidence."""
            inside = (frame >= 0) & (frame < frames)
            there = frame.clamp(0, frames - 1)
            inside = inside & candidates.frame_mask[clip, there]
            gap = index[clip, there] - index[clip, (there - direction).clamp(0, frames - 1)]
            motion = motion.moved(gap)
            at = state[clip, there]  # B,P,M,4
            choice, seen = self._look(motion, at, like[clip, tube[: frame.shape[1]], there], inside, seeds)
            chosen = at.gather(2, choice[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
            return motion.corrected(chosen, seen, gap), (torch.where(inside, there, frames), choice, seen)

        still = torch.zeros_like(start[..., :2])
        unknown = torch.zeros_like(seed_score, dtype=torch.bool)
        ahead, first = look(
            _Motion(start, still, unknown, torch.zeros_like(seed_score)), seed_frame + 1, seed_frame.new_ones(1)
        )
        # Backwards, the velocity of the first step forward applies too.  Both directions are followed together.
        both = ahead.joined(_Motion(start, ahead.speed, ahead.sure, torch.zeros_like(seed_score)))
        direction = torch.ones_like(seed_frame[:1])
        direction = torch.cat((direction, -direction), 1)
        frame = torch.cat((seed_frame + 1, seed_frame), 1)
        looked = [(seed_frame, seed_place, torch.ones_like(seed_score)), first]
        for _ in range(1, frames):
            frame = frame + direction
            both, (at, choice, seen) = look(both, frame, direction)
            looked += zip(at.split(seeds, 1), choice.split(seeds, 1), seen.split(seeds, 1), strict=True)
        where, choice, seen = (torch.stack(part, -1) for part in zip(*looked, strict=True))
        # Steps beyond the clip are written to an extra column that is cut off.
        place = choice.new_zeros(clips, seeds, frames + 1).scatter(2, where, choice)[..., :frames]
        visible = seen.new_zeros(clips, seeds, frames + 1).scatter(2, where, seen)[..., :frames]
        assignment = functional.one_hot(place, count).to(scores.dtype) * visible[..., None]
        at = state[clip[..., None], torch.arange(frames, device=best.device), place]
        strength = torch.einsum("bptm,btm->bpt", assignment, scores)
        boxes = _boxes(visible[..., None] * at + (1 - visible[..., None]) * _local_line(at, strength, index))
        mean = strength.sum(-1) / candidates.frame_mask.sum(-1, keepdim=True).clamp(min=1)
        return LinkedTubes(boxes, 0.5 * strength.amax(-1) + 0.5 * mean, assignment, visible)

    @torch.no_grad()
    def follow(self, candidates: Candidates, tubes: int, births: int) -> LinkedTubes:
        """Causal tubes: at most ``tubes`` begin on the first frame and ``births`` on each further one.

        P is the total over all frames, in order, so that further frames only append tubes.  A tube begins at each
        candidate that no older tube covers, the best first.  Of tubes that compete for a candidate, the one with the
        highest score so far gets it.
        """
        clips, frames, count = candidates.scores.shape
        scores = candidates.scores.float() * candidates.frame_mask[..., None]
        state, close, index = _state(candidates.boxes), self._close(candidates.boxes), candidates.frame_index.float()
        feature, share = _looks(candidates)
        empty = scores[:, 0, :0]
        motion = _Motion(state[:, 0, :0], state[:, 0, :0, :2], empty.bool(), empty)
        looks, best, total = (feature[:, 0, :0], share[:, 0, :0]), empty, empty
        exists = empty.bool()
        history: list[tuple[Tensor, ...]] = []
        for t in range(frames):
            free, place, seen = scores[:, t], empty.long(), empty
            if t:
                gap = (index[:, t] - index[:, t - 1])[:, None]
                motion = motion.moved(gap)
                like = self._likeness(*looks, feature[:, t], share[:, t], free)
                number = torch.arange(best.shape[1], device=best.device)
                place, seen = self._look(
                    motion, state[:, t, None], like, exists & candidates.frame_mask[:, t, None], exists.shape[1]
                )
                same = _pairs(close[:, t], place) & _before(0.5 * best + 0.5 * total / t, number[:, None] < number)
                seen = seen * keep_greedily(same & (seen > 0.5)[..., None])
                motion = motion.corrected(_take(state[:, t], place), seen, gap)
                taken = torch.zeros_like(free).scatter_reduce(1, place, (seen > 0.5).to(free.dtype), "amax")
                free = free.masked_fill((taken[:, None] @ close[:, t].to(free.dtype))[:, 0] > 0, 0.0)
            ordered, order = free.topk(count, dim=1)
            ordered = ordered * keep_greedily(_pairs(close[:, t], order).triu(1))
            start, born = ordered.topk(min(births if t else tubes, count), dim=1)
            born = order.gather(1, born)
            here, new = _take(state[:, t], born), torch.zeros_like(start)
            motion = motion.joined(_Motion(here, torch.zeros_like(here[..., :2]), new.bool(), new))
            looks = tuple(
                torch.cat((old, _take(x[:, t], born)), 1) for old, x in zip(looks, (feature, share), strict=True)
            )
            exists = torch.cat((exists, start > 0), 1)
            place, seen = torch.cat((place, born), 1), torch.cat((seen, (start > 0).to(seen.dtype)), 1)
            strength = seen * scores[:, t].gather(1, place)
            grown = functional.pad(torch.stack((best, total)), (0, start.shape[1]))
            best, total = torch.maximum(grown[0], strength), grown[1] + strength
            history.append((_boxes(motion.here), place, seen, exists))
        boxes, place, visible, exists = (
            torch.stack([_padded(x, best.shape[1]) for x in part], 2) for part in zip(*history, strict=True)
        )
        assignment = functional.one_hot(place, count).to(scores.dtype) * visible[..., None]
        return LinkedTubes(boxes, 0.5 * best + 0.5 * total / frames, assignment, visible, exists)

    def _close(self, boxes_BTM4: Tensor) -> Tensor:
        """B,T,M,M bool: a tube that takes one of the two candidates takes the other too."""
        corners = to_xyxy(boxes_BTM4.float())
        return paired_iou(corners[:, :, :, None], corners[:, :, None])[0] > self.overlap

    def _look(
        self, motion: _Motion, there_BPM4: Tensor, like_BPM: Tensor, inside_BP: Tensor, tubes: int
    ) -> tuple[Tensor, Tensor]:
        """The likeliest candidate for each tube on the frame it has moved to, B,P int64, and its confidence, B,P.

        P is ``tubes`` times the number of directions in which they are followed.
        """
        size = motion.here[..., 2:].mean(-1).exp()
        reach = torch.where(motion.sure, self.reach[0], self.reach[1]) + self.reach[2] * motion.since
        apart, larger = (
            a - b for a, b in zip(there_BPM4.split(2, -1), motion.here[..., None, :].split(2, -1), strict=True)
        )
        distance = apart.norm(dim=-1) / (size * reach)[..., None]
        affinity = like_BPM - 0.5 * distance.square() - 2.0 * larger.square().sum(-1)
        top, choice = affinity.max(-1)
        # Each direction by itself: on a CPU the last bit of a sigmoid depends on where the number lies in memory.
        seen = [x.contiguous().sigmoid() for x in (top - self.floor).split(tubes, 1)]
        return choice, torch.cat(seen, 1) * inside_BP

    def _likeness(
        self, feature_BPC: Tensor, share_BPN: Tensor, features_BMC: Tensor, shares_BMN: Tensor, scores_BM: Tensor
    ) -> Tensor:
        """B,P,M: how much a candidate looks like a tube, regardless of position; 0 for an exact match of score 1."""
        like = self.appearance * (torch.einsum("bpc,bmc->bpm", feature_BPC, features_BMC) - 1)
        like = like + (torch.einsum("bpn,bmn->bpm", share_BPN, shares_BMN) + 0.02).log()
        return like + scores_BM.clamp(min=1e-4).log()[:, None]


def distinct_boxes(boxes_NM4: Tensor, overlap: float) -> Tensor:
    """Greedy NMS of boxes (cxcywh, best first) as an order: N,M indices, the suppressed boxes last."""
    corners, count = to_xyxy(boxes_NM4), boxes_NM4.shape[1]
    kept = keep_greedily((paired_iou(corners[:, :, None], corners[:, None])[0] > overlap).triu(1))
    # Both groups stay in their given order; ONNX has no stable sort, but these keys are distinct.
    return ((~kept) * count + torch.arange(count, device=kept.device)).argsort(dim=1)


def keep_greedily(beats_BPP: Tensor) -> Tensor:
    """B,P bool: greedy suppression: a kept i removes j where ``beats[b, i, j]``, a relation without cycles.

    An entry is kept if no kept entry beats it.  Each application of this rule settles at least one more link of each
    chain; once nothing changes, the result is the only set that satisfies the rule.
    """
    beats = beats_BPP.float()
    kept = torch.ones_like(beats[:, 0])
    for _ in range(beats.shape[1]):
        before, kept = kept, ((kept[:, None] @ beats)[:, 0] == 0).float()
        if not torch.compiler.is_compiling() and torch.equal(before, kept):
            break
    return kept > 0


def _before(rank_BP: Tensor, first_PP: Tensor) -> Tensor:
    """B,P,P bool: i ranks above j; ``first`` (i has the lower number) breaks ties."""
    one, other = rank_BP[:, :, None], rank_BP[:, None]
    return (one > other) | ((one == other) & first_PP)


def _pairs(close_BMM: Tensor, place_BP: Tensor) -> Tensor:
    """B,P,P: the entries of ``close`` for the candidates at ``place``."""
    return close_BMM[
        torch.arange(len(place_BP), device=place_BP.device)[:, None, None], place_BP[:, :, None], place_BP[:, None]
    ]


def _padded(x: Tensor, count: int) -> Tensor:
    """B,p,... with zeros (False) up to ``count`` along the second axis."""
    return torch.cat((x, x.new_zeros(x.shape[0], count - x.shape[1], *x.shape[2:])), 1)


def _state(boxes: Tensor) -> Tensor:
    """...,4 cxcywh -> x, y, log w, log h."""
    boxes = boxes.float()
    return torch.cat((boxes[..., :2], boxes[..., 2:].clamp(min=1e-4).log()), -1)


def _boxes(state: Tensor) -> Tensor:
    """The reverse of ``_state``, cut at the frame."""
    return torch.cat((state[..., :2].clamp(0, 1), state[..., 2:].exp().clamp(max=1)), -1)


def _looks(candidates: Candidates) -> tuple[Tensor, Tensor]:
    """Appearance: features of unit length, B,T,M,C, and square roots of the class shares, B,T,M,N."""
    classes = candidates.classes.float()
    return functional.normalize(candidates.features.float(), dim=-1), (
        classes / classes.sum(-1, keepdim=True).clamp(min=1e-6)
    ).sqrt()


def _take(x_BMk: Tensor, index_BP: Tensor) -> Tensor:
    return x_BMk.gather(1, index_BP[..., None].expand(-1, -1, x_BMk.shape[-1]))


def _local_line(where_BPTk: Tensor, weight_BPT: Tensor, index_BT: Tensor, width: float = 3.0) -> Tensor:
    """B,P,T,k: at each frame, a straight line fitted to the others, weighted by nearness (Gaussian, ``width`` source
    frames); a ridge keeps the slope near zero where few frames carry weight."""
    t = index_BT[:, None, :] - index_BT[:, :, None]  # B,T,T: from the row's frame to the column's
    w = (weight_BPT[:, :, None] + 1e-6) * (torch.exp(-0.5 * (t / width).square()) + 1e-6)[:, None]  # B,P,T,T
    t = t[:, None].expand_as(w)
    total = w.sum(-1, keepdim=True)
    mean_t = (w * t).sum(-1, keepdim=True) / total
    mean_x = w @ where_BPTk / total
    centred = w * (t - mean_t)
    slope = (centred @ where_BPTk) / ((centred * (t - mean_t)).sum(-1, keepdim=True) + 0.05 * total)
    return mean_x - slope * mean_t
