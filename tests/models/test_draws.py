"""What is drawn for a clip depends on its seed alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stdetr.models.denoising import TubeDenoising
from stdetr.models.draws import ClipDropout, TubeAttention, mix, seed_clips
from stdetr.structures import ClipTargets


def test_seeds_spread() -> None:
    found = {mix(a, b) for a in range(50) for b in range(50)}
    assert len(found) == 2500
    assert all(0 <= seed < 2**63 for seed in found)
    bits = torch.tensor([[seed >> bit & 1 for bit in range(63)] for seed in found], dtype=torch.float64).mean(0)
    assert (bits - 0.5).abs().max() < 0.06  # six standard deviations of 2500 coins


def test_dropout_of_a_clip_does_not_depend_on_its_neighbours() -> None:
    x = torch.ones(6, 40, 5)  # two clips of three frames
    drop = ClipDropout(0.25)
    seed_clips(drop, [11, 12])
    both = drop(x)
    assert torch.equal(drop(x), both), "the same again, as for activations that are computed again"
    seed_clips(drop, [12])
    assert torch.equal(drop(x[3:]), both[3:])
    assert both.unique().tolist() == pytest.approx([0, 4 / 3])
    assert 0.18 < (both == 0).float().mean() < 0.32
    assert not torch.equal(both[:3], both[3:])
    twice = nn.Sequential(ClipDropout(0.25), ClipDropout(0.25))
    seed_clips(twice, [11, 12])
    assert not torch.equal(twice[0](x), twice[1](x)), "each module draws its own"
    assert drop.eval()(x) is x
    with pytest.raises(ValueError, match=r"model\.dropout=1\.0 must lie in \[0, 1\)"):
        ClipDropout(1.0)


def test_attention_is_multi_head_attention_with_dropped_weights() -> None:
    torch.manual_seed(0)
    attention = TubeAttention(8, 2, 0.5)
    query, value = torch.randn(4, 5, 8), torch.randn(4, 5, 8)
    blocked = torch.zeros(5, 5, dtype=torch.bool)
    blocked[:2, 3:] = True
    expected = attention.eval()(query, query, value, attn_mask=blocked)
    attention.train()
    seed_clips(attention, [1, 2])
    dropped = attention(query, query, value, attn_mask=blocked)
    assert not torch.allclose(dropped, expected, atol=1e-3)
    # Without dropping anything the long way gives what torch gives.
    attention.drop.p = 1e-9
    for mask in (blocked, blocked.expand(8, 5, 5)):
        torch.testing.assert_close(attention(query, query, value, attn_mask=mask), expected, atol=1e-6, rtol=1e-5)


def test_noise_of_a_clip_does_not_depend_on_its_neighbours() -> None:
    denoising = TubeDenoising(classes=4, width=8, queries=24)
    shape = (2, 3)
    boxes = torch.rand(*shape, 4) / 2 + 0.2
    seen, unseen = torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    clip = ClipTargets(torch.tensor([1, 2]), boxes, seen, unseen, torch.arange(2))
    seed_clips(denoising, [5, 6])
    both = denoising([clip, clip], 3)
    seed_clips(denoising, [6])
    alone = denoising([clip], 3)
    assert torch.equal(alone.references[0], both.references[1])
    assert torch.equal(alone.states[0], both.states[1])
    assert not torch.equal(both.references[0], both.references[1])
    # Another process holds a clip with three tracks: as many groups and slots as there.
    denoising.most = 3
    wider = denoising([clip], 3)
    assert wider.track.shape == (1, 24 // 6 * 6)
    assert (wider.track >= 0).sum() == 24 // 6 * 4
    empty = denoising([ClipTargets.empty(3)], 3)
    assert (empty.track == -1).all()
