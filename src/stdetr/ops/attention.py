"""Spatio-temporal deformable attention: the public functions.

Shape legend
    B clips    T frames of a clip    S tokens of a frame, sum over levels of h x w    H heads    D channels per head
    Q queries  F sampled frames    L levels    K points per head, level and frame

The operator samples a few learned points across frames and feature levels.  It extends multi-scale deformable
attention (Zhu et al., "Deformable DETR", ICLR 2021) by a frame axis; DeVIS (Caelles et al., 2022) reaches the same
sums by stacking copies of neighbour frames as levels.  Kernel design follows what DCNv4 (Xiong et al., CVPR 2024)
and "Efficient MSDA on GPUs" (deformops, TMLR 2026) measured; nothing is copied from them.

Points that lie outside the frame, have a NaN or infinite location, or read a masked frame add nothing and get zero
gradient.  Sums are float32 (float64 for float64 values).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from stdetr.ops import reference as plain
from stdetr.ops import validate
from stdetr.ops.backends import use_kernels
from stdetr.ops.reference import accumulation_dtype, has_autocast


def _autocast(value: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Under autocast: value and ``others`` in the autocast dtype (float64 stays); else unchanged."""
    kind = value.device.type
    tensors = (value, *others)
    if not (has_autocast(kind) and torch.is_autocast_enabled(kind)):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


def runs_kernels(value: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels run for these arguments.

    The kernels have no forward-mode derivative: where an argument has a tangent, the reference runs.
    """
    if not use_kernels(value.device.type):
        return False
    return torch.compiler.is_compiling() or all(
        tensor is None or forward_ad.unpack_dual(tensor).tangent is None for tensor in (value, *others)
    )


def _flat(shapes: Sequence[tuple[int, int]]) -> list[int]:
    return [size for pair in shapes for size in pair]


def st_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    frame_index: Tensor | None = None,
) -> Tensor:
    """Weighted sum of bilinear samples across frames and levels.

    Args:
        value: B,T,S,H,D float32, float16, bfloat16 or float64; levels row-major, one after the other.
        spatial_shapes: L pairs (h, w) of host integers with S = sum of h * w.
        sampling_locations: B,Q,H,F,L,K,2 (x, y) in [0,1] of the frame; pixel = location * size - 0.5, zero outside.
        attention_weights: B,Q,H,F,L,K, already normalised.
        frame_index: Q,F or B,Q,F int32 or int64: which frame of value; -1 = masked.  None: F = T in order.

    Returns:
        B,Q,H*D in value's dtype (the autocast dtype under autocast; locations and weights are never cast down).

    Raises:
        ValueError: a shape, dtype, device or frame index does not fit.
    """
    value = validate.check_value(value)
    shapes = validate.check_spatial_shapes(spatial_shapes, value)
    validate.check_tensor("sampling_locations", sampling_locations, "B,Q,H,F,L,K,2")
    validate.check_tensor("attention_weights", attention_weights, "B,Q,H,F,L,K")
    batch, _, _, heads, _ = value.shape
    queries, frames, points = sampling_locations.shape[1], sampling_locations.shape[3], sampling_locations.shape[5]
    axes = (batch, queries, heads, frames, len(shapes), points)
    validate.check_shape("sampling_locations", sampling_locations, "B,Q,H,F,L,K,2", (*axes, 2), value)
    validate.check_shape("attention_weights", attention_weights, "B,Q,H,F,L,K", axes, value)
    precise = accumulation_dtype(value.dtype)
    for name, tensor in (("sampling_locations", sampling_locations), ("attention_weights", attention_weights)):
        validate.check_device(name, tensor, value)
        validate.check_dtype(name, tensor, (value.dtype, precise), value)
    index = validate.check_frame_index(frame_index, value, queries, frames)
    (value,) = _autocast(value)
    tensors = (value, sampling_locations.to(precise), attention_weights.to(precise), index)
    if runs_kernels(*tensors):
        return torch.ops.stdetr.st_deform_attn_forward(*tensors, _flat(shapes))
    return plain.st_deform_attn_reference(*tensors, shapes)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention of one image: ``st_deform_attn`` with T = F = 1 and the usual shapes.

    Args:
        value: B,S,H,D.
        spatial_shapes: L pairs (h, w) of host integers.
        sampling_locations: B,Q,H,L,K,2 (x, y) in [0,1].
        attention_weights: B,Q,H,L,K.

    Returns:
        B,Q,H*D.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    value = validate.check_value(value, "B,S,H,D")
    validate.check_tensor("sampling_locations", sampling_locations, "B,Q,H,L,K,2")
    validate.check_tensor("attention_weights", attention_weights, "B,Q,H,L,K")
    return st_deform_attn(
        value[:, None], spatial_shapes, sampling_locations[:, :, :, None], attention_weights[:, :, :, None]
    )


def st_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
    frame_index: Tensor | None = None,
    valid_ratios: Tensor | None = None,
    frame_logits: Tensor | None = None,
) -> Tensor:
    """Reference + offset, softmax and sampling in one operator; locations and probabilities are never stored.

    With points as reference, location = reference * valid_ratio + offset / (w, h); with boxes,
    location = centre * valid_ratio + offset / K * 0.5 * size * valid_ratio (Deformable DETR's two rules).
    The softmax runs over F x L x K; masked frames take no part, and a query with all frames masked gives 0.

    Args:
        value: B,T,S,H,D float32, float16, bfloat16 or float64.
        spatial_shapes: L pairs (h, w) of host integers with S = sum of h * w.
        reference: B,Q,F,2 points or B,Q,F,4 boxes cxcywh in [0,1] of the unpadded frame; float32 (float64 for
            float64 values), never cast down.
        offsets: B,Q,H,F,L,K,2 in pixels of the level (points) or in half boxes (boxes); value's dtype.
        logits: B,Q,H,F,L,K; value's dtype.
        frame_index: Q,F or B,Q,F int32 or int64: which frame of value; -1 = masked.  None: F = T in order.
        valid_ratios: B,L,2 (x, y), the share of the padded level that is real, or None for 1.
        frame_logits: B,Q,H,F float32 (float64 for float64 values), added to the logits of all points of a frame and
            never cast down; None for 0.

    Returns:
        B,Q,H*D in value's dtype (under autocast: value, offsets and logits are cast first, the rest never).

    Raises:
        ValueError: a shape, dtype, device or frame index does not fit.
    """
    value = validate.check_value(value)
    shapes = validate.check_spatial_shapes(spatial_shapes, value)
    validate.check_tensor("reference", reference, "B,Q,F,2|4")
    validate.check_tensor("offsets", offsets, "B,Q,H,F,L,K,2")
    validate.check_tensor("logits", logits, "B,Q,H,F,L,K")
    batch, _, _, heads, _ = value.shape
    queries, frames, points = offsets.shape[1], offsets.shape[3], offsets.shape[5]
    axes = (batch, queries, heads, frames, len(shapes), points)
    validate.check_shape("offsets", offsets, "B,Q,H,F,L,K,2", (*axes, 2), value)
    validate.check_shape("logits", logits, "B,Q,H,F,L,K", axes, value)
    if reference.shape[-1] not in (2, 4):
        raise ValueError(f"reference must have shape (B,Q,F,2) or (B,Q,F,4), got {tuple(reference.shape)}")
    validate.check_shape("reference", reference, "B,Q,F,2|4", (batch, queries, frames, reference.shape[-1]), value)
    value, offsets, logits = _autocast(value, offsets, logits)
    precise = accumulation_dtype(value.dtype)
    validate.check_dtype("reference", reference, (precise,), value)
    for name, tensor in (("offsets", offsets), ("logits", logits)):
        validate.check_dtype(name, tensor, (value.dtype,), value)
    if valid_ratios is not None:
        validate.check_tensor("valid_ratios", valid_ratios, "B,L,2")
        validate.check_shape("valid_ratios", valid_ratios, "B,L,2", (batch, len(shapes), 2), value)
        validate.check_dtype("valid_ratios", valid_ratios, (precise, torch.float32), value)
        validate.check_device("valid_ratios", valid_ratios, value)
        # They describe the padding of the batch: data without a gradient.
        valid_ratios = valid_ratios.detach().to(precise)
    for name, tensor in (("reference", reference), ("offsets", offsets), ("logits", logits)):
        validate.check_device(name, tensor, value)
    validate.check_frame_logits(frame_logits, value, (batch, queries, heads, frames), precise)
    index = validate.check_frame_index(frame_index, value, queries, frames)
    tensors = (value, reference, offsets, logits, index, valid_ratios, frame_logits)
    if runs_kernels(*tensors):
        out, _ = torch.ops.stdetr.st_deform_attn_fused_forward(*tensors, _flat(shapes))
        return out
    return plain.st_deform_attn_fused_reference(*tensors, shapes)
