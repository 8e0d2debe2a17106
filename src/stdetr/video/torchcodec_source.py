"""Video files through torchcodec.  h, w height and width in pixels; T requested frames."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stdetr.video.av_source import AvSource, same_pixels
from stdetr.video.source import VideoSource

_log = logging.getLogger(__name__)


def _load() -> Any:
    """torchcodec's decoder class; raises a ValueError that says what is missing."""
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


def _open(name: str) -> Any:
    return _load()(name, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")


def _read(path: Path, numbers: list[int]) -> np.ndarray:
    """T,h,w,3."""
    return _open(str(path)).get_frames_at(numbers).data.numpy()


class TorchcodecSource(AvSource):
    """torchcodec's exact seek mode.

    Every frame is identified by its presentation time.  Where torchcodec gives another frame or none (0.17 does both in
    MPEG program streams), PyAV reads the file from then on, with the same pixels; a frame that neither can decode is an
    error.  PyAV also reads files with a damaged frame, since torchcodec does not tell.
    """

    backend = "torchcodec"

    def __init__(self, path: Path, on_corrupt: str = "stop") -> None:
        super().__init__(path, on_corrupt)
        _load()
        self._decoder: Any = None
        self._exact = self._index.plain  # it can neither mirror nor tell damaged frames

    def frames(self, indices: Sequence[int]) -> list[np.ndarray]:
        """T arrays h,w,3 uint8 RGB."""
        numbers = self.check_indices(indices)
        if not numbers or not self._exact:
            return super().frames(numbers)
        if self._decoder is None and not same_pixels(_read, self._path):
            self._exact = False
            return super().frames(numbers)
        try:
            if self._decoder is None:
                self._decoder = _open(self.name)
            batch = self._decoder.get_frames_at(numbers)
            if self._in_time(numbers, batch.pts_seconds.numpy()):
                return list(batch.data.numpy())
            reason = "it gives other frames"
        except (RuntimeError, ValueError, IndexError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        try:
            frames = super().frames(numbers)
        except ValueError:
            raise ValueError(
                f"{self.name}: frames {numbers[0]} to {numbers[-1]} cannot be decoded (backend torchcodec): {reason}"
            ) from None
        _log.info("%s: torchcodec cannot read this file exactly (%s), PyAV reads it", self.name, reason)
        self._exact, self._decoder = False, None
        return frames

    def _in_time(self, numbers: list[int], seconds: np.ndarray) -> bool:
        """Whether frames with these presentation times are the frames ``numbers``."""
        if self._index.pts is None:
            return False
        expected = self._index.pts[numbers] * self._index.time_base
        return bool((np.abs(seconds - expected) < self._index.time_base + 1e-5).all())

    def iterate(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """Sequential frames; torchcodec decodes on demand."""
        return VideoSource.iterate(self, start, stop, step)

    def close(self) -> None:
        """Close the file."""
        super().close()
        self._decoder = None
