"""Calls of the host build on torch CPU tensors, with guarded and poisoned memory.

Shape legend
    B clips    T frames of a clip    S tokens of a frame    H heads    D channels per head
    Q queries  F sampled frames    L levels    K points per head, level and frame    R rows of the temporal tables

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
MODES = {"plain": 0, "fused": 1, "temporal": 2}
# Reference, softmax and log-sum-exp.
FUSED = ("fused", "temporal")
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
    "table_rows",
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
    "reference",
    "valid_ratios",
    "frame_logits",
    "velocity",
    "offset_table",
    "logit_table",
    "dt",
    "frame_index",
    "out",
    "lse",
    "grad_out",
    "grad_value",
    "grad_value_sum",
    "grad_value_fixed",
    "largest",
    "grad_locations",
    "grad_weights",
    "grad_reference",
    "grad_reference_heads",
    "grad_frame_logits",
    "grad_velocity",
    "grad_offset_table",
    "grad_logit_table",
    "grad_table_shares",
]
_SCRATCH = ("value_sum", "value_fixed", "largest", "reference_heads", "table_shares")


class _Call(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in _NUMBERS] + [(name, ctypes.c_void_p) for name in _POINTERS]


class _Workspace(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in _SCRATCH]


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
    """Arguments of the operator.  For the fused and temporal ones ``locations`` are offsets and ``weights`` logits."""

    mode: str
    shapes: Sequence[tuple[int, int]]
    value: Tensor
    locations: Tensor
    weights: Tensor
    frame_index: Tensor | None = None
    reference: Tensor | None = None
    valid_ratios: Tensor | None = None
    frame_logits: Tensor | None = None
    velocity: Tensor | None = None
    offset_table: Tensor | None = None
    logit_table: Tensor | None = None
    dt: Tensor | None = None

    @property
    def sum_dtype(self) -> torch.dtype:
        return torch.float64 if self.value.dtype == torch.float64 else torch.float32

    def to_double(self) -> Inputs:
        """The same numbers in float64."""
        names = ("value", "locations", "weights", "reference", "valid_ratios", "frame_logits")
        names += ("velocity", "offset_table", "logit_table", "dt")
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
    queries = inputs.locations.shape[1]
    frames = inputs.locations.shape[3] if inputs.dt is None else inputs.dt.shape[2]
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
        table_rows=0 if inputs.logit_table is None else len(inputs.logit_table),
        order=("ascending", "descending", "random").index(schedule.order),
    )
    for name in _NUMBERS:
        if name != "order" and hasattr(schedule, name):
            setattr(call, name, int(getattr(schedule, name)))
    if index is not None:
        call.stride_b, call.stride_q, call.stride_f = queries * frames, frames, 1
    call.shapes = memory.put("shapes", torch.tensor(inputs.shapes, dtype=torch.int64))
    for name in ("value", "locations", "weights", "reference", "valid_ratios", "frame_logits", "frame_index"):
        setattr(call, name, memory.put(name, getattr(inputs, name)))
    for name in ("velocity", "offset_table", "logit_table", "dt"):
        setattr(call, name, memory.put(name, getattr(inputs, name)))
    return call


def _check(library: ctypes.CDLL, failed: int) -> None:
    library.stdetr_last_error.restype = ctypes.c_char_p
    if failed:
        raise RuntimeError(library.stdetr_last_error().decode())


def _workspace(library: ctypes.CDLL, call: _Call, reference_gradient: bool) -> dict[str, int]:
    found = _Workspace()
    _check(library, library.stdetr_workspace(ctypes.byref(call), int(reference_gradient), ctypes.byref(found)))
    return {name: int(getattr(found, name)) for name in _SCRATCH}


def forward(inputs: Inputs, schedule: Schedule = Schedule()) -> tuple[Tensor, Tensor]:
    """Output B,Q,H*D and log-sum-exp B,Q,H (of the fused and temporal operators; else empty)."""
    library, memory = host_library(), _Memory()
    call = _describe(library, inputs, schedule, memory)
    batch, _, _, heads, channels = inputs.value.shape
    queries = inputs.locations.shape[1]
    shape = (batch, queries, heads * channels)
    rows = batch * queries * heads if inputs.mode in FUSED else 0
    call.out = memory.reserve("out", batch * queries * heads * channels * inputs.value.element_size())
    call.lse = memory.reserve("lse", rows * inputs.sum_dtype.itemsize)
    _check(library, library.stdetr_run(ctypes.byref(call), 0))
    out = memory.take("out", call.out, None, shape, inputs.value.dtype)
    lse_shape = (batch, queries, heads) if rows else (0,)
    return out, memory.take("lse", call.lse, None, lse_shape, inputs.sum_dtype)


@dataclass(frozen=True)
class Gradients:
    value: Tensor
    locations: Tensor
    weights: Tensor
    reference: Tensor | None = None
    velocity: Tensor | None = None
    offset_table: Tensor | None = None
    logit_table: Tensor | None = None
    frame_logits: Tensor | None = None


def scratch_bytes(
    inputs: Inputs, schedule: Schedule = Schedule(), *, deterministic: bool = False, reference_gradient: bool = True
) -> dict[str, int]:
    """Bytes of each scratch memory that the backward pass asks for."""
    library, memory = host_library(), _Memory()
    call = _describe(library, inputs, schedule, memory)
    call.deterministic = int(deterministic)
    return _workspace(library, call, reference_gradient)


def backward(
    inputs: Inputs,
    grad_out: Tensor,
    schedule: Schedule = Schedule(),
    *,
    out: Tensor | None = None,
    lse: Tensor | None = None,
    deterministic: bool = False,
    reference_gradient: bool = True,
) -> Gradients:
    """Gradients of every input; ``out`` and ``lse`` from ``forward`` are needed by the fused and temporal operators.

    ``reference_gradient=False`` (temporal only): the reference gets none.
    """
    library, memory = host_library(), _Memory()
    call = _describe(library, inputs, schedule, memory)
    call.deterministic = int(deterministic)
    value = inputs.value
    call.grad_out, call.out, call.lse = (
        memory.put("grad_out", grad_out),
        memory.put("out", out),
        memory.put("lse", lse),
    )
    call.grad_value = memory.reserve("grad_value", value.nbytes)
    call.grad_value_sum = call.grad_value
    scratch = {name: size for name, size in _workspace(library, call, reference_gradient).items() if size > 0}
    for name, size in scratch.items():
        field = name if name == "largest" else f"grad_{name}"
        setattr(call, field, memory.reserve(name, size))
    some = ["velocity", "offset_table", "logit_table", "frame_logits"] + (["reference"] if reference_gradient else [])
    some = [name for name in some if getattr(inputs, name) is not None]
    for name in ("locations", "weights", *some):
        setattr(call, f"grad_{name}", memory.reserve(f"grad_{name}", getattr(inputs, name).nbytes))
    _check(library, library.stdetr_run(ctypes.byref(call), 1))
    for name, size in scratch.items():
        field = name if name == "largest" else f"grad_{name}"
        memory.take(name, getattr(call, field), None, (size,), torch.uint8)  # raises where a guard was touched

    def take(name: str) -> Tensor:
        like = getattr(inputs, name)
        return memory.take(f"grad_{name}", getattr(call, f"grad_{name}"), like, (), like.dtype)

    return Gradients(take("value"), take("locations"), take("weights"), **{name: take(name) for name in some})


def counters() -> dict[str, int]:
    """How many grids, blocks, block barriers and warp exchanges were stepped so far."""
    library = host_library()
    library.stdetr_counters.restype = _Counters
    seen = library.stdetr_counters()
    return {name: int(getattr(seen, name)) for name, *_ in _Counters._fields_}
