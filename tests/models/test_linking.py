"""Linking proposals into tubes: synthetic tracks with known answers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stdetr.models.boxes import paired_iou, to_xyxy
from stdetr.models.linking import Candidates, LinkedTubes, TubeLinker, distinct_boxes, keep_greedily


def _candidates(
    tracks: Sequence[Sequence[tuple[float, float] | None]], *, frames: int, size: float = 0.1
) -> Candidates:
    """Each track: its centre on each frame, None where no candidate stands for it.  Track i has class and feature i."""
    count = len(tracks)
    boxes = torch.full((1, frames, count, 4), size)
    scores = torch.zeros(1, frames, count)
    classes = torch.full((1, frames, count, count), 0.01)
    features = torch.zeros(1, frames, count, count)
    for n, track in enumerate(tracks):
        for t, centre in enumerate(track):
            boxes[0, t, n, :2] = torch.tensor(centre if centre is not None else (0.5, 0.05))
            scores[0, t, n] = 0.9 if centre is not None else 0.01
            classes[0, t, n, n] = scores[0, t, n]
            features[0, t, n, n] = 1.0 if centre is not None else 0.0
    return Candidates(
        boxes, scores, classes, features, torch.ones(1, frames, dtype=torch.bool), torch.arange(frames)[None]
    )


def test_two_movers_that_cross() -> None:
    right = [(0.42 + 0.04 * t, 0.5) for t in range(5)]
    left = [(0.58 - 0.04 * t, 0.5) for t in range(5)]
    linked = TubeLinker(seeds=10)(_candidates([right, left], frames=5), tubes=2)
    paths = linked.boxes[0, :, :, 0]
    expected = torch.tensor([[0.42 + 0.04 * t for t in range(5)], [0.58 - 0.04 * t for t in range(5)]])
    order = paths[:, 0].argsort()
    torch.testing.assert_close(paths[order], expected, atol=0.01, rtol=0)


def test_hidden_frame_is_bridged() -> None:
    path = [(0.3, 0.3), (0.33, 0.32), None, (0.39, 0.36), (0.42, 0.38)]
    linked = TubeLinker(seeds=5)(_candidates([path], frames=5), tubes=1)
    torch.testing.assert_close(linked.boxes[0, 0, 2, :2], torch.tensor([0.36, 0.34]), atol=0.02, rtol=0)
    assert linked.visible[0, 0, 2] < 0.2
    assert (linked.visible[0, 0, [0, 1, 3, 4]] > 0.9).all()


def test_one_tube_an_object_comes_first() -> None:
    still = [(0.3, 0.3)] * 4
    other = [(0.7, 0.7)] * 4
    linked = TubeLinker(seeds=8)(_candidates([still, other], frames=4), tubes=4)
    assert {round(float(x), 1) for x in linked.boxes[0, :2, 0, 0]} == {0.3, 0.7}


def test_single_frame_returns_the_candidates() -> None:
    found = _candidates([[(0.3, 0.3)], [(0.7, 0.6)]], frames=1)
    linked = TubeLinker(seeds=2)(found, tubes=2)
    assert torch.equal(linked.boxes[0, :, 0].sort(0).values, found.boxes[0, 0].sort(0).values)
    assert (linked.visible == 1).all()


def test_padded_frames_take_no_part() -> None:
    found = _candidates([[(0.3, 0.3), (0.35, 0.3), (0.9, 0.9)]], frames=3)
    masked = Candidates(
        found.boxes, found.scores, found.classes, found.features, torch.tensor([[True, True, False]]), found.frame_index
    )
    linked = TubeLinker(seeds=3)(masked, tubes=1)
    torch.testing.assert_close(linked.boxes[0, 0, :2, 0], torch.tensor([0.3, 0.35]), atol=0.01, rtol=0)
    assert linked.assignment[0, :, 2].sum() == 0


def test_strided_clip_uses_source_frames() -> None:
    # The same motion, seen on frames 0, 1, 4, 5 with frame 4 hidden: the line must be fitted over source time.
    path = [(0.3, 0.5), (0.33, 0.5), None, (0.45, 0.5)]
    found = _candidates([path], frames=4)
    strided = Candidates(
        found.boxes, found.scores, found.classes, found.features, found.frame_mask, torch.tensor([[0, 1, 4, 5]])
    )
    linked = TubeLinker(seeds=4)(strided, tubes=1)
    torch.testing.assert_close(linked.boxes[0, 0, 2, 0], torch.tensor(0.42), atol=0.015, rtol=0)


def _clutter(seed: int, *, clips: int, frames: int, count: int, objects: int) -> Candidates:
    """Candidates scattered around ``objects`` moving objects; some scores tie, the last clip may be padded."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    who = torch.randint(objects, (clips, frames, count), generator=generator)
    index = who[..., None].expand(-1, -1, -1, 2)
    time = torch.arange(frames).view(1, frames, 1, 1)
    centre = (rand(clips, 1, objects, 2) + (rand(clips, 1, objects, 2) - 0.5) * 0.06 * time).gather(2, index)
    size = (0.05 + 0.15 * rand(clips, 1, objects, 2)).expand(-1, frames, -1, -1).gather(2, index)
    scores = rand(clips, frames, count) ** 3
    scores = (scores * 8).round() / 8 if seed % 3 == 0 else scores
    looks = torch.randn(clips, 1, objects, 8, generator=generator).expand(-1, frames, -1, -1)
    features = looks.gather(2, who[..., None].expand(-1, -1, -1, 8))
    mask = torch.ones(clips, frames, dtype=torch.bool)
    mask[-1, -1] = frames == 1 or seed % 4 != 0
    return Candidates(
        torch.cat(
            ((centre + 0.05 * (rand(*centre.shape) - 0.5)).clamp(0, 1), size * (0.8 + 0.4 * rand(*size.shape))), -1
        ),
        scores,
        rand(clips, frames, count, 4) * scores[..., None],
        features + 0.5 * torch.randn(features.shape, generator=generator),
        mask,
        2 * torch.arange(frames).expand(clips, -1),
    )


def _one_by_one(linked: LinkedTubes, found: Candidates, tubes: int, overlap: float) -> tuple[Tensor, Tensor, Tensor]:
    """The rule of ``select`` as it reads: rank all tubes, take the best, rank again.  Index, score and assignment."""
    scores = found.scores * found.frame_mask[..., None]
    corners = to_xyxy(found.boxes)
    close = paired_iou(corners[:, :, :, None], corners[:, :, None])[0] > overlap
    free, value = torch.ones_like(scores), linked.assignment * scores[:, None]
    length = found.frame_mask.sum(-1, keepdim=True)
    chosen = torch.zeros_like(linked.scores)
    index, ranks, kept = [], [], []
    for _ in range(min(tubes, value.shape[1])):
        left = (value * free[:, None]).sum(-1)
        rank = 0.5 * left.amax(-1) + 0.5 * left.sum(-1) / length + chosen
        best = rank.argmax(1, keepdim=True)
        chosen.scatter_(1, best, float("-inf"))
        mine = linked.assignment.gather(1, best[..., None, None].expand(-1, -1, *value.shape[2:]))[:, 0] * free
        index.append(best)
        ranks.append(rank.gather(1, best))
        kept.append(mine)
        free = free * (((mine > 0.5).float()[:, :, None] @ close.float())[:, :, 0] == 0)
    return torch.cat(index, 1), torch.cat(ranks, 1), torch.stack(kept, 1)


def test_rounds_choose_the_tubes_that_one_by_one_does() -> None:
    moved = 0
    for seed in range(100):
        frames, count, seeds, tubes = (1, 2, 3, 5, 8)[seed % 5], *((8, 12, 6), (24, 64, 20), (40, 150, 60))[seed % 3]
        found = _clutter(seed, clips=1 + seed % 2, frames=frames, count=count, objects=(3, 8, 20)[seed % 3])
        linker = TubeLinker(seeds=seeds)
        linked = linker.link(found)
        chosen = linker.select(linked, found, tubes)
        index, ranks, kept = _one_by_one(linked, found, tubes, linker.overlap)
        assert torch.equal(chosen.scores, ranks) and torch.equal(chosen.assignment, kept), seed
        if frames == 1:
            assert torch.equal(chosen.boxes, linked.boxes.gather(1, index[..., None, None].expand(-1, -1, 1, 4))), seed
        moved += int((index.diff(dim=1) < 0).sum())
    assert moved > 100, "the order of the seeds was the answer: nothing was tested"


class _Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_linking_takes_few_operations() -> None:
    """At the size of model=clip; chosen one by one and ranked each time, tubes took 12,300."""
    found = _clutter(2, clips=1, frames=5, count=100, objects=40)
    with _Operations() as operations:
        TubeLinker(seeds=600)(found, 300)
        distinct_boxes(torch.rand(5, 300, 4, generator=torch.Generator().manual_seed(0)) * 0.3, 0.7)
    assert operations.count < 1400


def test_greedy_suppression() -> None:
    # A chain: 0 removes 1, so that 1 cannot remove 2, which removes 3.
    beats = torch.zeros(1, 5, 5, dtype=torch.bool)
    beats[0, 0, 1] = beats[0, 1, 2] = beats[0, 2, 3] = True
    assert keep_greedily(beats)[0].tolist() == [True, False, True, False, True]


@pytest.mark.parametrize("seed", range(5))
def test_distinct_boxes_are_those_of_nms(seed: int) -> None:
    from torchvision.ops import nms

    boxes = torch.rand(3, 60, 4, generator=torch.Generator().manual_seed(seed)) * 0.3 + 0.1
    order = distinct_boxes(boxes, 0.5)
    for row, own in zip(order, boxes, strict=True):
        kept = nms(to_xyxy(own), -torch.arange(60.0), 0.5)
        assert row[: len(kept)].tolist() == kept.tolist()
        assert row[len(kept) :].tolist() == sorted(set(range(60)) - set(kept.tolist()))


def test_a_causal_tube_begins_late_and_is_followed() -> None:
    """One object from the start, another from frame 2 on, which hides on frame 4."""
    first = [(0.2 + 0.04 * t, 0.3) for t in range(6)]
    second: list[tuple[float, float] | None] = [None, None, (0.5, 0.7), (0.53, 0.7), None, (0.59, 0.7)]
    linked = TubeLinker(overlap=0.5).follow(_candidates([first, second], frames=6), tubes=1, births=1)
    assert linked.exists is not None and linked.boxes.shape == (1, 6, 6, 4)
    torch.testing.assert_close(linked.boxes[0, 0, :, 0], torch.tensor([x for x, _ in first]), atol=0.01, rtol=0)
    born = int(
        (linked.boxes[0, :, 2, :2] - torch.tensor([0.5, 0.7]))
        .norm(dim=-1)
        .masked_fill(~linked.exists[0, :, 2], 9)
        .argmin()
    )
    assert linked.exists[0, born].tolist() == [False, False, True, True, True, True]
    wanted = torch.tensor([0.5, 0.53, 0.56, 0.59])
    torch.testing.assert_close(linked.boxes[0, born, 2:, 0], wanted, atol=0.015, rtol=0)
    assert linked.visible[0, born, 4] < 0.2 and (linked.visible[0, born, [2, 3, 5]] > 0.9).all()
