"""Random problems for the kernels, and their answers in float64 from the PyTorch reference.

Shape legend
    B clips    T frames of a clip    S tokens of a frame    H heads    D channels per head
    Q queries  F sampled frames    L levels    K points per head, level and frame    R rows of the temporal tables
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from harness.host import Gradients, Inputs
from torch import Tensor

from stdetr.ops import reference as plain

SHAPES = ((5, 7), (3, 4), (2, 2), (1, 1))
# Slopes jump where a pixel coordinate is an integer; points keep this distance in float32 tests.
MARGIN = 1e-2


@dataclass(frozen=True)
class Size:
    """Sizes of a problem; prime or odd unless a test says otherwise."""

    batch: int = 2
    clip: int = 3
    queries: int = 7
    heads: int = 2
    channels: int = 32
    levels: int = 3
    points: int = 2
    frames: int | None = None  # None: frame_index is None and F = T
    reference_size: int = 2
    ratios: bool = False
    mask: bool = True  # some frames masked (where frames are indexed)
    queries_are_tokens: bool = False
    frame_logits: bool = True  # fused and temporal; also masked ones
    rows: int = 4  # R of the temporal tables; distances in time go beyond them


def _shapes(size: Size) -> list[tuple[int, int]]:
    return [SHAPES[i % len(SHAPES)] for i in range(size.levels)]


def _frame_index(size: Size, queries: int, generator: torch.Generator) -> Tensor | None:
    if size.frames is None:
        return None
    low = -1 if size.mask else 0
    index = torch.randint(low, size.clip, (size.batch, queries, size.frames), generator=generator)
    if size.mask and queries > 2:
        index[0, 1] = -1  # one query has all frames masked
        index[-1, 2, 0] = size.clip + 3  # outside the clip counts as masked
    return index.to(torch.int32)


def _near_grid(pixels: Tensor) -> Tensor:
    return ((pixels - pixels.round()).abs() < MARGIN).any(-1)


def make(mode: str, size: Size, dtype: torch.dtype, seed: int = 0) -> Inputs:
    """A problem whose points lie inside, across the border of and outside the frame, none on a grid line."""
    generator = torch.Generator().manual_seed(seed)
    shapes = _shapes(size)
    tokens = sum(height * width for height, width in shapes)
    queries = tokens if size.queries_are_tokens else size.queries
    real = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*dims: int) -> Tensor:
        return torch.randn(dims, generator=generator, dtype=torch.float64)

    def uniform(low: float, high: float, *dims: int) -> Tensor:
        return low + (high - low) * torch.rand(dims, generator=generator, dtype=torch.float64)

    value = normal(size.batch, size.clip, tokens, size.heads, size.channels).to(dtype)
    sizes = torch.tensor([(width, height) for height, width in shapes], dtype=torch.float64)[:, None]
    index = _frame_index(size, queries, generator)
    if mode == "temporal":
        points = (size.batch, queries, size.heads, size.levels, size.points)
    else:
        frames = size.clip if size.frames is None else size.frames
        points = (size.batch, queries, size.heads, frames, size.levels, size.points)
    if mode == "plain":
        cell = torch.floor(uniform(-2, 1, *points, 2) + (sizes + 2) * uniform(0, 1, *points, 2))
        locations = (cell + uniform(0.05, 0.95, *points, 2) + 0.5) / sizes
        weights = normal(*points)
        return Inputs(mode, shapes, value, locations.to(real), weights.to(real), frame_index=index)
    frames = size.clip if size.frames is None else size.frames
    reference = uniform(-0.1, 1.1, size.batch, queries, frames, size.reference_size)
    if size.reference_size == 4:
        reference[..., 2:] = uniform(0.1, 0.6, size.batch, queries, frames, 2)
    ratios = uniform(0.6, 1.0, size.batch, size.levels, 2).to(real) if size.ratios else None
    inputs = Inputs(
        mode, shapes, value, normal(*points, 2).to(dtype), normal(*points).to(dtype), index, reference.to(real), ratios
    )
    if size.frame_logits:
        aside = torch.Generator().manual_seed(seed + 1)
        more = torch.randn(size.batch, queries, size.heads, frames, generator=aside, dtype=torch.float64)
        inputs = replace(inputs, frame_logits=more.to(real))
    if mode == "temporal":
        reach = size.rows // 2 + 1
        inputs = replace(
            inputs,
            velocity=(0.3 * normal(*points, 2)).to(dtype),
            offset_table=(0.5 * normal(size.rows, *points[2:], 2)).to(real),
            logit_table=normal(size.rows, *points[2:]).to(real),
            dt=torch.randint(-reach, reach + 1, (size.batch, queries, frames), generator=generator).to(real),
        )
    for _ in range(30):
        near = _near_grid(pixels_of(inputs))
        if not near.any():
            return inputs
        near = near.any(3) if mode == "temporal" else near  # one offset for all frames
        step = torch.where(near[..., None], 0.31, 0.0)
        inputs = replace(inputs, locations=(inputs.locations.double() + step).to(dtype))
    raise AssertionError("points stay on grid lines")


def samples_of(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Offsets and logits of a fused or temporal problem, B,Q,H,F,L,K(,2)."""
    offsets, logits = inputs.locations, inputs.weights
    if inputs.mode == "temporal":
        offsets, logits = _formed(inputs)
    if inputs.frame_logits is not None:
        logits = logits + inputs.frame_logits[..., None, None]
    return offsets, logits


def _formed(inputs: Inputs) -> tuple[Tensor, Tensor]:
    assert inputs.velocity is not None
    assert inputs.offset_table is not None
    assert inputs.logit_table is not None
    assert inputs.dt is not None
    return plain.form_samples(
        inputs.locations, inputs.velocity, inputs.weights, inputs.offset_table, inputs.logit_table, inputs.dt
    )


def pixels_of(inputs: Inputs) -> Tensor:
    """Pixel coordinates of a fused or temporal problem, in float64."""
    wide = inputs.to_double()
    assert wide.reference is not None
    offsets, _ = samples_of(wide)
    locations = plain.locate(wide.reference, offsets, wide.valid_ratios, list(wide.shapes), torch.float64)
    sizes = torch.tensor([(width, height) for height, width in wide.shapes], dtype=torch.float64)[:, None]
    return locations * sizes - 0.5


def random_grad_out(inputs: Inputs, seed: int = 7) -> Tensor:
    """B,Q,H*D in value's dtype."""
    batch, _, _, heads, channels = inputs.value.shape
    shape = (batch, inputs.locations.shape[1], heads * channels)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(inputs.value.dtype)


def _evaluate(inputs: Inputs) -> Tensor:
    shapes = list(inputs.shapes)
    if inputs.mode == "plain":
        return plain.st_deform_attn_reference(
            inputs.value, inputs.locations, inputs.weights, inputs.frame_index, shapes
        )
    assert inputs.reference is not None
    return plain.st_deform_attn_fused_reference(
        inputs.value, inputs.reference, *samples_of(inputs), inputs.frame_index, inputs.valid_ratios, None, shapes
    )


def answer(inputs: Inputs, grad_out: Tensor | None = None) -> tuple[Tensor, Gradients | None]:
    """Output in float64 and, for a ``grad_out``, gradients."""
    wide = inputs.to_double()
    names = [field.name for field in fields(Gradients) if getattr(wide, field.name) is not None]
    leaves = {name: getattr(wide, name).clone().requires_grad_(grad_out is not None) for name in names}
    out = _evaluate(replace(wide, **leaves))
    if grad_out is None:
        return out, None
    out.backward(grad_out.double())
    found = {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
    return out.detach(), Gradients(**found)


def log_sum_exp(inputs: Inputs) -> Tensor:
    """Natural log-sum-exp of the logits over F x L x K, -inf where all frames are masked; float64 B,Q,H."""
    _, logits = samples_of(inputs.to_double())
    if inputs.frame_index is not None:
        clip = inputs.value.shape[1]
        usable = (inputs.frame_index >= 0) & (inputs.frame_index < clip)
        logits = logits.masked_fill(~usable[:, :, None, :, None, None], -torch.inf)
    return torch.logsumexp(logits.flatten(3), -1)


def rounding(inputs: Inputs, name: str) -> int:
    """How often a gradient's bar: in half precision frames that outweigh the others show the rounding of the saved
    output in the gradients of their logits."""
    return (
        2
        if name in ("weights", "logit_table") and inputs.frame_logits is not None and inputs.weights.itemsize == 2
        else 1
    )


def frame_logits_error(found: Gradients, wanted: Gradients) -> float:
    """Largest difference of their gradients, relative to the largest gradient of a point's or a frame's logit.

    In half precision the gradients of all logits share the rounding of the saved output, which sums over points do not
    average out: there the sums must agree with those of ``found.weights``.
    """
    assert found.frame_logits is not None
    assert wanted.frame_logits is not None
    have, want = found.frame_logits.double(), wanted.frame_logits
    largest = max(float(want.abs().max()), float(wanted.weights.abs().max()), 1e-30)
    if found.weights.itemsize == 2:
        points = found.weights.double().sum((-1, -2))
        have, want = (have, points) if points.ndim == 4 else (have.sum(-1), points)
    return float((have - want).abs().max()) / largest


def error(found: Tensor, wanted: Tensor) -> float:
    """Largest difference relative to the largest number wanted; infinite if a NaN or an infinity stands alone."""
    found, wanted = found.double(), wanted.double()
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    if wanted.numel() == 0:
        return 0.0
    same = (found == wanted) | (found.isnan() & wanted.isnan())
    difference = torch.where(same, 0.0, (found - wanted).abs())
    if not difference.isfinite().all():
        return float("inf")
    largest = torch.where(wanted.isfinite(), wanted.abs(), 0.0).max()
    return float(difference.max() / torch.clamp(largest, min=1e-30))
