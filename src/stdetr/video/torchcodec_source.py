"""Video files through torchcodec.  h, w height and width in pixels; T frames asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stdetr.video.av_source import AvSource
from stdetr.video.packet_index import scan_packets
from stdetr.video.source import check_indices, check_range

_log = logging.getLogger(__name__)


def _load() -> Any:
    """torchcodec's decoder class, or a ValueError that says what is missing."""
    try:
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"data.backend=torchcodec needs the package torchcodec ({error}): pip install 'stdetr[torchcodec]', or "
            "choose decord"
        ) from None
    except (RuntimeError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            "data.backend=torchcodec cannot load its FFmpeg libraries (it needs the system's FFmpeg 4 to 9, and a "
            f"torchcodec that matches this torch): {lines[0]}; install them, or choose decord"
        ) from None
    return VideoDecoder


class TorchcodecSource:
    """A :class:`~stdetr.video.source.VideoSource` over torchcodec's exact seek mode.

    Every frame is recognised by its presentation time.  Where torchcodec gives another frame or none (0.17 does both in
    MPEG program streams), PyAV reads the file from then on, with the same pixels; a frame that neither can decode is an
    error.
    """

    backend = "torchcodec"

    def __init__(self, path: Path) -> None:
        self.name, self._path = str(path), path
        self._index = index = scan_packets(path)
        self.size, self.fps, self._length = index.size, index.fps, index.count
        self._class = _load()
        self._decoder: Any = None
        self._other: AvSource | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_path"])

    def __len__(self) -> int:
        return self._length

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """T,h,w,3 uint8 RGB."""
        numbers = check_indices(self.name, self.backend, self._length, indices)
        if not numbers:
            return np.zeros((0, *self.size, 3), dtype=np.uint8)
        if self._other is not None:
            return self._other.read(numbers)
        try:
            if self._decoder is None:
                self._decoder = self._class(self.name, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
            batch = self._decoder.get_frames_at(numbers)
            if self._in_time(numbers, batch.pts_seconds.numpy()):
                return batch.data.numpy()
            reason = "it gives other frames"
        except (RuntimeError, ValueError, IndexError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        other = AvSource(self._path)
        try:
            frames = other.read(numbers)
        except ValueError:
            raise ValueError(
                f"{self.name}: frames {numbers[0]} to {numbers[-1]} cannot be decoded (backend torchcodec): {reason}"
            ) from None
        _log.info("%s: torchcodec cannot read this file exactly (%s), PyAV reads it", self.name, reason)
        self._other, self._decoder = other, None
        return frames

    def frames(self, indices: Sequence[int]) -> Sequence[np.ndarray]:
        """T arrays h,w,3 uint8 RGB."""
        return list(self.read(indices))

    def _in_time(self, numbers: list[int], seconds: np.ndarray) -> bool:
        """Whether frames with these presentation times are the frames ``numbers``."""
        if self._index.pts is None:
            return False
        wanted = self._index.pts[numbers] * self._index.time_base
        return bool((np.abs(seconds - wanted) < self._index.time_base + 1e-5).all())

    def iterate(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """Sequential frames; torchcodec decodes on demand."""
        for number in check_range(self.name, start, stop, step, self._length):
            yield number, self.read([number])[0]

    def close(self) -> None:
        """Close the file."""
        self._decoder = None
        if self._other is not None:
            self._other.close()
