"""torch.func over the operators: the kernels run, and transforms give what calls one by one give."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, hessian, jacrev, jvp, vjp, vmap

from stdetr.ops import (
    attention,
    ms_deform_attn,
    st_deform_attn,
    st_deform_attn_fused,
    st_deform_attn_temporal,
    use_backend,
)

SHAPES = [(5, 7), (3, 2)]


@pytest.fixture(autouse=True)
def only_kernels(kernels, monkeypatch):
    """A first derivative or a value that comes from the reference fails the test."""

    def refuse(*arguments):
        raise AssertionError("the reference ran")

    class Refusing:
        st_deform_attn_reference = st_deform_attn_fused_reference = staticmethod(refuse)

    # The second derivatives of registration.py keep the reference.
    monkeypatch.setattr(attention, "plain", Refusing)


def inputs(kind, case, **sizes):
    """The operator over its tensors, and the tensors that have derivatives."""
    made = case(**{"D": 4, "K": 2, "Q": 3, "shapes": SHAPES, "reference_size": 4} | sizes)
    if kind == "plain":
        return lambda *t: st_deform_attn(t[0], SHAPES, *t[1:], made.frame_index), (
            made.value,
            made.locations,
            made.weights,
        )
    if kind == "fused":
        return lambda *t: st_deform_attn_fused(t[0], SHAPES, *t[1:], made.frame_index, made.valid_ratios), (
            made.value,
            made.reference,
            made.offsets,
            made.logits,
        )
    offsets, logits = made.offsets[:, :, :, 0], made.logits[:, :, :, 0]
    frames = made.offsets.shape[3]
    dt = torch.arange(frames, dtype=made.reference.dtype).expand(*offsets.shape[:2], frames) - 1
    tables = torch.randn(4, *offsets.shape[2:], dtype=dt.dtype), torch.randn(4, *logits.shape[2:], dtype=dt.dtype)
    return lambda *t: st_deform_attn_temporal(t[0], SHAPES, *t[1:], dt, made.frame_index), (
        made.value,
        made.reference,
        offsets,
        offsets.flip(1),
        logits,
        *tables,
    )


def same(got, wanted):
    assert len(got) == len(wanted)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["plain", "fused", "temporal"])
def test_grad_is_what_backward_gives(kind, case):
    run, tensors = inputs(kind, case, F=2)
    places = tuple(range(len(tensors)))
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    wanted = torch.autograd.grad(run(*leaves).square().sum(), leaves)
    same(grad(lambda *t: run(*t).square().sum(), argnums=places)(*tensors), wanted)
    out, pull = vjp(run, *tensors)
    same(pull(2 * out), wanted)


@pytest.mark.parametrize("kind", ["plain", "fused", "temporal"])
def test_vmap_is_a_loop(kind, case):
    run, tensors = inputs(kind, case)
    generator = torch.Generator().manual_seed(1)
    # The first tensor is shared, the others are mapped over different axes.
    dims = (None, *((i % 3) for i in range(len(tensors) - 1)))
    stacks = [
        tensor if dim is None else torch.stack([tensor, tensor * torch.rand(1, generator=generator).item()], dim)
        for tensor, dim in zip(tensors, dims, strict=True)
    ]

    def pick(place):
        return [stack if dim is None else stack.select(dim, place) for stack, dim in zip(stacks, dims, strict=True)]

    same([vmap(run, in_dims=dims)(*stacks)], [torch.stack([run(*pick(0)), run(*pick(1))])])
    # A gradient for each of them, also of the tensor that they share.
    derived = grad(lambda *t: run(*t).square().sum(), argnums=tuple(range(len(tensors))))
    wanted = [torch.stack(pair) for pair in zip(derived(*pick(0)), derived(*pick(1)), strict=True)]
    same(vmap(derived, in_dims=dims)(*stacks), wanted)
    # The gradient through vmap.
    total = grad(lambda *t: vmap(run, in_dims=dims)(*t).square().sum(), argnums=0)(*stacks)
    same([total], [wanted[0].sum(0)])


def test_vmap_of_vmap(case):
    run, tensors = inputs("fused", case)
    twice = [tensor.expand(2, 3, *tensor.shape) * torch.rand(2, 3, *[1] * tensor.ndim) for tensor in tensors]
    wanted = torch.stack([torch.stack([run(*(t[i, j] for t in twice)) for j in range(3)]) for i in range(2)])
    same([vmap(vmap(run))(*twice)], [wanted])


def test_frame_index_is_mapped(case):
    made = case(F=2, masked=True)
    value, locations, weights = made.value, made.locations, made.weights
    choices = torch.tensor([[[0, 1]], [[2, -1]], [[-1, -1]]]).expand(3, 5, 2)
    run = lambda index: st_deform_attn(value, SHAPES, locations, weights, index)  # noqa: E731
    same([vmap(run)(choices)], [torch.stack([run(index) for index in choices])])
    assert not run(choices[2]).any()


def test_jacrev_and_second_derivatives(case):
    made = case(B=1, T=1, Q=2, H=1, D=2, K=1, shapes=SHAPES)
    value, locations, weights = made.value[:, 0], made.locations[:, :, :, 0], made.weights[:, :, :, 0]
    run = lambda v, w: ms_deform_attn(v, SHAPES, locations, w)  # noqa: E731
    same([jacrev(run, argnums=1)(value, weights)], [torch.autograd.functional.jacobian(run, (value, weights))[1]])
    # Linear in the values and in the weights: the second derivative is the mixed one.
    energy = lambda v, w: run(v, w).square().sum() / 2  # noqa: E731
    wanted = torch.autograd.functional.hessian(energy, (value, weights))
    got = jacrev(jacrev(energy, argnums=(0, 1)), argnums=(0, 1))(value, weights)
    for ours, theirs in zip(got, wanted, strict=True):
        same(ours, theirs)
    assert wanted[0][1].any()


def test_forward_mode_inside_another_transform_is_refused(case):
    made = case(B=1, T=1, Q=2, H=1, D=2, K=1)
    energy = lambda w: st_deform_attn(made.value, SHAPES, made.locations, w).square().sum()  # noqa: E731
    with pytest.raises(ValueError, match=r"no forward-mode derivative inside other transforms; .*use_backend"):
        hessian(energy)(made.weights)


def test_what_the_refusal_names_works(case, monkeypatch):
    from stdetr.ops import reference

    monkeypatch.setattr(attention, "plain", reference)
    made = case(B=1, T=1, Q=2, H=1, D=2, K=1)
    energy = lambda w: st_deform_attn(made.value, SHAPES, made.locations, w).square().sum()  # noqa: E731
    with use_backend("reference"):
        got = hessian(energy)(made.weights)
    same([got], [torch.autograd.functional.hessian(energy, made.weights)])
    _, tangent = jvp(energy, (made.weights,), (made.weights,))
    torch.testing.assert_close(tangent, 2 * energy(made.weights))
