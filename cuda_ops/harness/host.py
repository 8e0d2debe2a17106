"""Calls of the host build on torch CPU tensors, with guarded and poisoned memory.

Shape legend
    B clips    T frames of a clip    S tokens of a frame    H heads    D channels a head
    Q queries  F frames a query samples    L levels    K points a head, level and frame

Every tensor is copied between two guards of NaN bytes.  A kernel that reads past an input meets NaN, one that writes
past an output changes a guard, and one that leaves an output element unwritten leaves a NaN there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.build import host_library

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
MODES = {"plain": 0, "fused": 1, "continuous": 2}
GUARD = 256

_NUMBERS = [
    "dtype",
    "mode",
    "batch",
    "clip",
    "tokens",
    "heads",
    "channels",
    "queries",
    "frames",
    "levels",
    "points",
    "reference_size",
    "stride_b",
    "stride_q",
    "stride_f",
    "deterministic",
    "processors",
    "shared_bytes",
    "split_points",
    "split_frames",
    "coarse_levels",
    "coarse_parts",
    "tile_rows",
    "force_scalar",
    "order",
    "seed",
    "ignore_warp_barriers",
    "ignore_block_barriers",
]
_POINTERS = [
    "shapes",
    "value",
    "locations",
    "weights",
    "tau",
    "reference",
    "valid_ratios",
    "frame_index",
    "frame_mask",
    "out",
    "lse",
    "grad_out",
    "grad_value",
    "grad_value_sum",
    "grad_value_fixed",
    "largest",
    "grad_locations",
    "grad_weights",
    "grad_tau",
    "grad_reference",
    "grad_reference_heads",
]


class _Call(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in _NUMBERS] + [(name, ctypes.c_void_p) for name in _POINTERS]


class _Counters(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("grids", "blocks", "block_barriers", "warp_exchanges")]


@dataclass(frozen=True)
class Schedule:
    """The machine, the choices that the planner would make itself (-1), and the order in which threads step."""

    processors: int = 132
    shared_bytes: int = 227 * 1024
    split_points: int = -1
    split_frames: int = -1
    coarse_levels: int = -1
    coarse_parts: int = -1
    tile_rows: int = -1
    force_scalar: bool = False
    order: str = "ascending"
    seed: int = 0
    ignore_warp_barriers: bool = False
    ignore_block_barriers: bool = False


@dataclass(frozen=True)
class Inputs:
    """Arguments of the operator.  For the fused one, ``locations`` are offsets and ``weights`` logits."""

    mode: str
    shapes: Sequence[tuple[int, int]]
    value: Tensor
    locations: Tensor
    weights: Tensor
    frame_index: Tensor | None = None
    reference: Tensor | None = None
    valid_ratios: Tensor | None = None
    tau: Tensor | None = None
    frame_mask: Tensor | None = None

    @property
    def sum_dtype(self) -> torch.dtype:
        return torch.float64 if self.value.dtype == torch.float64 else torch.float32

    def to_double(self) -> Inputs:
        """The same numbers in float64."""
        names = ("value", "locations", "weights", "reference", "valid_ratios", "tau")
        wide = {name: tensor.double() for name in names if (tensor := getattr(self, name)) is not None}
        return replace(self, **wide)


class _Memory:
    """Guarded copies of tensors; alive as long as a call."""

    def __init__(self) -> None:
        self.blocks: dict[str, Tensor] = {}

    def reserve(self, name: str, bytes_: int) -> int:
        block = torch.full((GUARD + bytes_ + (-bytes_) % 16 + GUARD + 16,), 255, dtype=torch.uint8)
        self.blocks[name] = block
        start = block.data_ptr() + GUARD
        return start + (-start) % 16

    def put(self, name: str, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.contiguous()
        address = self.reserve(name, tensor.nbytes)
        ctypes.memmove(address, tensor.data_ptr(), tensor.nbytes)
        return address

    def take(self, name: str, address: int, like: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        result = torch.empty(tuple(shape) if like is None else like.shape, dtype=dtype)
        ctypes.memmove(result.data_ptr(), address, result.nbytes)
        block = self.blocks[name]
        offset = address - block.data_ptr()
        touched = (block[:offset] != 255).any() or (block[offset + result.nbytes :] != 255).any()
        if touched:
            raise RuntimeError(f"a kernel wrote outside {name}")
        return result


def _describe(library: ctypes.CDLL, inputs: Inputs, schedule: Schedule, memory: _Memory) -> _Call:
    batch, clip, tokens, heads, channels = inputs.value.shape
    queries, frames = inputs.locations.shape[1], 1
    if inputs.mode != "continuous":
        frames = inputs.locations.shape[3]
    index = inputs.frame_index
    call = _Call(
        dtype=DTYPES[inputs.value.dtype],
        mode=MODES[inputs.mode],
        batch=batch,
        clip=clip,
        tokens=tokens,
        heads=heads,
        channels=channels,
        queries=queries,
        frames=frames,
        levels=len(inputs.shapes),
        points=inputs.locations.shape[-2],
        reference_size=0 if inputs.reference is None else inputs.reference.shape[-1],
        order=("ascending", "descending", "random").index(schedule.order),
    )
    for name in _NUMBERS:
        if name != "order" and hasattr(schedule, name):
            setattr(call, name, int(getattr(schedule, name)))
    if index is not None:
        call.stride_b, call.stride_q, call.stride_f = queries * frames, frames, 1
    call.shapes = memory.put("shapes", torch.tensor(inputs.shapes, dtype=torch.int64))
    for name in ("value", "locations", "weights", "tau", "reference", "valid_ratios", "frame_index", "frame_mask"):
        setattr(call, name, memory.put(name, getattr(inputs, name)))
    return call


def _run(library: ctypes.CDLL, call: _Call, backward: bool) -> None:
    library.stdetr_last_error.restype = ctypes.c_char_p
    if library.stdetr_run(ctypes.byref(call), int(backward)) != 0:
        raise RuntimeError(library.stdetr_last_error().decode())


def forward(inputs: Inputs, schedule: Schedule = Schedule()) -> tuple[Tensor, Tensor]:
    """Output B,Q,H*D and log-sum-exp B,Q,H (of the fused operator; else empty)."""
    library, memory = host_library(), _Memory()
    call = _describe(library, inputs, schedule, memory)
    batch, _, _, heads, channels = inputs.value.shape
    queries = inputs.locations.shape[1]
    shape = (batch, queries, heads * channels)
    rows = batch * queries * heads if inputs.mode == "fused" else 0
    call.out = memory.reserve("out", batch * queries * heads * channels * inputs.value.element_size())
    call.lse = memory.reserve("lse", rows * inputs.sum_dtype.itemsize)
    _run(library, call, backward=False)
    out = memory.take("out", call.out, None, shape, inputs.value.dtype)
    lse_shape = (batch, queries, heads) if rows else (0,)
    return out, memory.take("lse", call.lse, None, lse_shape, inputs.sum_dtype)


@dataclass(frozen=True)
class Gradients:
    value: Tensor
    locations: Tensor
    weights: Tensor
    reference: Tensor | None
    tau: Tensor | None


def backward(
    inputs: Inputs,
    grad_out: Tensor,
    schedule: Schedule = Schedule(),
    *,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    deterministic: bool = False,
) -> Gradients:
    """Gradients of every input; ``out`` and ``lse`` from ``forward`` are needed by the fused operator."""
    library, memory = host_library(), _Memory()
    call = _describe(library, inputs, schedule, memory)
    call.deterministic = int(deterministic)
    value, real = inputs.value, inputs.sum_dtype
    call.grad_out, call.out, call.lse = (
        memory.put("grad_out", grad_out),
        memory.put("out", out),
        memory.put("lse", lse),
    )
    call.grad_value = memory.reserve("grad_value", value.nbytes)
    call.grad_value_sum = call.grad_value
    if value.dtype != real:
        call.grad_value_sum = memory.reserve("grad_value_sum", value.numel() * real.itemsize)
    if deterministic:
        call.grad_value_fixed = memory.reserve("grad_value_fixed", value.numel() * 8)
        call.largest = memory.reserve("largest", 16)
    call.grad_locations = memory.reserve("grad_locations", inputs.locations.nbytes)
    call.grad_weights = memory.reserve("grad_weights", inputs.weights.nbytes)
    if inputs.tau is not None:
        call.grad_tau = memory.reserve("grad_tau", inputs.tau.nbytes)
    if inputs.reference is not None:
        heads = value.shape[3]
        call.grad_reference = memory.reserve("grad_reference", inputs.reference.nbytes)
        call.grad_reference_heads = memory.reserve("grad_reference_heads", inputs.reference.nbytes * heads)
    _run(library, call, backward=True)

    def take(name: str, like: Tensor | None) -> Tensor:
        assert like is not None
        return memory.take(name, getattr(call, name), like, (), like.dtype)

    return Gradients(
        value=take("grad_value", value),
        locations=take("grad_locations", inputs.locations),
        weights=take("grad_weights", inputs.weights),
        reference=None if inputs.reference is None else take("grad_reference", inputs.reference),
        tau=None if inputs.tau is None else take("grad_tau", inputs.tau),
    )


def counters() -> dict[str, int]:
    """How many grids, blocks, block barriers and warp exchanges were stepped so far."""
    library = host_library()
    library.stdetr_counters.restype = _Counters
    seen = library.stdetr_counters()
    return {name: int(getattr(seen, name)) for name, *_ in _Counters._fields_}
