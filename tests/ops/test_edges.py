"""Empty, masked, poisoned and strided inputs, with the reference and with the kernels."""

from __future__ import annotations

import math

import pytest
import torch

from stdetr.ops import backend, st_deform_attn, st_deform_attn_fused, use_backend


@pytest.fixture(params=["reference", "kernels"], autouse=True)
def _each_backend(request):
    if request.param == "kernels" and backend("cpu").name != "cpu":
        pytest.skip(f"CPU kernels are not in use: {backend('cpu').reason}")
    with use_backend(request.param):
        yield


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("empty", ["B", "T", "Q", "F", "H", "D", "K"])
def test_an_empty_axis_gives_zeros_and_zero_gradients(case, empty, size):
    c = case(**{empty: 0, **({"F": 0} if empty == "T" else {})}, reference_size=size)
    leaves = [t.requires_grad_() for t in (c.value, c.locations, c.weights)]
    out = st_deform_attn(leaves[0], c.shapes, *leaves[1:], c.frame_index)
    assert out.shape == c.grad_out.shape
    assert out.abs().sum() == 0
    grads = torch.autograd.grad(out.sum(), leaves)
    assert [g.shape for g in grads] == [t.shape for t in leaves]
    assert all(g.abs().sum() == 0 for g in grads)
    leaves = [t.requires_grad_() for t in (c.value, c.reference, c.offsets, c.logits)]
    out = st_deform_attn_fused(leaves[0], c.shapes, *leaves[1:], c.frame_index)
    assert out.shape == c.grad_out.shape
    assert out.abs().sum() == 0
    assert all(g.abs().sum() == 0 for g in torch.autograd.grad(out.sum(), leaves))


def test_no_levels_at_all():
    out = st_deform_attn(
        torch.zeros(1, 2, 0, 2, 4), [], torch.zeros(1, 3, 2, 2, 0, 4, 2), torch.zeros(1, 3, 2, 2, 0, 4)
    )
    assert out.shape == (1, 3, 8)
    assert out.abs().sum() == 0


def test_all_frames_masked_gives_zero_and_never_nan(case):
    c = case(F=2, reference_size=4)
    index = torch.full((5, 2), -1)
    leaves = [t.requires_grad_() for t in (c.value, c.reference, c.offsets, c.logits)]
    out = st_deform_attn_fused(leaves[0], c.shapes, *leaves[1:], index)
    assert out.abs().max() == 0
    assert all(g.abs().max() == 0 for g in torch.autograd.grad(out, leaves, c.grad_out))


def test_infinite_logits_of_a_masked_frame_do_not_reach_the_softmax(case):
    c = case(T=2, F=2)
    c.logits[:, :, :, 0] = math.inf
    index = torch.tensor([-1, 1]).expand(5, 2)
    alone = st_deform_attn_fused(
        c.value, c.shapes, c.reference[:, :, 1:], c.offsets[:, :, :, 1:], c.logits[:, :, :, 1:], index[:, 1:]
    )
    torch.testing.assert_close(st_deform_attn_fused(c.value, c.shapes, c.reference, c.offsets, c.logits, index), alone)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_point_without_a_finite_location_counts_as_outside(case, bad):
    c = case(seed=7)
    outside = c.locations.clone()
    outside[0, 1, 0, 2, 1, 0] = 7.0
    broken = c.locations.clone()
    broken[0, 1, 0, 2, 1, 0, 1] = bad
    results = []
    for locations in (outside, broken):
        leaves = [t.clone().requires_grad_() for t in (c.value, locations, c.weights)]
        out = st_deform_attn(leaves[0], c.shapes, *leaves[1:])
        results.append((out, *torch.autograd.grad(out, leaves, c.grad_out)))
    for far, not_finite in zip(*results, strict=True):
        torch.testing.assert_close(not_finite, far)
    assert results[1][2][0, 1, 0, 2, 1, 0].abs().max() == 0


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("which", ["reference", "offsets"])
def test_broken_references_and_offsets_leave_the_rest_alone(case, size, which):
    c = case(seed=8, reference_size=size)
    tensors = {"value": c.value, "reference": c.reference, "offsets": c.offsets, "logits": c.logits}
    if which == "reference":
        c.reference[0, 2, 1, size - 1] = math.inf
    else:
        c.offsets[0, 2, 1, 1, 0, 1, 0] = math.nan
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    out = st_deform_attn_fused(leaves["value"], c.shapes, leaves["reference"], leaves["offsets"], leaves["logits"])
    assert out.isfinite().all()
    grads = dict(zip(leaves, torch.autograd.grad(out, list(leaves.values()), c.grad_out), strict=True))
    assert all(g.isfinite().all() for g in grads.values())
    if which == "reference":
        assert grads["offsets"][0, 2, :, 1].abs().max() == 0
        assert grads["reference"][0, 2, 1].abs().max() == 0
    else:
        assert grads["offsets"][0, 2, 1, 1, 0, 1].abs().max() == 0


def test_values_of_a_masked_frame_are_never_read(case):
    c = case(T=3, F=2, seed=9)
    index = torch.tensor([1, 2]).expand(5, 2)
    clean = st_deform_attn(c.value, c.shapes, c.locations, c.weights, index)
    c.value[:, 0] = math.nan
    value = c.value.requires_grad_()
    out = st_deform_attn(value, c.shapes, c.locations, c.weights, index)
    torch.testing.assert_close(out, clean)
    assert torch.autograd.grad(out.sum(), value)[0].isfinite().all()


def test_strided_inputs_and_gradients(case):
    c = case(seed=10, masked=True)
    dense = [c.value, c.locations, c.weights]
    strided = [
        c.value.transpose(1, 2).contiguous().transpose(1, 2),
        c.locations.flip(-1).contiguous().flip(-1).transpose(3, 5).contiguous().transpose(3, 5),
        c.weights.repeat_interleave(2, -1)[..., ::2],
    ]
    assert not any(t.is_contiguous() for t in strided)
    grad = c.grad_out.transpose(0, 1).contiguous().transpose(0, 1)
    index = c.frame_index.transpose(1, 2).contiguous().transpose(1, 2)
    results = []
    for tensors in (dense, strided):
        leaves = [t.detach().requires_grad_() for t in tensors]
        out = st_deform_attn(leaves[0], c.shapes, *leaves[1:], index)
        results.append((out, *torch.autograd.grad(out, leaves, grad)))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(second, first)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_frame_index_of_two_axes_is_shared_by_the_batch(case, dtype):
    c = case(F=2, T=3)
    index = torch.tensor([[0, 2], [1, 1], [-1, 0], [2, -1], [0, 1]], dtype=dtype)
    shared = st_deform_attn(c.value, c.shapes, c.locations, c.weights, index)
    torch.testing.assert_close(shared, st_deform_attn(c.value, c.shapes, c.locations, c.weights, index.expand(2, 5, 2)))
