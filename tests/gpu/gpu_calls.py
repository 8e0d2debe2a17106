"""Calls of the CUDA operators on the problems of tests/cuda_ops/kernel_cases.py."""

from __future__ import annotations

import torch
from harness.host import FUSED, Gradients, Inputs
from kernel_cases import answer, error, frame_logits_error, log_sum_exp, random_grad_out, rounding
from torch import Tensor

# Largest error relative to the largest number.
FORWARD = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 1e-2, torch.bfloat16: 1e-2}
BACKWARD = {torch.float32: 1e-4, torch.float64: 1e-11, torch.float16: 1e-2, torch.bfloat16: 1e-2}


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
        return value, _on_gpu(inputs.reference), locations, weights, *_extra(inputs)
    tables = (_on_gpu(inputs.offset_table), _on_gpu(inputs.logit_table), _on_gpu(inputs.dt))
    extra = _extra(inputs)
    return value, _on_gpu(inputs.reference), locations, _on_gpu(inputs.velocity), weights, *tables, *extra


def _extra(inputs: Inputs) -> tuple:
    options = (inputs.frame_index, inputs.valid_ratios, inputs.frame_logits)
    return *map(_on_gpu, options), flat(inputs)


def operator(mode: str, which: str):
    return getattr(torch.ops.stdetr, f"st_deform_attn_{which}" if mode == "plain" else f"st_deform_attn_{mode}_{which}")


def forward(inputs: Inputs) -> tuple[Tensor, Tensor | None]:
    found = operator(inputs.mode, "forward")(*arguments(inputs))
    return found if inputs.mode in FUSED else (found, None)


def flags(mode: str, deterministic: bool, reference_gradient: bool = True) -> tuple[bool, ...]:
    """The backward operator's last arguments."""
    return (reference_gradient, deterministic) if mode == "temporal" else (deterministic,)


# What the backward operators return.
RETURNED = {
    "plain": ("value", "locations", "weights"),
    "fused": ("value", "reference", "locations", "weights", "frame_logits"),
    "temporal": (
        *("value", "reference", "locations", "velocity", "weights", "offset_table", "logit_table", "frame_logits"),
    ),
}


def backward(
    inputs: Inputs, grad_out: Tensor, deterministic: bool = False, reference_gradient: bool = True
) -> Gradients:
    """Gradients on the CPU; ``reference_gradient`` is the temporal operator's."""
    mode = inputs.mode
    saved = forward(inputs) if mode in FUSED else ()
    last = flags(mode, deterministic, reference_gradient)
    found = operator(mode, "backward")(grad_out.cuda(), *saved, *arguments(inputs), *last)
    grads = {name: grad.cpu() for name, grad in zip(RETURNED[mode], found, strict=True)}
    if inputs.frame_logits is None and grads.pop("frame_logits", torch.empty(0)).numel():
        raise AssertionError("a gradient of frame_logits, which are not there")
    return Gradients(**grads)


def _poison() -> None:
    """Leaves NaN in the memory that the next outputs will get."""
    blocks = [
        torch.full((size,), torch.nan, device="cuda") for size in (1 << 10, 1 << 14, 1 << 18, 1 << 22) for _ in "ab"
    ]
    del blocks


def check(inputs: Inputs, deterministic: bool = False) -> None:
    """Output, log-sum-exp and all gradients agree with float64."""
    dtype, grad_out = inputs.value.dtype, random_grad_out(inputs)
    wanted, gradients = answer(inputs, grad_out)
    assert gradients is not None
    _poison()
    out, lse = forward(inputs)
    assert error(out.cpu(), wanted) < FORWARD[dtype]
    assert (lse is not None) == (inputs.mode in FUSED)
    if lse is not None:
        assert error(lse.cpu(), log_sum_exp(inputs)) < 1e-5
    _poison()
    found = backward(inputs, grad_out, deterministic)
    for name in RETURNED[inputs.mode]:
        if name == "frame_logits":
            continue
        bar = BACKWARD[dtype] * rounding(inputs, name)
        assert error(getattr(found, name), getattr(gradients, name)) < bar, name
    if inputs.frame_logits is not None:
        assert frame_logits_error(found, gradients) < BACKWARD[dtype]
