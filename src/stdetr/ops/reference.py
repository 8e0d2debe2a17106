"""The attention op in plain PyTorch: the reference for testing the kernels, and the fallback without them.

Shape legend
    B clips    T frames of a clip    S tokens of a frame, sum over levels of h x w    H heads    D channels per head
    Q queries  F sampled frames    L levels    K points per head, level and frame    P = F x L x K (x 4 corners)

Written from the definition of multi-scale deformable attention (Zhu et al., "Deformable DETR", ICLR 2021), with
frames as a further axis.  Everything is built from differentiable primitives, so that first and second derivatives
come from autograd.  Sums are float32 (float64 for float64 inputs).  A point whose location is not finite, that lies
outside the frame or whose frame is masked adds nothing and gets zero gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

Shapes = Sequence[tuple[int, int]]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and coordinates for values of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def has_autocast(kind: str) -> bool:
    """Whether device type ``kind`` supports autocast; meta tensors do not.

    Not ``torch.amp.is_autocast_available``: Dynamo of torch 2.11 cannot trace it.
    """
    return kind != "meta"


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Switches autocast off on device type ``kind``, if it supports autocast (meta tensors do not)."""
    return torch.autocast(kind, enabled=False) if has_autocast(kind) else nullcontext()


def _level_table(spatial_shapes: Shapes, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Heights, widths and first token of each level, L each, int64 on the device of ``like``."""
    heights = [height for height, _ in spatial_shapes]
    widths = [width for _, width in spatial_shapes]
    starts = [0]
    for height, width in spatial_shapes:
        starts.append(starts[-1] + height * width)
    make = lambda numbers: torch.tensor(numbers, dtype=torch.int64, device=like.device)  # noqa: E731
    return make(heights), make(widths), make(starts[:-1])


def _corners(locations: Tensor, usable: Tensor, spatial_shapes: Shapes) -> tuple[Tensor, Tensor]:
    """Token and bilinear weight of the four pixels around each location.

    locations: ...,L,K,2 (x, y) in [0,1];  usable: ...,L,K bool or broadcastable to it
    returns tokens ...,L,K,4 int64 in 0..S-1 and weights ...,L,K,4 (0 where a pixel lies outside or is not usable)
    """
    heights, widths, starts = (table[:, None] for table in _level_table(spatial_shapes, locations))
    x = locations[..., 0] * widths - 0.5
    y = locations[..., 1] * heights - 0.5
    # NaN and infinity fail these comparisons.
    inside = (x > -1) & (x < widths) & (y > -1) & (y < heights) & usable
    x = torch.where(inside, x, 0.0)
    y = torch.where(inside, y, 0.0)
    left, top = x.detach().floor(), y.detach().floor()
    right_share, bottom_share = x - left, y - top
    left, top = left.long(), top.long()
    tokens, weights = [], []
    for row, row_share in ((top, 1 - bottom_share), (top + 1, bottom_share)):
        for column, column_share in ((left, 1 - right_share), (left + 1, right_share)):
            exists = inside & (row >= 0) & (row < heights) & (column >= 0) & (column < widths)
            row_in = torch.minimum(row.clamp(min=0), heights - 1)
            column_in = torch.minimum(column.clamp(min=0), widths - 1)
            tokens.append(starts + row_in * widths + column_in)
            weights.append(torch.where(exists, row_share * column_share, 0.0))
    return torch.stack(tokens, -1), torch.stack(weights, -1)


def _sum_rows(value: Tensor, frames: Tensor, tokens: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of value rows over all points of a query.

    value B,T,S,H,D;  frames, tokens, weights B,Q,H,...  ->  B,Q,H,D
    """
    batch, clip, size, heads, channels = value.shape
    queries = tokens.shape[1]
    if min(batch, queries, heads, channels, tokens.numel(), value.numel()) == 0:
        # Keep the graph connected, so that the gradients are zeros rather than missing.
        return value.new_zeros(batch, queries, heads, channels) + value.sum() * 0 + weights.sum() * 0
    extra = (1,) * (tokens.ndim - 3)
    clips = torch.arange(batch, device=value.device).view(batch, 1, 1, *extra)
    head = torch.arange(heads, device=value.device).view(1, 1, heads, *extra)
    index = ((clips * clip + frames) * size + tokens) * heads + head
    rows = value.reshape(-1, channels).index_select(0, index.reshape(-1))
    rows = rows.view(batch * queries * heads, -1, channels)
    mixed = torch.bmm(weights.reshape(batch * queries * heads, 1, -1), rows)
    return mixed.view(batch, queries, heads, channels)


def _frames_of(frame_index: Tensor | None, clip: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Frame to read and whether it may be read, both broadcastable to B,Q,H,F,L,K."""
    if frame_index is None:
        frames = torch.arange(clip, device=device).view(1, 1, 1, clip, 1, 1)
        return frames, torch.ones_like(frames, dtype=torch.bool)
    frames = frame_index.long()[:, :, None, :, None, None]
    usable = (frames >= 0) & (frames < clip)
    return torch.where(usable, frames, 0), usable


def st_deform_attn_reference(
    value: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    frame_index: Tensor | None,
    spatial_shapes: Shapes,
) -> Tensor:
    """``st_deform_attn`` on checked arguments; ``frame_index`` is B,Q,F or None.  Returns B,Q,H*D."""
    precise = accumulation_dtype(value.dtype)
    with without_autocast(value.device.type):
        frames, usable = _frames_of(frame_index, value.shape[1], value.device)
        tokens, corners = _corners(sampling_locations.to(precise), usable, spatial_shapes)
        weights = attention_weights.to(precise)[..., None] * corners
        frames = frames[..., None].expand(tokens.shape)
        out = _sum_rows(value.to(precise), frames, tokens, weights)
        return out.flatten(2).to(value.dtype)


def locate(
    reference: Tensor, offsets: Tensor, valid_ratios: Tensor | None, spatial_shapes: Shapes, precise: torch.dtype
) -> Tensor:
    """Sampling locations of the fused op, B,Q,H,F,L,K,2 in [0,1] of the padded frame (Deformable DETR's two rules).

    reference: B,Q,F,2 points or B,Q,F,4 boxes cxcywh;  offsets: B,Q,H,F,L,K,2;  valid_ratios: B,L,2 (x, y) or None.
    Where the result is not finite the inputs are replaced by 0 and the location is NaN, so that the gradient is 0.
    """
    heights, widths, _ = _level_table(spatial_shapes, offsets)
    sizes = torch.stack([widths, heights], -1).to(precise)[:, None]
    points = offsets.shape[-2]
    offsets = offsets.to(precise)
    centre = reference.to(precise)[:, :, None, :, None, None, :2]
    ratios = None if valid_ratios is None else valid_ratios.to(precise)[:, None, None, None, :, None]
    extent = reference.to(precise)[:, :, None, :, None, None, 2:] if reference.shape[-1] == 4 else None

    def place(centre: Tensor, extent: Tensor | None, offsets: Tensor) -> Tensor:
        if ratios is not None:
            centre = centre * ratios
            extent = None if extent is None else extent * ratios
        if extent is None:
            return centre + offsets / sizes
        return centre + offsets / points * (0.5 * extent)

    with torch.no_grad():
        finite = place(centre, extent, offsets).isfinite().all(-1, keepdim=True)
    locations = place(
        torch.where(finite, centre, 0.0),
        None if extent is None else torch.where(finite, extent, 0.0),
        torch.where(finite, offsets, 0.0),
    )
    return torch.where(finite, locations, torch.nan)


def masked_softmax(logits: Tensor, frame_index: Tensor | None, clip: int, precise: torch.dtype) -> Tensor:
    """Softmax of logits B,Q,H,F,L,K over F x L x K without the masked frames; 0 everywhere if all are masked."""
    if logits.numel() == 0:
        return logits.to(precise)
    flat = logits.to(precise)
    if frame_index is not None:
        _, usable = _frames_of(frame_index, clip, logits.device)
        flat = torch.where(usable, flat, -torch.inf)
    flat = flat.flatten(3)
    # Rows without a usable point would be NaN: give them finite logits and set the result to 0.
    dead = (flat == -torch.inf).all(-1, keepdim=True)
    return torch.where(dead, 0.0, torch.where(dead, 0.0, flat).softmax(-1)).view(logits.shape)


def sampled_points(
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
    frame_index: Tensor | None,
    valid_ratios: Tensor | None,
    spatial_shapes: Shapes,
    clip: int,
) -> tuple[Tensor, Tensor]:
    """Where and how strongly the fused op samples a clip of ``clip`` frames.

    Returns locations B,Q,H,F,L,K,2 in [0,1] of the padded frame and weights B,Q,H,F,L,K, float32 (float64 for float64).
    """
    precise = accumulation_dtype(offsets.dtype)
    locations = locate(reference, offsets, valid_ratios, spatial_shapes, precise)
    return locations, masked_softmax(logits, frame_index, clip, precise)


def st_deform_attn_fused_reference(
    value: Tensor,
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
    frame_index: Tensor | None,
    valid_ratios: Tensor | None,
    frame_logits: Tensor | None,
    spatial_shapes: Shapes,
) -> Tensor:
    """``st_deform_attn_fused`` on checked arguments; ``frame_index`` is B,Q,F or None.  Returns B,Q,H*D."""
    with without_autocast(value.device.type):
        if frame_logits is not None:
            logits = logits.to(frame_logits.dtype) + frame_logits[..., None, None]
        locations, weights = sampled_points(
            reference, offsets, logits, frame_index, valid_ratios, spatial_shapes, value.shape[1]
        )
        return st_deform_attn_reference(value, locations, weights, frame_index, spatial_shapes)


def table_rows(dt: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Row of the tables for each distance, and whether there is one: 0 (and NaN) has no row.

    The first half of the ``rows`` holds dt = -rows/2 .. -1, the second 1 .. rows/2; dt is clamped beyond.
    """
    reach = rows // 2
    distance = dt.detach().nan_to_num(0.0).clamp(-reach, reach).round().long()
    row = torch.where(distance < 0, distance + reach, distance + reach - 1).clamp(min=0)
    return row, distance != 0


def reference_at(reference: Tensor, dt: Tensor) -> Tensor:
    """``reference`` B,Q,F,2|4, NaN where ``dt`` B,Q,F is not finite, so that those points count for nothing."""
    return torch.where(dt.isfinite()[..., None], reference, torch.nan)


def form_samples(
    offsets: Tensor, velocity: Tensor, logits: Tensor, offset_table: Tensor, logit_table: Tensor, dt: Tensor
) -> tuple[Tensor, Tensor]:
    """Offsets B,Q,H,F,L,K,2 and logits B,Q,H,F,L,K as PyTorch operations; arguments as ``st_deform_attn_temporal``.

    An infinite or NaN ``dt`` adds no velocity; ``reference_at`` takes the points of such a frame out.
    """
    steps = dt.to(offset_table.dtype).nan_to_num(0.0, 0.0, 0.0)[:, :, None, :, None, None]
    frame_offsets = offsets[:, :, :, None] + steps[..., None] * velocity[:, :, :, None]
    frame_logits = logits[:, :, :, None].expand(frame_offsets.shape[:-1])
    if len(offset_table) == 0:
        # Keep the graph connected, so that the gradients are empty rather than missing.
        frame_offsets, frame_logits = frame_offsets + offset_table.sum(), frame_logits + logit_table.sum()
    else:
        row, has_row = table_rows(dt, len(offset_table))
        # Distances without a row have index 0; their entries are multiplied by 0.
        frame_offsets = frame_offsets + (offset_table[row] * has_row[..., None, None, None, None]).movedim(2, 3)
        frame_logits = frame_logits + (logit_table[row] * has_row[..., None, None, None]).movedim(2, 3)
    return frame_offsets, frame_logits
