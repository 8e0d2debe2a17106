"""The kernels as citizens of PyTorch: opcheck, compile, export, autocast, second derivatives, determinism."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from stdetr.ops import registration as registered
from stdetr.ops import st_deform_attn, st_deform_attn_fused, st_deform_attn_temporal, use_backend

FLAT = [5, 7, 3, 2]


def leaf(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


@pytest.fixture
def small(kernels, case):
    return case(T=3, F=2, D=8, Q=5, dtype=torch.float32, reference_size=4)


def test_opcheck_plain(kernels, small):
    arguments = (*leaf(small.value, small.locations, small.weights), small.frame_index, FLAT)
    opcheck(kernels.st_deform_attn_forward, arguments)
    opcheck(kernels.st_deform_attn_backward, (*leaf(small.grad_out), *arguments, False))


def test_opcheck_fused(kernels, small):
    inputs = leaf(small.value, small.reference, small.offsets, small.logits)
    arguments = (*inputs, small.frame_index, small.valid_ratios, None, FLAT)
    opcheck(kernels.st_deform_attn_fused_forward, arguments)
    out, lse = (t.detach() for t in kernels.st_deform_attn_fused_forward(*arguments))
    opcheck(kernels.st_deform_attn_fused_backward, (*leaf(small.grad_out), out, lse, *arguments, True))


@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_compile_without_a_graph_break(small, backend):
    def run(value, reference, offsets, logits):
        return st_deform_attn_fused(value, small.shapes, reference, offsets, logits, small.frame_index)

    inputs = leaf(small.value, small.reference, small.offsets, small.logits)
    with use_backend(backend):
        torch._dynamo.reset()
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        results = []
        for call in (run, compiled):
            out = call(*inputs)
            results.append((out, *torch.autograd.grad(out, inputs, small.grad_out)))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)


def test_an_index_beyond_32_bits_is_not_narrowed_to_a_frame(kernels, small):
    """Compiled code cannot look at the index; 2^32 in 32 bits would be frame 0."""

    def run(index):
        return st_deform_attn(small.value, small.shapes, small.locations, small.weights, index)

    far = small.frame_index.long()
    masked = far.clone()
    far[0, :, 0], far[1, :, 0], masked[:, :, 0] = 2**32, -(2**32), -1
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()
    assert torch.equal(compiled(far), run(masked))
    with pytest.raises(ValueError, match="frame_index must lie in"):
        run(far)


def test_export_keeps_the_operator(small):
    class Attention(torch.nn.Module):
        def forward(self, value, reference, offsets, logits, index):
            return st_deform_attn_fused(value, small.shapes, reference, offsets, logits, index)

    inputs = (small.value, small.reference, small.offsets, small.logits, small.frame_index)
    program = torch.export.export(Attention(), inputs, strict=True)
    names = [str(node.target) for node in program.graph.nodes]
    assert any("st_deform_attn_fused_forward" in name for name in names)
    torch.testing.assert_close(program.module()(*inputs), Attention()(*inputs))
    with use_backend("reference"):
        program = torch.export.export(Attention(), inputs, strict=True)
    assert not any("stdetr" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_autocast_casts_all_but_the_reference(small, backend, monkeypatch):
    inputs = leaf(small.value, small.reference, small.offsets, small.logits)
    seen = []
    keep = registered.plain.st_deform_attn_fused_reference

    def watch(value, reference, offsets, logits, *rest):
        seen.append([t.dtype for t in (value, reference, offsets, logits)])
        return keep(value, reference, offsets, logits, *rest)

    monkeypatch.setattr(registered.plain, "st_deform_attn_fused_reference", watch)
    with use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        out = st_deform_attn_fused(inputs[0], small.shapes, *inputs[1:], small.frame_index)
    assert out.dtype == torch.bfloat16
    grads = torch.autograd.grad(out, inputs, small.grad_out.bfloat16())
    assert [g.dtype for g in grads] == [torch.float32] * 4
    # The same with the casts written out; a reference in bfloat16 would move points by up to 1/512 of the frame.
    value, offsets, logits = (inputs[i].detach().bfloat16() for i in (0, 2, 3))
    with use_backend(backend):
        by_hand = st_deform_attn_fused(value, small.shapes, small.reference, offsets, logits, small.frame_index)
    assert torch.equal(out, by_hand)
    if backend == "reference":
        assert seen[0] == [torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16]


def test_second_derivatives(kernels, case):
    c = case(B=1, Q=2, T=2, F=3, H=1, D=2, reference_size=4, masked=True, shapes=[(3, 2)])
    inputs = leaf(c.value, c.reference, c.offsets, c.logits)
    run = lambda *t: st_deform_attn_fused(t[0], c.shapes, *t[1:], c.frame_index)  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)
    inputs = leaf(c.value, c.locations, c.weights)
    run = lambda *t: st_deform_attn(t[0], c.shapes, *t[1:], c.frame_index)  # noqa: E731
    assert torch.autograd.gradgradcheck(run, inputs)


def _forms(c):
    """Each op with its differentiable arguments."""
    offsets, logits = c.offsets[:, :, :, 0], c.logits[:, :, :, 0]
    made = torch.Generator().manual_seed(3)
    tables = [torch.randn(4, *logits.shape[2:], *end, generator=made, dtype=torch.float64) for end in ((2,), ())]
    dt = torch.randint(-3, 4, c.reference.shape[:3], generator=made).double()
    return {
        "plain": (lambda v, x, w: st_deform_attn(v, c.shapes, x, w, c.frame_index), (c.value, c.locations, c.weights)),
        "fused": (
            lambda v, r, x, a: st_deform_attn_fused(v, c.shapes, r, x, a, c.frame_index, c.valid_ratios),
            (c.value, c.reference, c.offsets, c.logits),
        ),
        "temporal": (
            lambda v, r, *t: st_deform_attn_temporal(v, c.shapes, r, *t, dt, c.frame_index, c.valid_ratios),
            (c.value, c.reference, offsets, 0.1 * offsets, logits, *tables),
        ),
    }


@pytest.mark.parametrize("form", ["plain", "fused", "temporal"])
def test_forward_mode_derivatives(kernels, case, form):
    """A Jacobian times a vector equals the vector's products with the rows that backward gives."""
    run, inputs = _forms(case(B=1, Q=3, F=2, H=2, D=2, masked=True, reference_size=4, shapes=[(3, 2)]))[form]
    generator = torch.Generator().manual_seed(1)
    tangents = tuple(torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in inputs)
    out, tangent = torch.func.jvp(run, inputs, tangents)
    assert torch.equal(out, _with_reference(run, inputs))
    leaves = leaf(*inputs)
    rows = run(*leaves).flatten()
    pulled = [torch.autograd.grad(row, leaves, retain_graph=True) for row in rows]
    products = [sum((g * t).sum() for g, t in zip(grads, tangents, strict=True)) for grads in pulled]
    torch.testing.assert_close(tangent.flatten(), torch.stack(products))
    assert tangent.abs().min() > 0
    # One argument with a tangent is enough, also without torch.func.
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs[-1], tangents[-1])
        alone = torch.autograd.forward_ad.unpack_dual(run(*inputs[:-1], dual)).tangent
    zeros = tuple(torch.zeros_like(t) for t in tangents[:-1])
    torch.testing.assert_close(alone, torch.func.jvp(run, inputs, (*zeros, tangents[-1]))[1])


def _with_reference(run, inputs):
    with use_backend("reference"):
        return run(*inputs)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2, 3), (0, 1, 2, 3)])
def test_only_what_needs_a_gradient_gets_one(small, wanted):
    tensors = [small.value, small.reference, small.offsets, small.logits]
    inputs = [t.clone().requires_grad_(place in wanted) for place, t in enumerate(tensors)]
    st_deform_attn_fused(inputs[0], small.shapes, *inputs[1:], small.frame_index).backward(small.grad_out)
    assert [place for place, t in enumerate(inputs) if t.grad is not None] == list(wanted)


def test_deterministic_mode_reaches_the_backward_operator(small, monkeypatch):
    flags = []
    monkeypatch.setattr(registered, "_deterministic", lambda: flags.append(1) or True)
    (value,) = leaf(small.value)
    st_deform_attn(value, small.shapes, small.locations, small.weights, small.frame_index).sum().backward()
    assert flags == [1]
    monkeypatch.undo()
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        assert registered._deterministic() is True
    finally:
        torch.use_deterministic_algorithms(before)


def test_a_direct_call_with_wrong_shapes_is_refused_by_the_library(kernels, small):
    with pytest.raises(RuntimeError, match="weights has size"):
        kernels.st_deform_attn_forward(small.value, small.locations, small.weights[:, :4], small.frame_index, FLAT)
    with pytest.raises(RuntimeError, match="spatial_shapes"):
        kernels.st_deform_attn_forward(small.value, small.locations, small.weights, small.frame_index, [5, 7, 3, 3])
