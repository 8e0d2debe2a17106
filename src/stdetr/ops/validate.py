"""Argument checks of the attention op, done before any kernel runs.

Shape legend
    B clips    T frames    S tokens of a frame    H heads    D channels per head
    Q queries  F sampled frames    L levels    K points per head, level and frame

Every failure is a ``ValueError`` that names the argument, and the expected and the actual shape (dtype, device).
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from stdetr.ops.transforms import transforms_active

VALUE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_tensor(name: str, tensor: object, letters: str) -> Tensor:
    """``tensor`` is a floating tensor with as many axes as ``letters`` ("B,T,S,H,D") names."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor of shape ({letters}), got {type(tensor).__name__}")  # noqa: TRY004
    if tensor.ndim != len(letters.split(",")):
        raise ValueError(f"{name} must have shape ({letters}), got {tuple(tensor.shape)}")
    return tensor


def check_shape(name: str, tensor: Tensor, letters: str, expected: tuple[int, ...], against: Tensor) -> None:
    """The shape of ``tensor`` is ``expected``, which value's shape (``against``) and the other arguments determine."""
    if tuple(tensor.shape) != expected:
        raise ValueError(
            f"{name} must have shape ({letters}) = {expected} for value of shape {tuple(against.shape)}, "
            f"got {tuple(tensor.shape)}"
        )


def check_device(name: str, tensor: Tensor, value: Tensor) -> None:
    if tensor.device != value.device:
        raise ValueError(f"{name} is on {tensor.device} but value is on {value.device}; move it with .to(value.device)")


def check_dtype(name: str, tensor: Tensor, allowed: Sequence[torch.dtype], value: Tensor) -> None:
    if tensor.dtype not in allowed:
        names = " or ".join(dict.fromkeys(_name(dtype) for dtype in allowed))
        raise ValueError(f"{name} must be {names} for value of {_name(value.dtype)}, got {_name(tensor.dtype)}")


def check_frame_logits(
    frame_logits: Tensor | None, value: Tensor, expected: tuple[int, ...], precise: torch.dtype
) -> None:
    """B,Q,H,F in the dtype of sums, or None."""
    if frame_logits is None:
        return
    check_tensor("frame_logits", frame_logits, "B,Q,H,F")
    check_shape("frame_logits", frame_logits, "B,Q,H,F", expected, value)
    check_dtype("frame_logits", frame_logits, (precise,), value)
    check_device("frame_logits", frame_logits, value)


def check_value(value: object, letters: str = "B,T,S,H,D") -> Tensor:
    value = check_tensor("value", value, letters)
    if value.dtype not in VALUE_DTYPES:
        names = ", ".join(_name(dtype) for dtype in VALUE_DTYPES)
        raise ValueError(f"value must be one of {names}, got {_name(value.dtype)}")
    return value


def _is_integer(size: object) -> bool:
    """Integers of Python and NumPy and the symbolic ones of an exported graph; True is not a size."""
    return isinstance(size, (Integral, torch.SymInt)) and not isinstance(size, bool)


def check_spatial_shapes(spatial_shapes: object, value: Tensor) -> list[tuple[int, int]]:
    """L pairs (h, w) of positive host integers whose areas add up to S of ``value`` (B,T,S,H,D)."""
    if isinstance(spatial_shapes, Tensor):
        raise ValueError(  # noqa: TRY004
            "spatial_shapes must be a list of (h, w) integers on the host, got a tensor; "
            "keep the list that the tensor was made from (a tensor would stall the GPU)"
        )
    if not isinstance(spatial_shapes, Sequence) or isinstance(spatial_shapes, str):
        raise ValueError(f"spatial_shapes must be a list of (h, w) integers, got {type(spatial_shapes).__name__}")  # noqa: TRY004
    pairs: list[tuple[int, int]] = []
    for pair in spatial_shapes:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f"spatial_shapes must hold (h, w) pairs, got {pair!r}")
        height, width = pair
        if not (_is_integer(height) and _is_integer(width)) or height < 1 or width < 1:
            raise ValueError(f"spatial_shapes must hold positive integers, got {(height, width)}")
        pairs.append((height, width))
    tokens = sum(height * width for height, width in pairs)
    if tokens != value.shape[2]:
        raise ValueError(
            f"spatial_shapes {pairs} have {tokens} tokens but value of shape {tuple(value.shape)} "
            f"has S = {value.shape[2]}"
        )
    return pairs


def check_frame_index(frame_index: Tensor | None, value: Tensor, queries: int, frames: int) -> Tensor | None:
    """B,Q,F int32 (expanded from Q,F if need be) or None, which needs F = T.

    Values are checked on the CPU only, and not under torch.func: on a GPU the check would stall the stream, and vmap
    lets nobody read a value.  There an index outside 0..T-1 reads as masked.
    """
    batch, clip = value.shape[:2]
    if frame_index is None:
        if frames != clip:
            raise ValueError(
                f"frame_index is needed when F differs from T: sampling has F = {frames} frames, "
                f"value of shape {tuple(value.shape)} has T = {clip}"
            )
        return None
    if not isinstance(frame_index, Tensor):
        raise ValueError(f"frame_index must be an int32 or int64 tensor, got {type(frame_index).__name__}")  # noqa: TRY004
    if frame_index.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"frame_index must be int32 or int64, got {_name(frame_index.dtype)}")
    check_device("frame_index", frame_index, value)
    if frame_index.ndim == 2:
        check_shape("frame_index", frame_index, "Q,F", (queries, frames), value)
    elif frame_index.ndim == 3:
        check_shape("frame_index", frame_index, "B,Q,F", (batch, queries, frames), value)
    else:
        raise ValueError(f"frame_index must have shape (Q,F) or (B,Q,F), got {tuple(frame_index.shape)}")
    watched = frame_index.device.type == "cpu" and not torch.compiler.is_compiling() and not transforms_active()
    if watched and frame_index.numel():
        low, high = (int(bound) for bound in torch.aminmax(frame_index))
        if low < -1 or high >= clip:
            raise ValueError(
                f"frame_index must lie in -1..{clip - 1} (-1 = masked) for value of shape {tuple(value.shape)}, "
                f"got {low}..{high}"
            )
    if frame_index.dtype == torch.int64:
        # What was not checked above must stay outside 0..T-1 when it is narrowed: 2^32 would read frame 0.
        frame_index = frame_index.clamp(-1, clip).to(torch.int32)
    return frame_index.expand(batch, queries, frames)
