"""The interface of video readers.

Shape legend
    T requested frames     h, w height and width in pixels

Frame numbers count decoded frames from 0.  Readers are opened in the process that uses them (decoders neither
survive a fork nor pickle), so a :class:`VideoSource` is opened inside the worker and closed there.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from stdetr.video.packet_index import scan_packets

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
ON_CORRUPT = ("stop", "keep")
_log = logging.getLogger(__name__)
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".ogv")


class VideoSource(ABC):
    """Random and sequential access to the frames of one video.

    name: for messages and result files
    size: (h, w) in pixels, as displayed (rotation metadata applied)
    fps:  frames per second, 0.0 where the source has no clock
    corrupt: numbers of the frames read so far that their decoder calls damaged
    """

    backend: str
    name: str
    size: tuple[int, int]
    fps: float

    @cached_property
    def corrupt(self) -> set[int]:
        return set()

    @abstractmethod
    def __len__(self) -> int:
        """Number of frames that can be decoded."""

    @abstractmethod
    def frames(self, indices: Sequence[int]) -> list[np.ndarray]:
        """T arrays h,w,3 uint8 RGB: the frames ``indices``, in that order, exactly.

        The arrays may be the decoder's own memory, for callers that copy them anyway.  A repeated frame may be the same
        array.  Raises ValueError naming file, index and backend when one is out of range or cannot be decoded.
        """

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """The same as one array T,h,w,3."""
        frames = self.frames(indices)
        return np.stack(frames) if frames else np.zeros((0, *self.size, 3), dtype=np.uint8)

    def iterate(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """(frame number, h,w,3 uint8 RGB) from ``start`` to ``stop``, in bounded memory whatever the length."""
        for number in self.check_range(start, stop, step):
            yield number, self.frames([number])[0]

    def close(self) -> None:  # noqa: B027 - image files need no closing
        """Release decoder and memory; a later read opens them again."""

    def check_indices(self, indices: Sequence[int]) -> list[int]:
        """The indices as a list of int; raises ValueError for one outside ``[0, len)``."""
        return check_indices(self.name, self.backend, len(self), indices)

    def check_range(self, start: int, stop: int | None, step: int) -> range:
        """The frames of ``iterate``; ``stop`` beyond the end means the end."""
        if step < 1:
            raise ValueError(f"{self.name}: step must be at least 1, got {step}")
        if start < 0:
            raise ValueError(f"{self.name}: start must be at least 0, got {start}")
        return range(start, len(self) if stop is None else min(stop, len(self)), step)


class VideoFile(VideoSource):
    """A video file with the index of its packets; pickled as its path.

    on_corrupt: what to do with a frame that its decoder calls damaged: ``stop`` raises ValueError, ``keep`` takes it,
        notes its number in ``corrupt`` and warns of the first one
    """

    def __init__(self, path: Path, on_corrupt: str = "stop") -> None:
        if on_corrupt not in ON_CORRUPT:
            raise ValueError(f"on_corrupt={on_corrupt} is unknown, it may be {' or '.join(ON_CORRUPT)}")
        self.name, self._path, self._index = str(path), path, scan_packets(path)
        self.size, self.fps = self._index.size, self._index.fps
        self.on_corrupt = on_corrupt

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        return type(self), (self._path, self.on_corrupt)

    def _corrupt(self, number: int) -> None:
        """Frame ``number`` is damaged."""
        if self.on_corrupt == "stop":
            raise ValueError(
                f"{self.name}: frame {number} is damaged, says its decoder; on_corrupt=keep takes such frames"
            )
        if not self.corrupt:
            _log.warning("%s: frame %d is damaged; it and others like it are kept (on_corrupt=keep)", self.name, number)
        self.corrupt.add(number)

    def __len__(self) -> int:
        return self._index.count


def check_indices(name: str, backend: str, length: int, indices: Sequence[int]) -> list[int]:
    """The indices as a list of int; raises ValueError for one outside ``[0, length)``."""
    numbers = [int(index) for index in indices]
    for number in numbers:
        if not 0 <= number < length:
            raise ValueError(
                f"{name}: frame {number} does not exist, it has {length} frames numbered from 0 (backend {backend})"
            )
    return numbers
