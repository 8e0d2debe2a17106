"""Calls of the CUDA operators on the problems of tests/cuda_ops/kernel_cases.py."""

from __future__ import annotations

import torch
from harness.host import Gradients, Inputs
from torch import Tensor


def flat(inputs: Inputs) -> list[int]:
    """spatial_shapes as the operators take them: h0, w0, h1, w1, ..."""
    return [size for pair in inputs.shapes for size in pair]


def _on_gpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cuda()


def arguments(inputs: Inputs) -> tuple:
    """Arguments of the forward operator, on the GPU."""
    value, locations, weights = inputs.value.cuda(), inputs.locations.cuda(), inputs.weights.cuda()
    if inputs.mode == "plain":
        return value, locations, weights, _on_gpu(inputs.frame_index), flat(inputs)
    if inputs.mode == "fused":
        extra = (_on_gpu(inputs.frame_index), _on_gpu(inputs.valid_ratios), flat(inputs))
        return value, _on_gpu(inputs.reference), locations, weights, *extra
    return value, locations, weights, _on_gpu(inputs.tau), _on_gpu(inputs.frame_mask), flat(inputs)


def _name(mode: str) -> str:
    return {"plain": "st_deform_attn", "fused": "st_deform_attn_fused", "continuous": "st_deform_attn_continuous"}[mode]


def operator(mode: str, which: str):
    return getattr(torch.ops.stdetr, f"{_name(mode)}_{which}")


def forward(inputs: Inputs) -> tuple[Tensor, Tensor | None]:
    found = operator(inputs.mode, "forward")(*arguments(inputs))
    return found if inputs.mode == "fused" else (found, None)


def backward(inputs: Inputs, grad_out: Tensor, deterministic: bool = False) -> Gradients:
    """Gradients on the CPU."""
    saved = forward(inputs) if inputs.mode == "fused" else ()
    found = operator(inputs.mode, "backward")(grad_out.cuda(), *saved, *arguments(inputs), deterministic)
    found = [tensor.cpu() for tensor in found]
    if inputs.mode == "plain":
        return Gradients(*found, reference=None, tau=None)
    if inputs.mode == "fused":
        value, reference, offsets, logits = found
        return Gradients(value, offsets, logits, reference, None)
    value, locations, weights, tau = found
    return Gradients(value, locations, weights, None, tau)
