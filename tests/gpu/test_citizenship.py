"""CUDA graphs, determinism, opcheck, compilation and autocast of the operators on a GPU.

Shape legend: see conftest.py.
"""

from __future__ import annotations

import pytest
import torch
from gpu_calls import RETURNED, arguments, backward, flags, operator
from harness.host import FUSED
from kernel_cases import Size, error, make
from torch import Tensor

from stdetr.ops import st_deform_attn_fused, st_deform_attn_temporal, use_backend
from stdetr.ops.temporal import use_temporal_kernel

MODES = ("plain", "fused", "temporal")


def _first(found: Tensor | tuple[Tensor, ...]) -> Tensor:
    return found if isinstance(found, Tensor) else found[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("deterministic", [False, True])
def test_cuda_graph(mode: str, deterministic: bool) -> None:
    """Forward and backward are captured without a host synchronisation, and replay on new contents."""
    inputs = make(mode, Size(queries=301, heads=8), torch.float32, seed=1)
    call = list(arguments(inputs))
    run, run_back = operator(mode, "forward"), operator(mode, "backward")
    grad_out = torch.randn_like(_first(run(*call)))

    def step() -> tuple[Tensor, ...]:
        found = run(*call)
        saved = found if mode in FUSED else ()
        return (_first(found), *run_back(grad_out, *saved, *call, *flags(mode, deterministic)))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    call[0].copy_(torch.randn_like(call[0]))
    grad_out.copy_(torch.randn_like(grad_out))
    graph.replay()
    torch.cuda.synchronize()
    for replayed, direct in zip(captured, step(), strict=True):
        assert error(replayed.cpu(), direct.cpu()) < 1e-5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deterministic_mode_repeats_bitwise(mode: str, dtype: torch.dtype) -> None:
    inputs = make(mode, Size(queries=2003, heads=4, levels=2), dtype, seed=2)
    grad_out = torch.randn(2, 2003, 4 * 32).to(dtype)
    first = backward(inputs, grad_out, deterministic=True)
    for _ in range(5):
        again = backward(inputs, grad_out, deterministic=True)
        for name in RETURNED[mode]:
            assert torch.equal(getattr(first, name), getattr(again, name)), name


@pytest.mark.parametrize("mode", MODES)
def test_opcheck(mode: str) -> None:
    inputs = make(mode, Size(queries=7), torch.float32, seed=3)
    call = [t.requires_grad_() if isinstance(t, Tensor) and t.is_floating_point() else t for t in arguments(inputs)]
    if mode == "fused" and isinstance(call[5], Tensor):
        call[5] = call[5].detach()
    if mode == "temporal":
        call[7] = call[7].detach()  # dt is data
    torch.library.opcheck(operator(mode, "forward").default, tuple(call))


def _fused_leaves(dtype: torch.dtype) -> tuple[list[Tensor], list[tuple[int, int]]]:
    inputs = make("fused", Size(queries=19), dtype, seed=4)
    tensors = (inputs.value, inputs.reference, inputs.locations, inputs.weights)
    return [t.cuda().requires_grad_() for t in tensors if t is not None], list(inputs.shapes)


def test_compiles_to_one_graph() -> None:
    leaves, shapes = _fused_leaves(torch.float32)

    def loss(value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return st_deform_attn_fused(value, shapes, reference, offsets, logits).square().sum()

    wanted = torch.autograd.grad(loss(*leaves), leaves)
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*leaves), leaves)
    for one, other in zip(found, wanted, strict=True):
        assert error(one.cpu(), other.cpu()) < 1e-4


def test_autocast_leaves_the_reference_alone() -> None:
    leaves, shapes = _fused_leaves(torch.float32)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = st_deform_attn_fused(leaves[0], shapes, *leaves[1:])
    assert out.dtype == torch.bfloat16
    with use_backend("reference"):
        wanted = st_deform_attn_fused(leaves[0], shapes, *leaves[1:])
    assert error(out.detach().cpu(), wanted.detach().cpu()) < 2e-2
    out.float().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.dtype == torch.float32 for leaf in leaves)


def test_runs_on_another_stream_in_order() -> None:
    leaves, shapes = _fused_leaves(torch.float32)
    wanted = st_deform_attn_fused(leaves[0], shapes, *leaves[1:])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        moved = leaves[0] * 2
        out = st_deform_attn_fused(moved, shapes, *leaves[1:])
    stream.synchronize()
    assert error(out.detach().cpu(), 2 * wanted.detach().cpu()) < 1e-5


def test_the_temporal_parameterisation_agrees_with_the_cpu() -> None:
    """PyTorch operations form offsets and logits before the fused kernel, or the kernel does; the CPU's does."""
    made = torch.Generator().manual_seed(0)
    normal = lambda *size: torch.randn(*size, generator=made)  # noqa: E731
    shapes = [(9, 7), (5, 4)]
    tensors = [normal(2, 3, 83, 4, 32), torch.rand(2, 37, 2, 4, generator=made), normal(2, 37, 4, 2, 4, 2)]
    tensors += [0.2 * normal(2, 37, 4, 2, 4, 2), normal(2, 37, 4, 2, 4), normal(4, 4, 2, 4, 2), normal(4, 4, 2, 4)]
    dt, index = torch.randint(-3, 4, (2, 37, 2), generator=made), torch.randint(-1, 3, (2, 37, 2), generator=made)
    results = []
    for device, inside in (("cpu", ("cpu",)), ("cuda", ()), ("cuda", ("cuda",))):
        leaves = [tensor.to(device).requires_grad_() for tensor in tensors]
        with use_temporal_kernel(*inside):
            out = st_deform_attn_temporal(
                leaves[0], shapes, *leaves[1:], dt=dt.to(device), frame_index=index.to(device)
            )
            grads = torch.autograd.grad(out.square().sum(), leaves)
        results.append([t.detach().cpu() for t in (out, *grads)])
    for cpu, composed, kernel in zip(*results, strict=True):
        assert error(composed, cpu) < 1e-4
        assert error(kernel, cpu) < 1e-4
