"""Prediction heads by hand."""

from __future__ import annotations

import torch

from stdetr.models.heads import ClipPool


def test_the_clip_state_is_the_learned_weighted_mean_of_its_real_frames() -> None:
    pool = ClipPool(2)
    states = torch.tensor([[[[1.0, 10.0], [2.0, 20.0], [3.0, 70.0]]]])  # B=1, Q=1, T=3, C=2
    everywhere = torch.ones(1, 3, dtype=torch.bool)
    # Weights start equal.
    torch.testing.assert_close(pool(states, everywhere), torch.tensor([[[2.0, 100 / 3]]]))
    with torch.no_grad():
        pool.weight.weight.copy_(torch.tensor([[torch.tensor(2.0).log(), 0.0]]))
    # The weight of a frame is 2 to the power of its first channel: 2, 4, 8.
    torch.testing.assert_close(pool(states, everywhere), torch.tensor([[[34 / 14, 660 / 14]]]))
    without_last = torch.tensor([[True, True, False]])
    torch.testing.assert_close(pool(states, without_last), torch.tensor([[[10 / 6, 100 / 6]]]))
    assert torch.equal(pool(states[:, :, :1], everywhere[:, :1]), states[:, :, 0])
