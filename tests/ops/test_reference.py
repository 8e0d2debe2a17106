"""The PyTorch reference against loops, hand-worked numbers, grid_sample and autograd's finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st

from stdetr.ops import (
    ms_deform_attn,
    st_deform_attn,
    st_deform_attn_fused,
    use_backend,
)


@pytest.fixture(autouse=True)
def _reference_only():
    with use_backend("reference"):
        yield


def one_point(x, y, value, shapes=((2, 2),)):
    """One query, head, level and point with weight 1 on a one-channel image."""
    location = torch.tensor([x, y], dtype=torch.float64).view(1, 1, 1, 1, 1, 1, 2)
    return st_deform_attn(value, list(shapes), location, torch.ones(1, 1, 1, 1, 1, 1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0.25, 0.25, 1.0),  # the centre of the first pixel
        (0.75, 0.75, 4.0),
        (0.5, 0.5, 2.5),  # between all four
        (0.5, 0.25, 1.5),
        (0.0, 0.25, 0.5),  # half a pixel left of the first centre: half of it is outside
        (0.0, 0.0, 0.25),
        (-0.25, 0.25, 0.0),  # a whole pixel away
        (1.0, 1.0, 1.0),
        (1.3, 0.5, 0.0),
        (math.nan, 0.5, 0.0),
        (0.5, math.inf, 0.0),
        (-math.inf, 0.5, 0.0),
        (1e30, 0.5, 0.0),
    ],
)
def test_a_single_point_by_hand(x, y, expected):
    image = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).view(1, 1, 4, 1, 1)
    assert one_point(x, y, image).item() == pytest.approx(expected, abs=1e-12)


def test_levels_frames_and_weights_add_up():
    value = torch.tensor([[1.0, 10.0], [2.0, 20.0]], dtype=torch.float64).view(1, 2, 2, 1, 1)  # two frames, two levels
    locations = torch.full((1, 1, 1, 2, 2, 1, 2), 0.5, dtype=torch.float64)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).view(1, 1, 1, 2, 2, 1)
    shapes = [(1, 1), (1, 1)]
    assert st_deform_attn(value, shapes, locations, weights).item() == pytest.approx(0.1 + 2.0 + 0.6 + 8.0)
    swapped = torch.tensor([[1, 0]])
    assert st_deform_attn(value, shapes, locations, weights, swapped).item() == pytest.approx(0.2 + 4.0 + 0.3 + 4.0)
    masked = torch.tensor([[1, -1]])
    assert st_deform_attn(value, shapes, locations, weights, masked).item() == pytest.approx(0.2 + 4.0)


@settings(max_examples=25, deadline=None)
@given(
    B=st.sampled_from([1, 2]),
    T=st.sampled_from([1, 2, 3]),
    F=st.sampled_from([1, 2, 5]),
    H=st.sampled_from([1, 3]),
    D=st.sampled_from([1, 5, 8]),
    Q=st.sampled_from([1, 7, 11]),
    K=st.sampled_from([1, 3]),
    shapes=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_random_shapes_against_loops(truth, case, B, T, F, H, D, Q, K, shapes, seed):
    c = case(B=B, T=T, F=F, H=H, D=D, Q=Q, K=K, shapes=shapes, masked=True, seed=seed)
    out = st_deform_attn(c.value, shapes, c.locations, c.weights, c.frame_index)
    torch.testing.assert_close(out, truth(c.value, shapes, c.locations, c.weights, c.frame_index))


def test_one_frame_is_multi_scale_deformable_attention(case):
    """T = 1 against the field's formulation, written here on grid_sample."""
    c = case(T=1, H=3, D=6, Q=13, K=4, shapes=[(6, 5), (3, 4), (2, 2)])
    value, locations, weights = c.value[:, 0], c.locations[:, :, :, 0], c.weights[:, :, :, 0]
    total, start = torch.zeros(2, 13, 3, 6, dtype=torch.float64), 0
    for level, (height, width) in enumerate(c.shapes):
        image = value[:, start : start + height * width].permute(0, 2, 3, 1).reshape(6, 6, height, width)
        start += height * width
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        sampled = functional.grid_sample(image, grid, padding_mode="zeros", align_corners=False).view(2, 3, 6, 13, 4)
        total += torch.einsum("bhdqk,bqhk->bqhd", sampled, weights[:, :, :, level])
    expected = total.flatten(2)
    torch.testing.assert_close(ms_deform_attn(value, c.shapes, locations, weights), expected)
    torch.testing.assert_close(st_deform_attn(c.value, c.shapes, c.locations, c.weights), expected)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_fused_is_reference_plus_offset_softmax_and_sampling(truth, case, size, padded):
    c = case(masked=True, F=4, reference_size=size, seed=3)
    c.frame_index[0, 0] = -1
    sizes = torch.tensor([(w, h) for h, w in c.shapes], dtype=torch.float64)
    ratios = c.valid_ratios if padded else torch.ones_like(c.valid_ratios)
    locations = torch.empty_like(c.offsets)
    for b in range(2):
        for level in range(2):
            centre = c.reference[b, :, None, :, None, :2] * ratios[b, level]
            if size == 2:
                placed = centre + c.offsets[b, :, :, :, level] / sizes[level]
            else:
                box = c.reference[b, :, None, :, None, 2:] * ratios[b, level]
                placed = centre + c.offsets[b, :, :, :, level] / 2 * 0.5 * box  # K = 2 points
            locations[b, :, :, :, level] = placed
    weights = torch.zeros_like(c.logits)
    for b in range(2):
        for q in range(5):
            usable = c.frame_index[b, q] >= 0
            if usable.any():
                kept = c.logits[b, q][:, usable].exp()
                weights[b, q][:, usable] = kept / kept.sum(dim=(1, 2, 3), keepdim=True)
    out = st_deform_attn_fused(
        c.value, c.shapes, c.reference, c.offsets, c.logits, c.frame_index, c.valid_ratios if padded else None
    )
    torch.testing.assert_close(out, truth(c.value, c.shapes, locations, weights, c.frame_index))
    assert out[0, 0].abs().max() == 0


@pytest.mark.parametrize("size", [2, 4])
def test_derivatives_of_the_fused_op(case, size):
    c = case(B=1, Q=2, F=3, D=2, masked=True, reference_size=size, seed=5, shapes=[(3, 2), (1, 2)])
    leaves = [t.requires_grad_() for t in (c.value, c.reference, c.offsets, c.logits)]
    run = lambda *t: st_deform_attn_fused(t[0], c.shapes, *t[1:], c.frame_index, c.valid_ratios)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


def test_derivatives_of_the_plain_op(case):
    c = case(B=1, Q=2, T=3, F=2, D=2, seed=6, shapes=[(3, 2), (1, 2)])
    leaves = [t.requires_grad_() for t in (c.value, c.locations, c.weights)]
    run = lambda *t: st_deform_attn(t[0], c.shapes, *t[1:], c.frame_index)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)
