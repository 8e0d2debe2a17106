"""The temporal op: its kernels against the fused op's reference on offsets and logits formed by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from stdetr.bench.allocations import saved_bytes
from stdetr.ops import st_deform_attn_fused, st_deform_attn_temporal, use_backend
from stdetr.ops.reference import table_rows
from stdetr.ops.temporal import use_temporal_kernel

NAMES = ["value", "reference", "offsets", "velocity", "logits", "offset_table", "logit_table"]
BARS = {
    torch.float64: (1e-13, 1e-12),
    torch.float32: (1e-5, 1e-4),
    torch.bfloat16: (1e-2, 1e-2),
    torch.float16: (1e-2, 1e-2),
}


@dataclass
class Given:
    inputs: list  # in the order of NAMES
    dt: torch.Tensor
    frame_index: torch.Tensor | None
    valid_ratios: torch.Tensor
    grad_out: torch.Tensor
    shapes: list

    def run(self, *inputs):
        value, *rest = inputs
        return st_deform_attn_temporal(
            value,
            self.shapes,
            *rest,
            dt=self.dt.to(rest[0].dtype),
            frame_index=self.frame_index,
            valid_ratios=self.valid_ratios.to(rest[0].dtype),
        )

    def flat(self):
        """Arguments of the operator itself."""
        shapes = [size for pair in self.shapes for size in pair]
        return (*self.inputs, self.dt.to(self.inputs[1].dtype), self.frame_index, self.valid_ratios, None, shapes)


@pytest.fixture
def temporal(case):
    def make(*, R=4, dtype=torch.float64, seed=0, **sizes):
        c = case(dtype=dtype, seed=seed, **sizes)
        made = torch.Generator().manual_seed(seed)
        coord = c.reference.dtype
        entries = c.offsets.shape[2:3] + c.offsets.shape[4:]  # H,L,K,2
        normal = lambda *size: torch.randn(*size, generator=made, dtype=torch.float64)  # noqa: E731
        inputs = [
            c.value,
            c.reference,
            c.offsets[:, :, :, 0].contiguous(),
            (0.2 * normal(*c.offsets[:, :, :, 0].shape)).to(dtype),
            c.logits[:, :, :, 0].contiguous(),
            (0.5 * normal(R, *entries)).to(coord),
            normal(R, *entries[:-1]).to(coord),
        ]
        shape = c.offsets.shape[:2] + c.offsets.shape[3:4]  # B,Q,F
        dt = torch.randint(-R, R + 1, shape, generator=made).double()  # clamped at both ends, often 0
        return Given(inputs, dt, c.frame_index, c.valid_ratios, c.grad_out, c.shapes)

    return make


def leaves(inputs, dtype=None):
    return [t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in inputs]


def by_loops(g):
    """Offsets and logits of every frame, from the definition, entry by entry; then the fused op's reference."""
    value, reference, offsets, velocity, logits, offset_table, logit_table = (t.double() for t in g.inputs)
    B, Q, H, L, K = logits.shape
    F, R = g.dt.shape[2], len(logit_table)
    frame_offsets, frame_logits = torch.zeros(B, Q, H, F, L, K, 2).double(), torch.zeros(B, Q, H, F, L, K).double()
    for b in range(B):
        for q in range(Q):
            for f in range(F):
                dt = g.dt[b, q, f].item()
                frame_offsets[b, q, :, f] = offsets[b, q] + dt * velocity[b, q]
                frame_logits[b, q, :, f] = logits[b, q]
                distance = max(-R // 2, min(R // 2, round(dt)))
                if distance:
                    row = distance + R // 2 - (distance > 0)
                    frame_offsets[b, q, :, f] += offset_table[row]
                    frame_logits[b, q, :, f] += logit_table[row]
    ratios = g.valid_ratios.double()
    with use_backend("reference"):
        return st_deform_attn_fused(value, g.shapes, reference, frame_offsets, frame_logits, g.frame_index, ratios)


def test_rows_of_the_tables():
    row, has = table_rows(torch.tensor([-9.0, -2.0, -1.0, -0.4, 0.0, 0.5, 1.0, 1.5, 2.0, 9.0, float("nan")]), 4)
    assert has.tolist() == [True, True, True, False, False, False, True, True, True, True, False]
    assert row[has].tolist() == [0, 0, 1, 2, 3, 3, 3]


@pytest.mark.parametrize("backend", ["kernels", "reference"])
@pytest.mark.parametrize("size", [2, 4])
def test_the_definition(kernels, temporal, backend, size):
    g = temporal(F=4, H=3, Q=7, K=3, D=8, masked=True, reference_size=size)
    with use_backend(backend):
        torch.testing.assert_close(g.run(*g.inputs), by_loops(g), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("D", [32, 12])
@pytest.mark.parametrize("Q", [11, 131], ids=["few", "many"])  # few: gradients in place; many: staged
@pytest.mark.parametrize("size", [2, 4])
def test_agreement(kernels, temporal, error, dtype, D, Q, size):
    g = temporal(B=2, T=3, F=4, H=3, D=D, Q=Q, K=3, masked=True, dtype=dtype, reference_size=size, seed=D + size)
    g.frame_index[:, 3] = -1
    mine, exact = leaves(g.inputs), leaves(g.inputs, torch.float64)
    out = g.run(*mine)
    got = torch.autograd.grad(out, mine, g.grad_out)
    with use_backend("reference"):
        truth = g.run(*exact)
    wanted = torch.autograd.grad(truth, exact, g.grad_out.double())
    forward, backward = BARS[dtype]
    assert error(out, truth) < forward
    for name, one, other in zip(NAMES, got, wanted, strict=True):
        assert one.shape == other.shape
        assert error(one, other) < backward, name
    assert not out[:, 3].any()  # all frames masked


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    B=st.sampled_from([1, 3]),
    T=st.sampled_from([1, 2, 5]),
    F=st.sampled_from([1, 3, 7]),
    H=st.sampled_from([1, 5]),
    D=st.sampled_from([1, 13, 16, 32]),
    Q=st.sampled_from([0, 1, 17, 101]),
    K=st.sampled_from([1, 4, 67]),
    R=st.sampled_from([0, 2, 6]),
    shapes=st.lists(st.tuples(st.integers(1, 11), st.integers(1, 11)), min_size=1, max_size=4),
    size=st.sampled_from([2, 4]),
    masked=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_random_shapes(kernels, temporal, B, T, F, H, D, Q, K, R, shapes, size, masked, seed):
    sizes = {"B": B, "T": T, "F": F, "H": H, "D": D, "Q": Q, "K": K, "R": R}
    g = temporal(**sizes, shapes=shapes, reference_size=size, masked=masked, seed=seed)
    results = []
    for backend in ("kernels", "reference"):
        mine = leaves(g.inputs)
        with use_backend(backend):
            out = g.run(*mine)
            results.append((out, *torch.autograd.grad(out, mine, g.grad_out)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_all_distances_zero_is_the_fused_op(kernels, temporal):
    g = temporal(T=1, F=1, D=32)
    g.dt.zero_()
    value, reference, offsets, _, logits, _, _ = g.inputs
    fused = st_deform_attn_fused(
        value, g.shapes, reference, offsets[:, :, :, None], logits[:, :, :, None], None, g.valid_ratios
    )
    assert torch.equal(g.run(*g.inputs), fused)


def test_points_that_do_not_count_get_no_gradient(kernels, temporal):
    g = temporal(F=3, D=16, masked=False)
    g.inputs[2][0, 0] = float("nan")
    g.inputs[2][0, 1] = float("inf")
    g.inputs[2][0, 2] = 1e6
    results = []
    for backend in ("kernels", "reference"):
        mine = leaves(g.inputs)
        with use_backend(backend):
            out = g.run(*mine)
            results.append((out, *torch.autograd.grad(out, mine, g.grad_out)))
    for one, other in zip(*results, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert not results[0][0][0, :3].any()


@pytest.mark.parametrize("size", [2, 4])
def test_infinite_distances_count_for_nothing_and_leave_the_gradients_finite(kernels, temporal, size):
    g = temporal(F=3, D=8, R=2, masked=False, reference_size=size)
    g.dt = g.dt.double()
    g.dt[0, 0, 1], g.dt[0, 1, 0], g.dt[1, :, 2] = float("inf"), -float("inf"), float("nan")
    results = []
    for inside in (("cpu",), ()):
        mine = leaves(g.inputs)
        with use_temporal_kernel(*inside):
            out = g.run(*mine)
            results.append((out, *torch.autograd.grad(out, mine, g.grad_out)))
    for kernel, composed in zip(*results, strict=True):
        assert composed.isfinite().all()
        torch.testing.assert_close(kernel, composed, rtol=1e-10, atol=1e-10)


def test_opcheck_compile_and_export(kernels, temporal):
    g = temporal(F=2, D=8, dtype=torch.float32, reference_size=4)
    inputs = leaves(g.inputs)
    rest = g.flat()[len(inputs) :]
    opcheck(kernels.st_deform_attn_temporal_forward, (*inputs, *rest))
    out, lse = (t.detach() for t in kernels.st_deform_attn_temporal_forward(*inputs, *rest))
    for wants_reference in (True, False):
        arguments = (*leaves([g.grad_out]), out, lse, *inputs, *rest, wants_reference, True)
        opcheck(kernels.st_deform_attn_temporal_backward, arguments)
    torch._dynamo.reset()
    compiled = torch.compile(g.run, fullgraph=True, backend="aot_eager")
    results = []
    for call in (g.run, compiled):
        out = call(*inputs)
        results.append((out, *torch.autograd.grad(out, inputs, g.grad_out)))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)

    class Attention(torch.nn.Module):
        def forward(self, *given):
            return g.run(*given)

    program = torch.export.export(Attention(), tuple(g.inputs), strict=True)
    assert any("st_deform_attn_temporal_forward" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*g.inputs), g.run(*g.inputs))


def test_autocast_keeps_reference_tables_and_distances(kernels, temporal):
    g = temporal(D=16, dtype=torch.float32)
    mine = leaves(g.inputs)
    with torch.autocast("cpu", torch.bfloat16):
        out = g.run(*mine)
    assert out.dtype == torch.bfloat16
    grads = torch.autograd.grad(out, mine, g.grad_out.bfloat16())
    assert [grad.dtype for grad in grads] == [torch.float32] * 7
    halved = [
        t.bfloat16() if name in ("value", "offsets", "velocity", "logits") else t
        for name, t in zip(NAMES, g.inputs, strict=True)
    ]
    assert torch.equal(out, g.run(*halved))


def test_derivatives(kernels, temporal):
    g = temporal(B=1, Q=2, T=2, F=3, H=1, D=2, K=1, R=2, reference_size=4, masked=True, shapes=[(3, 2)])
    inputs = leaves(g.inputs)
    assert torch.autograd.gradcheck(g.run, inputs)
    assert torch.autograd.gradgradcheck(g.run, inputs)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2, 5), tuple(range(7))])
def test_only_what_needs_a_gradient_gets_one(kernels, temporal, wanted):
    g = temporal(dtype=torch.float32)
    inputs = [t.clone().requires_grad_(place in wanted) for place, t in enumerate(g.inputs)]
    g.run(*inputs).backward(g.grad_out)
    assert [place for place, t in enumerate(inputs) if t.grad is not None] == list(wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitwise_equal_at_any_number_of_threads(kernels, temporal, dtype):
    g = temporal(B=2, T=3, F=5, H=4, D=32, Q=301, K=4, masked=True, dtype=dtype)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            mine = leaves(g.inputs)
            out = g.run(*mine)
            results.append((out, *torch.autograd.grad(out, mine, g.grad_out)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_the_graph_keeps_does_not_grow_with_the_frames_sampled(kernels, temporal):
    kept = {}
    for frames in (1, 4):
        g = temporal(T=2, F=frames, Q=50, D=8, masked=True, dtype=torch.float32)
        inputs = leaves(g.inputs)
        kept[frames] = saved_bytes(lambda g=g, inputs=inputs: g.run(*inputs))
    grown = 2 * 50 * 3 * 4 * (2 + 1 + 1)  # three more frames of reference, dt and frame_index
    assert kept[4] - kept[1] <= grown


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"velocity": lambda t: t[:, :, :1]}, "velocity must have shape .B,Q,H,L,K,2. = .2, 5, 2, 2, 2, 2."),
        ({"offset_table": lambda t: t[:2]}, "offset_table must have shape .R,H,L,K,2. = .4, 2, 2, 2, 2."),
        (
            {"offset_table": lambda t: t[:3], "logit_table": lambda t: t[:3]},
            "logit_table must have an even number of rows R .past and future., got 3",
        ),
        ({"logit_table": lambda t: t.half()}, "logit_table must be float64 for value of float64, got float16"),
        ({"logits": lambda t: t.float()}, "logits must be float64 for value of float64"),
        ({"reference": lambda t: t[..., :1]}, "reference must have shape"),
        ({"offsets": lambda t: t[0]}, "offsets must have shape .B,Q,H,L,K,2., got"),
    ],
)
def test_mistakes_name_the_argument(temporal, change, text):
    g = temporal()
    inputs = [change.get(name, lambda t: t)(t) for name, t in zip(NAMES, g.inputs, strict=True)]
    dt, ratios = g.dt, g.valid_ratios
    with pytest.raises(ValueError, match=text):
        st_deform_attn_temporal(inputs[0], g.shapes, *inputs[1:], dt=dt, frame_index=g.frame_index, valid_ratios=ratios)
