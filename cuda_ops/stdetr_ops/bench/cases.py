"""The workloads of ``suite=op`` and their inputs.

Shape legend
    B clips    T frames    S tokens of a frame    H heads    D channels per head    Q queries    F sampled frames (= T)
    L levels (strides 8, 16, 32, 64)    K points per head, level and frame
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stdetr.ops.reference import accumulation_dtype

HEADS, CHANNELS, POINTS = 8, 32, 4
STRIDES = (8, 16, 32, 64)
LOCATIONS = ("clustered", "uniform")
# plain: locations and weights are given; fused: reference, offsets and logits; temporal: their terms over time.
KINDS = ("plain", "fused", "temporal")
# Deviation of clustered points from their query, in pixels of the level: what trained offsets look like.
SPREAD = 2.0


@dataclass(frozen=True)
class OpCase:
    """``queries`` is a number, ``key`` (the tokens of one frame) or ``all`` (the tokens of all frames)."""

    name: str
    batch: int
    frames: int
    size: tuple[int, int]
    queries: int | str

    @property
    def shapes(self) -> list[tuple[int, int]]:
        height, width = self.size
        return [(-(-height // stride), -(-width // stride)) for stride in STRIDES]

    @property
    def tokens(self) -> int:
        return sum(height * width for height, width in self.shapes)

    @property
    def query_count(self) -> int:
        if isinstance(self.queries, int):
            return self.queries
        return self.tokens * (self.frames if self.queries == "all" else 1)

    @property
    def points(self) -> int:
        """Sampled points: B*Q*H*F*L*K."""
        return self.batch * self.query_count * HEADS * self.frames * len(STRIDES) * POINTS


# Bytes that a GPU moves in a second: device memory (a measured device-to-device copy), first-level caches (by clock).
RATES = {"h100": {"memory": 3.0e12, "cache": 33e12}, "h200": {"memory": 4.3e12, "cache": 33e12}}


def gpu_label(name: str) -> str:
    """The name of a GPU as a part of a file's name: "NVIDIA H100 80GB HBM3" gives h100, "NVIDIA L4" nvidia_l4."""
    words = re.findall("[a-z0-9]+", name.lower())
    return next((word for word in words if word in RATES), "_".join(words))


def roofline_seconds(case: OpCase, size: int, gpu: str) -> float | None:
    """The least time for a forward pass of the fused op on ``gpu`` (see ``gpu_label``), values of ``size`` bytes.

    Device memory: offsets, logits, value and output once; caches: four rows of D channels for each point.  None: the
    rates of this GPU are not known.
    """
    if gpu not in RATES:
        return None
    traffic = case.points * 3 * size
    traffic += (case.batch * case.frames * case.tokens + case.batch * case.query_count) * HEADS * CHANNELS * size
    gathered = 4 * CHANNELS * size * case.points
    return max(traffic / RATES[gpu]["memory"], gathered / RATES[gpu]["cache"])


def _grid(sizes: tuple[int, int], names: str) -> list[OpCase]:
    return [OpCase(f"encoder_{names}_T{frames}", 1, frames, sizes, "key") for frames in (1, 2, 4, 5, 8, 16)]


CASES = {
    case.name: case
    for case in [
        *_grid((480, 640), "480p"),
        *_grid((800, 1333), "800x1333"),
        *(OpCase(f"decoder_480p_T{frames}", 1, frames, (480, 640), 300) for frames in (1, 5, 16)),
        *(OpCase(f"decoder_800x1333_T{frames}", 1, frames, (800, 1333), 300) for frames in (1, 5, 16)),
        OpCase("encoder_toy_T5", 1, 5, (128, 160), "all"),
        OpCase("full_480p_T5", 1, 5, (480, 640), "all"),
        OpCase("full_800x1333_T5", 1, 5, (800, 1333), "all"),
        OpCase("full_800x1333_T8", 1, 8, (800, 1333), "all"),
        OpCase("full_800x1333_T5_B4", 4, 5, (800, 1333), "all"),
        OpCase("decoder_800x1333_T5_B4", 4, 5, (800, 1333), 300),
    ]
}
CPU_CASES = (
    *("encoder_480p_T1", "encoder_480p_T5", "encoder_800x1333_T1", "encoder_800x1333_T5"),
    *("decoder_480p_T1", "decoder_480p_T5", "decoder_800x1333_T1", "decoder_800x1333_T5"),
)
GPU_CASES = (
    *("encoder_800x1333_T1", "encoder_800x1333_T5", "full_800x1333_T5", "full_800x1333_T8", "full_800x1333_T5_B4"),
    *("decoder_800x1333_T5", "decoder_800x1333_T5_B4"),
)
SWEEP = ("encoder_480p_T1", "encoder_480p_T2", "encoder_480p_T4", "encoder_480p_T8", "encoder_480p_T16")


def find_cases(names: Sequence[str]) -> list[OpCase]:
    """The cases of those names.  Raises ValueError for an unknown one."""
    for name in names:
        if name not in CASES:
            near = difflib.get_close_matches(name, CASES, n=1, cutoff=0.0)[0]
            raise ValueError(f"op.cases: {name!r} is not a case; did you mean {near!r}? All: {', '.join(CASES)}")
    return [CASES[name] for name in names]


@dataclass
class OpInputs:
    """Tensors of one case.  The fused op gets reference, offsets and logits, which give locations and weights."""

    case: OpCase
    value: Tensor  # B,T,S,H,D
    reference: Tensor  # B,Q,F,2
    offsets: Tensor  # B,Q,H,F,L,K,2
    logits: Tensor  # B,Q,H,F,L,K
    grad_out: Tensor  # B,Q,H*D

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return self.case.shapes

    def placed(self) -> tuple[Tensor, Tensor]:
        """Locations B,Q,H,F,L,K,2 and weights B,Q,H,F,L,K as PyTorch operations make them, in sums' dtype."""
        sizes = self.offsets.new_tensor([(width, height) for height, width in self.shapes], dtype=self.reference.dtype)
        centre = self.reference[:, :, None, :, None, None]
        locations = centre + self.offsets.to(self.reference.dtype) / sizes[:, None]
        weights = self.logits.to(self.reference.dtype).flatten(3).softmax(-1).view(self.logits.shape)
        return locations, weights


@dataclass
class TemporalTerms:
    """What the temporal op gets in place of offsets and logits of each frame."""

    offsets: Tensor  # B,Q,H,L,K,2
    velocity: Tensor  # B,Q,H,L,K,2
    logits: Tensor  # B,Q,H,L,K
    offset_table: Tensor  # R,H,L,K,2
    logit_table: Tensor  # R,H,L,K
    dt: Tensor  # B,Q,F


def temporal_terms(inputs: OpInputs) -> TemporalTerms:
    """Terms of the temporal op on the case of ``inputs``: a query of frame t is t' - t away from frame t'."""
    case, frames = inputs.case, inputs.case.frames
    device, precise = inputs.value.device, inputs.reference.dtype
    offsets = inputs.offsets[:, :, :, 0].clone()
    rows = 2 * max(1, frames - 1)
    made = torch.Generator(device).manual_seed(frames)
    table = torch.randn(rows, *offsets.shape[2:], generator=made, device=device, dtype=precise)
    queries = torch.arange(case.query_count, device=device)
    at = queries // case.tokens if case.queries == "all" else torch.full_like(queries, frames // 2)
    dt = (torch.arange(frames, device=device) - at[:, None]).to(precise).expand(case.batch, -1, -1).contiguous()
    logits = inputs.logits[:, :, :, 0].clone()
    return TemporalTerms(offsets, 0.1 * offsets.flip(2), logits, 0.1 * table, 0.1 * table[..., 0].contiguous(), dt)


def make_inputs(case: OpCase, locations: str, dtype: torch.dtype, device: torch.device, seed: int = 0) -> OpInputs:
    """Random inputs; ``locations`` is clustered (around the query's own place) or uniform over the frame."""
    if locations not in LOCATIONS:
        raise ValueError(f"op.locations may have {', '.join(LOCATIONS)}, got {locations!r}")
    made = torch.Generator(device).manual_seed(seed)
    options = {"generator": made, "device": device}
    precise = accumulation_dtype(dtype)
    batch, frames, queries, levels = case.batch, case.frames, case.query_count, len(STRIDES)
    points = (batch, queries, HEADS, frames, levels, POINTS)
    value = torch.randn(batch, frames, case.tokens, HEADS, CHANNELS, **options, dtype=dtype)
    if case.queries in ("key", "all"):
        own = torch.cat([_centres(height, width, device) for height, width in case.shapes])
        own = own.repeat(queries // case.tokens, 1)
        reference = own[None, :, None].expand(batch, queries, frames, 2).to(precise).contiguous()
    else:
        reference = torch.rand(batch, queries, 1, 2, **options, dtype=precise).expand(-1, -1, frames, -1).contiguous()
    if locations == "clustered":
        offsets = torch.randn(*points, 2, **options, dtype=dtype) * SPREAD
    else:
        offsets = torch.rand(*points, 2, **options, dtype=precise) - reference[:, :, None, :, None, None]
        sizes = torch.tensor([(width, height) for height, width in case.shapes], device=device, dtype=precise)
        offsets = offsets.mul_(sizes[:, None]).to(dtype)
    logits = torch.randn(points, **options, dtype=dtype)
    grad_out = torch.randn(batch, queries, HEADS * CHANNELS, **options, dtype=dtype)
    return OpInputs(case, value, reference, offsets, logits, grad_out)


def _centres(height: int, width: int, device: torch.device) -> Tensor:
    rows = (torch.arange(height, device=device) + 0.5) / height
    columns = (torch.arange(width, device=device) + 0.5) / width
    grid_rows, grid_columns = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([grid_columns, grid_rows], -1).view(-1, 2)
