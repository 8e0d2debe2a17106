"""Denoising queries: which see which, and what that means for the answers."""

from __future__ import annotations

import torch

from stdetr.models.denoising import TubeDenoising
from stdetr.structures import ClipTargets


def test_a_group_sees_itself_and_the_matching_queries_only() -> None:
    boxes = torch.tensor([[[0.4, 0.4, 0.2, 0.2]], [[0.6, 0.6, 0.3, 0.2]]])
    seen = torch.ones(2, 1, dtype=torch.bool)
    target = ClipTargets(torch.tensor([0, 1]), boxes, seen, ~seen, torch.arange(2))
    # Two tracks make groups of 2 positives and 2 negatives; 8 queries are two groups, before 3 matching queries.
    noised = TubeDenoising(classes=2, width=8, queries=8)([target], matching=3)
    assert noised is not None
    group = [0, 0, 0, 0, 1, 1, 1, 1, None, None, None]
    expected = [[(row is None and column is not None) or (row is not None and column is not None and row != column)
                 for column in group] for row in group]  # fmt: skip
    assert noised.blocked.tolist() == expected
    assert noised.positive.tolist() == [True, True, False, False] * 2
    assert noised.track.tolist() == [[0, 1] * 4]


def test_noise_of_each_kind_stays_in_its_bounds() -> None:
    """Corners of positives move by at most box_noise half sides, those of negatives by one to two times that."""
    torch.manual_seed(0)
    boxes = torch.full((1, 3, 4), 0.5)
    boxes[..., 2:] = 0.2
    seen = torch.ones(1, 3, dtype=torch.bool)
    target = ClipTargets(torch.tensor([1]), boxes, seen, ~seen, torch.arange(1))
    denoising = TubeDenoising(classes=5, width=8, queries=2000, box_noise=0.5, frame_share=0.0, label_noise=0.0)
    noised = denoising([target], matching=0)
    assert noised is not None
    centre, size = noised.references[0, ..., :2], noised.references[0, ..., 2:]
    moved = torch.cat((centre - size / 2 - 0.4, centre + size / 2 - 0.6), -1).abs() / 0.1
    positive = noised.positive
    assert 0.45 < moved[positive].max() <= 0.5 + 1e-5
    assert 0.5 - 1e-5 <= moved[~positive].min() < 0.55
    assert 0.95 < moved[~positive].max() <= 1.0 + 1e-5
    assert (moved - moved[:, :1]).abs().max() < 1e-5, "without frame_share, all frames share the noise"
    assert torch.equal(noised.states[0, :, 0], denoising.labels.weight[1].expand(2000, -1))


def test_frames_draw_their_own_share_of_the_noise() -> None:
    torch.manual_seed(0)
    boxes = torch.full((1, 2, 4), 0.5)
    boxes[..., 2:] = 0.2
    seen = torch.ones(1, 2, dtype=torch.bool)
    target = ClipTargets(torch.tensor([0]), boxes, seen, ~seen, torch.arange(1))
    denoising = TubeDenoising(classes=1, width=8, queries=2000, box_noise=0.5, frame_share=1.0)
    noised = denoising([target], matching=0)
    assert noised is not None
    centre, size = noised.references[0, ..., :2], noised.references[0, ..., 2:]
    moved = torch.cat((centre - size / 2 - 0.4, centre + size / 2 - 0.6), -1) / 0.1
    assert 0.45 < moved.abs().max() <= 0.5 + 1e-5
    first, second = moved[:, 0].flatten(), moved[:, 1].flatten()
    assert torch.corrcoef(torch.stack((first, second)))[0, 1].abs() < 0.1
