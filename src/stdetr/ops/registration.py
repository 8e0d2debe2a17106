"""Fake kernels and derivatives of the operators ``torch.ops.stdetr.*`` that the stdetr-ops libraries define.

Shape legend
    B clips    T frames    S tokens of a frame    H heads    D channels per head    Q queries
    F sampled frames    L levels    K points per head, level and frame

First derivatives are operators of their own, so that compilers and exporters see them; their derivatives go through the
PyTorch reference.  Schemas and shapes: cuda_ops/csrc/common/SCHEMA.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import register_fake

from stdetr.ops import reference as plain
from stdetr.ops.reference import accumulation_dtype, form_samples, reference_at
from stdetr.ops.transforms import register_autograd, transforms_active

Grads = tuple[Tensor | None, ...]


def _pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat[0::2], flat[1::2], strict=True))


def _second(
    forward: Callable[..., Tensor], inputs: Sequence[Tensor], grad_out: Tensor, upstream: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Derivative of the first derivative: for grad_out and each of ``inputs``, through the reference.

    ``upstream`` holds the gradient of each of the first derivatives, or None.
    """
    if transforms_active():
        # What torch.func transforms may not require gradients itself; without transforms, its vjp cannot be compiled
        # with dynamic shapes by torch 2.11.
        def derive(grad_out: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            return torch.func.vjp(forward, *inputs)[1](grad_out)

        given = [torch.zeros_like(tensor) if up is None else up for tensor, up in zip(inputs, upstream, strict=True)]
        return list(torch.func.vjp(derive, grad_out, *inputs)[1](tuple(given)))
    with torch.enable_grad():
        free = [tensor.detach().requires_grad_() for tensor in (grad_out, *inputs)]
        out = forward(*free[1:])
        first = torch.autograd.grad(out, free[1:], free[0], create_graph=True, allow_unused=True)
        paired = [(grad, up) for grad, up in zip(first, upstream, strict=True) if grad is not None and up is not None]
        paired = [(grad, up) for grad, up in paired if grad.requires_grad]
        if not paired:
            return [None] * len(free)
        grads, ups = zip(*paired, strict=True)
        return list(torch.autograd.grad(grads, free, ups, allow_unused=True))


def _second_with(
    frame_logits: Tensor | None, forward: Callable[..., Tensor], inputs: Sequence[Tensor], *rest: Any
) -> tuple[list[Tensor | None], Tensor | None]:
    """``_second`` of ``inputs`` and, where they are given, of ``frame_logits``, the last argument of ``forward``."""
    if frame_logits is None:
        grad_out, upstream = rest
        return _second(forward, inputs, grad_out, upstream[:-1]), None
    *grads, last = _second(forward, (*inputs, frame_logits), *rest)
    return grads, last


def _grads_like(inputs: Sequence[Tensor], like: Tensor, frame_logits: Tensor | None) -> tuple[Tensor, ...]:
    """One of each input, and the last of ``frame_logits``: without elements where there are none."""
    last = like.new_empty(0) if frame_logits is None else frame_logits
    return tuple(t.new_empty(t.shape) for t in (*inputs, last))


def _only_needed(ctx: Any, grads: Sequence[Tensor | None]) -> Grads:
    return tuple(grad if need else None for grad, need in zip(grads, ctx.needs_input_grad, strict=True))


def _deterministic() -> bool:
    return torch.are_deterministic_algorithms_enabled()


def _out_like(value: Tensor, queries: int) -> Tensor:
    batch, _, _, heads, channels = value.shape
    return value.new_empty(batch, queries, heads * channels)


def _out_and_lse_like(value: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    batch, queries, heads = offsets.shape[:3]
    lse = value.new_empty((batch, queries, heads), dtype=accumulation_dtype(value.dtype))
    return _out_like(value, queries), lse


def _save_with_lse(ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, Tensor]) -> None:
    """For an op that returns out and the log-sum-exp, which carries no gradient; the last input is the shapes."""
    *tensors, ctx.shapes = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(out, lse, *tensors)


def _register_plain() -> None:
    ops = torch.ops.stdetr

    @register_fake("stdetr::st_deform_attn_forward")
    def _(value, sampling_locations, attention_weights, frame_index, spatial_shapes):
        return _out_like(value, sampling_locations.shape[1])

    @register_fake("stdetr::st_deform_attn_backward")
    def _(grad_out, value, sampling_locations, attention_weights, frame_index, spatial_shapes, deterministic):
        return tuple(t.new_empty(t.shape) for t in (value, sampling_locations, attention_weights))

    def save(ctx, inputs, output):
        *tensors, ctx.shapes = inputs
        ctx.save_for_backward(*tensors)

    def backward(ctx, grad_out):
        grads = ops.st_deform_attn_backward(grad_out, *ctx.saved_tensors, ctx.shapes, _deterministic())
        return _only_needed(ctx, (*grads, None, None))

    register_autograd("stdetr::st_deform_attn_forward", backward, setup_context=save)

    def save_first(ctx, inputs, output):
        *tensors, ctx.shapes, _ = inputs
        ctx.save_for_backward(*tensors)

    def second(ctx, *upstream):
        grad_out, value, locations, weights, frame_index = ctx.saved_tensors
        shapes = _pairs(ctx.shapes)
        grads = _second(
            lambda v, x, w: plain.st_deform_attn_reference(v, x, w, frame_index, shapes),
            (value, locations, weights),
            grad_out,
            upstream,
        )
        return _only_needed(ctx, (*grads, None, None, None))

    register_autograd("stdetr::st_deform_attn_backward", second, setup_context=save_first)


def _register_fused() -> None:
    ops = torch.ops.stdetr

    @register_fake("stdetr::st_deform_attn_fused_forward")
    def _(value, reference, offsets, logits, frame_index, valid_ratios, frame_logits, spatial_shapes):
        return _out_and_lse_like(value, offsets)

    @register_fake("stdetr::st_deform_attn_fused_backward")
    def _(grad_out, out, lse, value, reference, offsets, logits, frame_index, valid_ratios, frame_logits, *_):
        return _grads_like((value, reference, offsets, logits), reference, frame_logits)

    def backward(ctx, grad_out, _):
        if grad_out is None:
            return (None,) * 8
        *grads, grad_frame_logits = ops.st_deform_attn_fused_backward(
            grad_out, *ctx.saved_tensors, ctx.shapes, _deterministic()
        )
        return _only_needed(ctx, (*grads, None, None, grad_frame_logits, None))

    register_autograd("stdetr::st_deform_attn_fused_forward", backward, setup_context=_save_with_lse)

    def save_first(ctx, inputs, output):
        *tensors, ctx.shapes, _ = inputs
        ctx.save_for_backward(*tensors)

    def second(ctx, *upstream):
        # out and lse follow from the other inputs, through which the whole derivative flows.
        grad_out, _, _, *inputs, frame_index, valid_ratios, frame_logits = ctx.saved_tensors
        shapes = _pairs(ctx.shapes)

        def run(value, reference, offsets, logits, frame_logits=None):
            options = (frame_index, valid_ratios, frame_logits)
            return plain.st_deform_attn_fused_reference(value, reference, offsets, logits, *options, shapes)

        grads, last = _second_with(frame_logits, run, inputs, grad_out, upstream)
        return _only_needed(ctx, (grads[0], None, None, *grads[1:], None, None, last, None, None))

    register_autograd("stdetr::st_deform_attn_fused_backward", second, setup_context=save_first)


def _register_temporal() -> None:
    ops = torch.ops.stdetr

    @register_fake("stdetr::st_deform_attn_temporal_forward")
    def _(value, reference, offsets, *_):
        return _out_and_lse_like(value, offsets)

    @register_fake("stdetr::st_deform_attn_temporal_backward")
    def _(grad_out, out, lse, *given):
        # The first seven of ``given`` are the differentiable inputs but one; dt, frame_index, valid_ratios follow.
        return _grads_like(given[:7], given[1], given[10])

    def backward(ctx, grad_out, _):
        if grad_out is None:
            return (None,) * 12
        wants_reference = ctx.needs_input_grad[1]
        *grads, grad_frame_logits = ops.st_deform_attn_temporal_backward(
            grad_out, *ctx.saved_tensors, ctx.shapes, wants_reference, _deterministic()
        )
        return _only_needed(ctx, (*grads, None, None, None, grad_frame_logits, None))

    register_autograd("stdetr::st_deform_attn_temporal_forward", backward, setup_context=_save_with_lse)

    def save_first(ctx, inputs, output):
        *tensors, ctx.shapes, _, _ = inputs
        ctx.save_for_backward(*tensors)

    def second(ctx, *upstream):
        grad_out, _, _, *inputs, dt, frame_index, valid_ratios, frame_logits = ctx.saved_tensors
        shapes = _pairs(ctx.shapes)

        def run(value, reference, offsets, velocity, logits, offset_table, logit_table, frame_logits=None):
            samples = form_samples(offsets, velocity, logits, offset_table, logit_table, dt)
            options = (frame_index, valid_ratios, frame_logits)
            return plain.st_deform_attn_fused_reference(value, reference_at(reference, dt), *samples, *options, shapes)

        grads, last = _second_with(frame_logits, run, inputs, grad_out, upstream)
        return _only_needed(ctx, (grads[0], None, None, *grads[1:], None, None, None, last, None, None, None))

    register_autograd("stdetr::st_deform_attn_temporal_backward", second, setup_context=save_first)


def register_operators() -> None:
    """Adds fake kernels and autograd.  Called once, after the library that defines the schemas is loaded."""
    _register_plain()
    _register_fused()
    _register_temporal()
