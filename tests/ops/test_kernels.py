"""The CPU kernels against the float64 reference, at every dtype, and their bitwise determinism."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stdetr.ops import st_deform_attn, st_deform_attn_fused, use_backend

# Bars of the op: relative error in the Euclidean norm, forward and backward.
BARS = {
    torch.float64: (1e-13, 1e-12),
    torch.float32: (1e-5, 1e-4),
    torch.bfloat16: (1e-2, 1e-2),
    torch.float16: (1e-2, 1e-2),
}


def off_the_grid(locations, shapes):
    """Moves locations that lie within 1e-3 pixels of a pixel centre: the slope jumps there."""
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=locations.dtype)[:, None]
    pixels = locations.double() * sizes - 0.5
    near = (pixels - pixels.round()).abs() < 1e-3
    return torch.where(near, locations + 5e-3 / sizes, locations)


def both(run, leaves, grad_out):
    """Output and gradients with the kernels, and in float64 with the reference."""
    mine = [t.detach().clone().requires_grad_() for t in leaves]
    out = run(*mine)
    got = (out, *torch.autograd.grad(out, mine, grad_out))
    exact = [t.detach().double().requires_grad_() for t in leaves]
    with use_backend("reference"):
        out = run(*exact)
    return got, (out, *torch.autograd.grad(out, exact, grad_out.double()))


def check(error, got, wanted, dtype, names):
    forward, backward = BARS[dtype]
    assert error(got[0], wanted[0]) < forward
    for name, one, other in zip(names, got[1:], wanted[1:], strict=True):
        assert one.shape == other.shape
        assert error(one, other) < backward, name


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("D", [16, 32, 64, 7, 40])
@pytest.mark.parametrize("Q", [11, 211], ids=["few", "many"])  # few: gradients in place; many: staged
def test_agreement(kernels, case, error, dtype, D, Q):
    c = case(B=2, T=3, F=4, H=3, D=D, Q=Q, K=3, shapes=[(9, 6), (4, 5)], masked=True, dtype=dtype, seed=D)
    run = lambda *t: st_deform_attn(t[0], c.shapes, *t[1:], c.frame_index)  # noqa: E731
    leaves = [c.value, off_the_grid(c.locations, c.shapes), c.weights]
    check(error, *both(run, leaves, c.grad_out), dtype, ["value", "locations", "weights"])


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("D", [32, 12])
def test_agreement_of_the_fused_op(kernels, case, error, dtype, size, D):
    c = case(F=4, H=3, D=D, Q=67, K=4, masked=True, dtype=dtype, reference_size=size, seed=size)
    c.frame_index[:, 3] = -1
    ratios = c.valid_ratios
    run = lambda *t: st_deform_attn_fused(t[0], c.shapes, *t[1:], c.frame_index, ratios.to(t[1].dtype))  # noqa: E731
    names = ["value", "reference", "offsets", "logits"]
    check(error, *both(run, [c.value, c.reference, c.offsets, c.logits], c.grad_out), dtype, names)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    B=st.sampled_from([1, 3]),
    T=st.sampled_from([1, 2, 5]),
    F=st.sampled_from([1, 3, 7]),
    H=st.sampled_from([1, 5]),
    D=st.sampled_from([1, 8, 13, 16, 32]),
    Q=st.sampled_from([1, 2, 17, 101]),
    K=st.sampled_from([1, 4, 67]),
    shapes=st.lists(st.tuples(st.integers(1, 11), st.integers(1, 11)), min_size=1, max_size=4),
    size=st.sampled_from([2, 4]),
    seed=st.integers(0, 1000),
)
def test_random_shapes(kernels, case, error, B, T, F, H, D, Q, K, shapes, size, seed):
    c = case(B=B, T=T, F=F, H=H, D=D, Q=Q, K=K, shapes=shapes, masked=True, seed=seed, reference_size=size)
    run = lambda *t: st_deform_attn_fused(t[0], shapes, *t[1:], c.frame_index)  # noqa: E731
    got, wanted = both(run, [c.value, c.reference, c.offsets, c.logits], c.grad_out)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    run = lambda *t: st_deform_attn(t[0], shapes, *t[1:], c.frame_index)  # noqa: E731
    got, wanted = both(run, [c.value, c.locations, c.weights], c.grad_out)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitwise_equal_at_any_number_of_threads(kernels, case, dtype):
    c = case(B=2, T=3, F=5, H=4, D=32, Q=301, K=4, shapes=[(13, 11), (7, 5)], masked=True, dtype=dtype)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            leaves = [t.clone().requires_grad_() for t in (c.value, c.reference, c.offsets, c.logits)]
            out = st_deform_attn_fused(leaves[0], c.shapes, *leaves[1:], c.frame_index)
            results.append((out, *torch.autograd.grad(out, leaves, c.grad_out)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


_PROBE = """
import sys, torch, stdetr_ops
from stdetr.ops import st_deform_attn
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for D in (16, 32, 64, 9):
        value = torch.randn(2, 2, 30, 2, D).to(dtype).requires_grad_()
        precise = torch.float64 if dtype == torch.float64 else torch.float32
        locations = torch.rand(2, 90, 2, 2, 1, 3, 2, dtype=precise).requires_grad_()
        weights = torch.rand(2, 90, 2, 2, 1, 3, dtype=precise).requires_grad_()
        out = st_deform_attn(value, [(5, 6)], locations, weights)
        grads = torch.autograd.grad(out.float().square().sum(), (value, locations, weights))
        print(dtype, D, *(f"{t.double().norm().item():.9e}" for t in (out, *grads)))
print("isa", stdetr_ops.cpu_isa())
"""


def _probe(isa):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"STDETR_CPU_ISA": isa} if isa else {})}
    return subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, env=environment, check=False)


def test_instruction_sets_agree(kernels):
    """The portable vectors against the ones that this processor chose."""
    chosen, portable = _probe(None), _probe("baseline")
    assert portable.stdout.splitlines()[-1] == "isa baseline", portable.stderr
    for one, other in zip(chosen.stdout.splitlines()[:-1], portable.stdout.splitlines()[:-1], strict=True):
        first, second = one.split(), other.split()
        assert first[:2] == second[:2]
        bar = 1e-12 if first[0] == "torch.float64" else (1e-5 if first[0] == "torch.float32" else 1e-3)
        assert [float(x) for x in first[2:]] == pytest.approx([float(x) for x in second[2:]], rel=bar)


def test_an_unknown_instruction_set_is_refused(kernels):
    done = _probe("sse9")
    assert done.returncode != 0
    assert "STDETR_CPU_ISA=sse9" in done.stderr
    assert done.stdout == ""
