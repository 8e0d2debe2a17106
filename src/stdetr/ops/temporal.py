"""The fused op with the temporal parameterisation: one projection per query gives offsets and logits for all frames.

Shape legend
    B clips    T frames of a clip    S tokens of a frame    H heads    D channels per head
    Q queries  F sampled frames    L levels    K points per head, level and frame    R rows of the tables, even

For a query and a frame at the signed distance dt, in source frames:

    offset(dt) = offset + dt * velocity + offset_table[row(dt)]        logit(dt) = logit + logit_table[row(dt)]

and, where ``frame_logits`` is given, its entry for the head and the frame is added to the logit.

The kernels for the CPU and for CUDA compute these sums internally, so that neither they nor their gradients are stored
for each of the F frames.  The alternative is the composition: PyTorch computes the sums and ``st_deform_attn_fused``
samples.  On the CPU the kernel measured faster and smaller (``stdetr bench suite=model``), so it runs there.  On CUDA
it has not been measured: the composition runs, unless ``use_temporal_kernel("cuda")`` selects the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from stdetr.ops import attention, validate
from stdetr.ops.reference import accumulation_dtype, form_samples, reference_at

# Device types whose kernel measured better than the composition.
_kernel_devices = frozenset({"cpu"})


@contextmanager
def use_temporal_kernel(*device_types: str) -> Iterator[None]:
    """Runs the block with the temporal kernel on ``device_types`` and the composition elsewhere.

    Applies to the whole process.
    """
    global _kernel_devices
    before, _kernel_devices = _kernel_devices, frozenset(device_types)
    try:
        yield
    finally:
        _kernel_devices = before


def use_composition() -> AbstractContextManager[None]:
    """Runs the block with the composition on all devices, for comparison."""
    return use_temporal_kernel()


def st_deform_attn_temporal(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference: Tensor,
    offsets: Tensor,
    velocity: Tensor,
    logits: Tensor,
    offset_table: Tensor,
    logit_table: Tensor,
    dt: Tensor,
    frame_index: Tensor | None = None,
    valid_ratios: Tensor | None = None,
    frame_logits: Tensor | None = None,
) -> Tensor:
    """``st_deform_attn_fused`` with offsets and logits that depend on the distance in time.

    Args:
        value: B,T,S,H,D float32, float16, bfloat16 or float64.
        spatial_shapes: L pairs (h, w) of host integers with S = sum of h * w.
        reference: B,Q,F,2 points or B,Q,F,4 boxes, float32 (float64 for float64 values).
        offsets: B,Q,H,L,K,2 at dt = 0, in pixels of the level (points) or in half boxes (boxes); value's dtype.
        velocity: B,Q,H,L,K,2 the same per source frame; value's dtype.
        logits: B,Q,H,L,K; value's dtype.
        offset_table: R,H,L,K,2 float32 (float64 for float64 values), never cast down; rows by ``table_rows``.
        logit_table: R,H,L,K, likewise.
        dt: B,Q,F signed distance from the query's frame to the sampled one, in source frames; it gets no gradient.
        frame_index: Q,F or B,Q,F int32 or int64: which frame of value; -1 = masked.  None: F = T in order.
        valid_ratios: B,L,2 (x, y), or None for 1.
        frame_logits: B,Q,H,F float32 (float64 for float64 values), added to the logits of all points of a frame and
            never cast down; None for 0.

    Returns:
        B,Q,H*D in value's dtype (under autocast: value, offsets, velocity and logits are cast first, the rest never).

    Raises:
        ValueError: a shape, dtype, device or frame index does not fit.
    """
    value = validate.check_value(value)
    shapes = validate.check_spatial_shapes(spatial_shapes, value)
    named = {"reference": (reference, "B,Q,F,2|4"), "offsets": (offsets, "B,Q,H,L,K,2")}
    named |= {"velocity": (velocity, "B,Q,H,L,K,2"), "logits": (logits, "B,Q,H,L,K"), "dt": (dt, "B,Q,F")}
    named |= {"offset_table": (offset_table, "R,H,L,K,2"), "logit_table": (logit_table, "R,H,L,K")}
    for name, (tensor, letters) in named.items():
        validate.check_tensor(name, tensor, letters)
    batch, _, _, heads, _ = value.shape
    queries, points, frames, rows = offsets.shape[1], offsets.shape[4], dt.shape[2], len(logit_table)
    axes = (batch, queries, heads, len(shapes), points)
    if reference.shape[-1] not in (2, 4):
        raise ValueError(f"reference must have shape (B,Q,F,2) or (B,Q,F,4), got {tuple(reference.shape)}")
    if rows % 2:
        raise ValueError(f"logit_table must have an even number of rows R (past and future), got {rows}")
    expected = {
        "reference": (batch, queries, frames, reference.shape[-1]),
        "offsets": (*axes, 2),
        "velocity": (*axes, 2),
        "logits": axes,
        "dt": (batch, queries, frames),
        "offset_table": (rows, *axes[2:], 2),
        "logit_table": (rows, *axes[2:]),
    }
    value, offsets, velocity, logits = attention._autocast(value, offsets, velocity, logits)
    precise = accumulation_dtype(value.dtype)
    for name, (tensor, letters) in named.items():
        validate.check_shape(name, tensor, letters, expected[name], value)
        validate.check_device(name, tensor, value)
    for name, tensor in (("offsets", offsets), ("velocity", velocity), ("logits", logits)):
        validate.check_dtype(name, tensor, (value.dtype,), value)
    for name, tensor in (("reference", reference), ("offset_table", offset_table), ("logit_table", logit_table)):
        validate.check_dtype(name, tensor, (precise,), value)
    if valid_ratios is not None:
        validate.check_tensor("valid_ratios", valid_ratios, "B,L,2")
        validate.check_shape("valid_ratios", valid_ratios, "B,L,2", (batch, len(shapes), 2), value)
        validate.check_dtype("valid_ratios", valid_ratios, (precise, torch.float32), value)
        validate.check_device("valid_ratios", valid_ratios, value)
        valid_ratios = valid_ratios.detach().to(precise)
    validate.check_frame_logits(frame_logits, value, (batch, queries, heads, frames), precise)
    index = validate.check_frame_index(frame_index, value, queries, frames)
    dt = dt.detach().to(precise)
    options = (index, valid_ratios, frame_logits)
    tensors = (value, reference, offsets, velocity, logits, offset_table, logit_table, dt, *options)
    if value.device.type in _kernel_devices and attention.runs_kernels(*tensors):
        out, _ = torch.ops.stdetr.st_deform_attn_temporal_forward(*tensors, attention._flat(shapes))
        return out
    reference = reference_at(reference, dt)
    frame_offsets, point_logits = form_samples(offsets, velocity, logits, offset_table, logit_table, dt)
    frame_offsets, point_logits = frame_offsets.to(value.dtype), point_logits.to(value.dtype)
    return attention.st_deform_attn_fused(value, shapes, reference, frame_offsets, point_logits, *options)
