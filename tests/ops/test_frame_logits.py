"""``frame_logits`` of the fused and the temporal op: the same as adding them to the logits, in every respect."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.library import opcheck

from stdetr.ops import st_deform_attn_fused, st_deform_attn_temporal, use_backend

FORMS, BACKENDS = ("fused", "temporal"), ("kernels", "reference")
BARS = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}


@dataclass
class Given:
    form: str
    inputs: list  # differentiable, frame_logits B,Q,H,F last
    grad_out: torch.Tensor
    shapes: list
    frame_index: torch.Tensor | None
    valid_ratios: torch.Tensor
    dt: torch.Tensor

    def run(self, *inputs):
        value, *rest, frame_logits = inputs
        options = {"frame_index": self.frame_index, "frame_logits": frame_logits}
        options["valid_ratios"] = self.valid_ratios.to(rest[0].dtype)
        if self.form == "fused":
            return st_deform_attn_fused(value, self.shapes, *rest, **options)
        return st_deform_attn_temporal(value, self.shapes, *rest, self.dt, **options)

    def flat(self):
        """Arguments of the operator itself."""
        *rest, frame_logits = self.inputs
        dt = () if self.form == "fused" else (self.dt.to(rest[1].dtype),)
        shapes = [size for pair in self.shapes for size in pair]
        return (*rest, *dt, self.frame_index, self.valid_ratios.to(rest[1].dtype), frame_logits, shapes)


@pytest.fixture
def make(case):
    def build(form, *, dtype=torch.float64, seed=0, R=4, **sizes):
        c = case(dtype=dtype, seed=seed, **sizes)
        made = torch.Generator().manual_seed(seed)
        normal = lambda *size: torch.randn(*size, generator=made, dtype=torch.float64)  # noqa: E731
        coord = c.reference.dtype
        frame_logits = (2 * normal(*c.logits.shape[:4])).to(coord)
        offsets, logits = c.offsets, c.logits
        dt = torch.randint(-R, R + 1, c.reference.shape[:3], generator=made).double()
        inputs = [c.value, c.reference, offsets, logits]
        if form == "temporal":
            offsets, logits = offsets[:, :, :, :1].sum(3), logits[:, :, :, :1].sum(3)  # zeros where F = 0
            entries = offsets.shape[2:]
            tables = (0.5 * normal(R, *entries)).to(coord), normal(R, *entries[:-1]).to(coord)
            inputs = [c.value, c.reference, offsets, (0.2 * normal(*offsets.shape)).to(dtype), logits, *tables]
        return Given(form, [*inputs, frame_logits], c.grad_out, c.shapes, c.frame_index, c.valid_ratios, dt)

    return build


def leaves(inputs, dtype=None):
    return [t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in inputs]


def results(g, backend, inputs=None, **options):
    """Output and all gradients."""
    mine = leaves(g.inputs if inputs is None else inputs)
    with use_backend(backend):
        out = g.run(*mine)
        return [out, *torch.autograd.grad(out, mine, g.grad_out.to(out.dtype), **options)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [2, 4])
def test_they_are_added_to_the_logits_of_their_frame(kernels, make, backend, size):
    g = make("fused", F=4, H=3, D=8, K=3, masked=True, reference_size=size)
    out, *grads = results(g, backend)
    *others, logits, frame_logits = g.inputs
    added = results(g, backend, [*others, logits + frame_logits[..., None, None], torch.zeros_like(frame_logits)])
    for one, other in zip((out, *grads), added, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads[-1], grads[-2].sum((-1, -2)), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(out, results(g, backend, [*others, logits, torch.zeros_like(frame_logits)])[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("D", [32, 12])
@pytest.mark.parametrize("Q", [11, 131], ids=["few", "many"])  # few: gradients in place; many: staged
def test_agreement(kernels, make, error, form, dtype, D, Q):
    g = make(form, B=2, T=3, F=4, H=3, D=D, Q=Q, K=3, masked=True, dtype=dtype, reference_size=4, seed=D)
    g.frame_index[:, 3] = -1
    found = results(g, "kernels")
    wanted = results(g, "reference", [t.double() for t in g.inputs])
    for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert one.shape == other.shape
        assert error(one, other) < BARS[dtype], place
    assert found[-1].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    masked = (g.frame_index < 0)[:, :, None].expand_as(found[-1])
    assert not found[-1][masked].any() and found[-1][~masked].any()
    assert not found[0][:, 3].any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_minus_infinity_takes_a_frame_out(kernels, make, form, backend):
    g = make(form, F=3, D=16)
    for frames in (slice(1, 2), slice(None)):
        g.frame_index = torch.arange(3).repeat(2, 5, 1)
        taken = g.inputs[-1].clone()
        taken[..., frames] = -torch.inf
        found = results(g, backend, [*g.inputs[:-1], taken])
        g.frame_index[..., frames] = -1
        for one, other in zip(found, results(g, backend), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [{"Q": 0}, {"K": 0}, {"F": 0, "masked": True}, {"B": 0}])
def test_empty(kernels, make, form, backend, sizes):
    g = make(form, **sizes)
    found = results(g, backend, allow_unused=True, materialize_grads=True)
    assert found[-1].shape == g.inputs[-1].shape
    assert not any(t.any() for t in found)


@pytest.mark.parametrize("form", FORMS)
def test_derivatives(kernels, make, form):
    g = make(form, B=1, Q=2, T=2, F=3, H=1, D=2, K=1, R=2, reference_size=4, masked=True, shapes=[(3, 2)])
    inputs = leaves(g.inputs)
    assert torch.autograd.gradcheck(g.run, inputs)
    assert torch.autograd.gradgradcheck(g.run, inputs)
    tangents = tuple(torch.randn_like(t) for t in inputs)
    _, tangent = torch.func.jvp(g.run, tuple(g.inputs), tangents)
    rows = [torch.autograd.grad(row, inputs, retain_graph=True) for row in g.run(*inputs).flatten()]
    products = [sum((a * t).sum() for a, t in zip(grads, tangents, strict=True)) for grads in rows]
    torch.testing.assert_close(tangent.flatten(), torch.stack(products))


@pytest.mark.parametrize("form", FORMS)
def test_opcheck_compile_and_export(kernels, make, form):
    g = make(form, F=2, D=8, dtype=torch.float32, reference_size=4)
    g.inputs = leaves(g.inputs)
    forward, backward = (getattr(kernels, f"st_deform_attn_{form}_{way}") for way in ("forward", "backward"))
    opcheck(forward, g.flat())
    out, lse = (t.detach() for t in forward(*g.flat()))
    flags = (True,) if form == "fused" else (True, True)
    opcheck(backward, (*leaves([g.grad_out]), out, lse, *g.flat(), *flags))
    torch._dynamo.reset()
    compiled = torch.compile(g.run, fullgraph=True, backend="aot_eager")
    found = []
    for call in (g.run, compiled):
        out = call(*g.inputs)
        found.append((out, *torch.autograd.grad(out, g.inputs, g.grad_out)))
    for eager, traced in zip(*found, strict=True):
        torch.testing.assert_close(traced, eager)

    class Attention(torch.nn.Module):
        def forward(self, *given):
            return g.run(*given)

    inputs = tuple(t.detach() for t in g.inputs)
    program = torch.export.export(Attention(), inputs, strict=True)
    assert any(f"st_deform_attn_{form}_forward" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*inputs), g.run(*inputs))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_leaves_them_alone(kernels, make, form, backend):
    """1/512 more than 1 is lost in bfloat16; it decides which of two frames outweighs the other."""
    g = make(form, F=2, D=16, dtype=torch.float32)
    g.inputs[-1] = torch.tensor([1.0 + 2**-9, 1.0]).mul(2**9).expand_as(g.inputs[-1]).clone()
    mine = leaves(g.inputs)
    with use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        out = g.run(*mine)
    assert out.dtype == torch.bfloat16
    grads = torch.autograd.grad(out, mine, g.grad_out.bfloat16())
    assert all(grad.dtype == torch.float32 for grad in grads)
    with use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        equal = g.run(*mine[:-1], torch.full_like(mine[-1], 2.0**9))
    assert (out - equal).abs().max() > 0.05


@pytest.mark.parametrize("form", FORMS)
def test_only_they_need_a_gradient(kernels, make, form):
    g = make(form, dtype=torch.float32)
    last = g.inputs[-1].clone().requires_grad_()
    g.run(*g.inputs[:-1], last).backward(g.grad_out)
    assert torch.equal(last.grad, results(g, "kernels")[-1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitwise_equal_at_any_number_of_threads(kernels, make, form, dtype):
    g = make(form, B=2, T=3, F=5, H=4, D=32, Q=301, K=4, masked=True, dtype=dtype)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(results(g, "kernels"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t[..., :1], "frame_logits must have shape .B,Q,H,F. = .2, 5, 2, 3. .*got .2, 5, 2, 1."),
        (lambda t: t[0], "frame_logits must have shape .B,Q,H,F., got .5, 2, 3."),
        (lambda t: t.float(), "frame_logits must be float64 for value of float64, got float32"),
        (lambda t: t.tolist(), "frame_logits must be a tensor of shape .B,Q,H,F., got list"),
    ],
)
def test_mistakes_name_the_argument(make, form, change, text):
    g = make(form)
    with pytest.raises(ValueError, match=text) as caught:
        g.run(*g.inputs[:-1], change(g.inputs[-1]))
    assert "\n" not in str(caught.value)
