"""What every reader of a video offers, and the checks that readers share.

Shape legend
    T frames asked for     h, w height and width in pixels

Frame numbers count decoded frames from 0.  Readers are opened in the process that uses them (decoders neither
survive a fork nor pickle), so a :class:`VideoSource` is made inside the worker and closed there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".ogv")


@runtime_checkable
class VideoSource(Protocol):
    """Random and sequential access to the frames of one video.

    name: what to call it in messages and result files
    size: (h, w) in pixels, as displayed (rotation metadata applied)
    fps:  frames a second, 0.0 where the source has no clock
    """

    name: str
    size: tuple[int, int]
    fps: float

    def __len__(self) -> int:
        """Number of frames that can be decoded."""
        ...

    def frames(self, indices: Sequence[int]) -> Sequence[np.ndarray]:
        """T arrays h,w,3 uint8 RGB: the frames ``indices``, in that order, exactly.

        They are where the decoder left them, for who copies them anyway.  A repeated frame may be the same array.
        Raises ValueError naming file, index and backend when one is out of range or cannot be decoded.
        """
        ...

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """The same as one array T,h,w,3."""
        ...

    def iterate(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """(frame number, h,w,3 uint8 RGB) from ``start`` to ``stop``, in bounded memory whatever the length."""
        ...

    def close(self) -> None:
        """Release decoder and memory; a later read opens them again."""
        ...


def check_indices(name: str, backend: str, length: int, indices: Sequence[int]) -> list[int]:
    """The indices as a list of int; raises ValueError for one outside ``[0, length)``."""
    numbers = [int(index) for index in indices]
    for number in numbers:
        if not 0 <= number < length:
            raise ValueError(
                f"{name}: frame {number} does not exist, it has {length} frames numbered from 0 (backend {backend})"
            )
    return numbers


def stack_frames(frames: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """T arrays h,w,3 as one T,h,w,3; ``size`` (h, w) tells the sides where there is none."""
    return np.stack(frames) if len(frames) else np.zeros((0, *size, 3), dtype=np.uint8)


def check_range(name: str, start: int, stop: int | None, step: int, length: int) -> range:
    """The frames of ``iterate``; ``stop`` beyond the end means the end."""
    if step < 1:
        raise ValueError(f"{name}: step must be at least 1, got {step}")
    if start < 0:
        raise ValueError(f"{name}: start must be at least 0, got {start}")
    return range(start, length if stop is None else min(stop, length), step)
