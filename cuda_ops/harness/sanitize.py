"""A small run of every CUDA operator and schedule, for compute-sanitizer.

python cuda_ops/harness/sanitize.py [small]      small: the schedules of the shipped default, few queries

Shape legend
    B clips    T frames of a clip    S tokens of a frame    H heads    D channels per head
    Q queries  F sampled frames    L levels    K points per head, level and frame    R rows of the temporal tables
"""

from __future__ import annotations

import os
import sys

import torch
from torch import Tensor

import stdetr_ops

SHAPES = [(9, 13), (5, 7), (2, 3)]


def _finite(tensors: tuple[Tensor, ...], what: str) -> None:
    torch.cuda.synchronize()
    for tensor in tensors:
        if not tensor.isfinite().all():
            sys.exit(f"error: {what} gave a number that is not finite")


def run(queries: int, channels: int, dtype: torch.dtype, deterministic: bool) -> None:
    """Forward and backward of the three operators."""
    batch, clip, heads, frames, points = 2, 3, 2, 2, 3
    tokens = sum(height * width for height, width in SHAPES)
    flat = [size for pair in SHAPES for size in pair]
    real = torch.float64 if dtype == torch.float64 else torch.float32
    make = torch.randn

    value = make(batch, clip, tokens, heads, channels, device="cuda").to(dtype)
    index = torch.randint(-1, clip, (batch, queries, frames), device="cuda", dtype=torch.int32)
    grid = (batch, queries, heads, frames, len(SHAPES), points)
    locations, weights = torch.rand(*grid, 2, device="cuda").to(real), make(grid, device="cuda").to(real)
    grad = make(batch, queries, heads * channels, device="cuda").to(dtype)
    ops = torch.ops.stdetr
    out = ops.st_deform_attn_forward(value, locations, weights, index, flat)
    grads = ops.st_deform_attn_backward(grad, value, locations, weights, index, flat, deterministic)
    _finite((out, *grads), "st_deform_attn")

    for size in (2, 4):
        reference = torch.rand(batch, queries, frames, size, device="cuda").to(real)
        ratios = torch.rand(batch, len(SHAPES), 2, device="cuda").to(real)
        more = make(batch, queries, heads, frames, device="cuda").to(real) if size == 4 else None
        options = (index, ratios, more, flat)
        fused = (value, reference, make(*grid, 2, device="cuda").to(dtype), weights.to(dtype), *options)
        out, lse = ops.st_deform_attn_fused_forward(*fused)
        grads = ops.st_deform_attn_fused_backward(grad, out, lse, *fused, deterministic)
        _finite((out, *grads), "st_deform_attn_fused")
        offsets, velocity, logits = fused[2][:, :, :, 0], 0.1 * fused[2][:, :, :, 1], fused[3][:, :, :, 0]
        dt = torch.randint(-4, 5, (batch, queries, frames), device="cuda").to(real)
        for rows in (6, 160):  # sums of the tables in shared memory, and too many for it
            made = make(rows, heads, len(SHAPES), points, 3, device="cuda").to(real)
            tables = made[..., :2], made[..., 2]
            given = (value, reference, offsets, velocity, logits, *tables, dt, *options)
            out, lse = ops.st_deform_attn_temporal_forward(*given)
            grads = ops.st_deform_attn_temporal_backward(grad, out, lse, *given, size == 4, deterministic)
            _finite((out, *grads), "st_deform_attn_temporal")


def main() -> None:
    stdetr_ops.load("cuda")
    torch.manual_seed(0)
    if sys.argv[1:] == ["small"]:
        for queries, dtype in ((5, torch.bfloat16), (67, torch.float32)):
            run(queries, 32, dtype, deterministic=False)
        print("every operator ran and gave finite numbers")
        return
    for coarse in ("0", "2"):
        os.environ["STDETR_COARSE_LEVELS"] = coarse
        for queries in (5, 1201):
            for channels, dtype in ((32, torch.bfloat16), (32, torch.float32), (24, torch.float16), (5, torch.float32)):
                run(queries, channels, dtype, deterministic=False)
    del os.environ["STDETR_COARSE_LEVELS"]
    run(37, 32, torch.bfloat16, deterministic=True)
    run(37, 3, torch.float64, deterministic=True)
    print("every operator ran and gave finite numbers")


if __name__ == "__main__":
    main()
