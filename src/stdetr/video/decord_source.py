"""Video files through decord.  h, w height and width in pixels; T frames asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stdetr.video.av_source import AvSource
from stdetr.video.packet_index import scan_packets
from stdetr.video.source import check_indices, stack_frames

# Frames ahead of the last read that are still reached by decoding on.
_NEARBY = 32

_log = logging.getLogger(__name__)


class DecordSource:
    """A :class:`~stdetr.video.source.VideoSource`: decord for scattered reads, PyAV for reads in sequence.

    decord's reader goes on decoding while nobody asks (hundreds of megabytes within seconds at 720p), so it is dropped
    after each read and opened again for the next.  Reads that continue where the last one stopped, and :meth:`iterate`,
    decode on with PyAV, which holds one picture; both give the same pixels.  In files with open groups of pictures
    decord's frame numbers are wrong, and at a few small widths it fails, so PyAV reads those.
    """

    backend = "decord"

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        index = scan_packets(path)
        self.size, self.fps = index.size, index.fps
        self._sequence = AvSource(path)
        self._exact = index.closed
        self._after = 0  # a closed file stands before its first frame
        if not index.closed:
            _log.info("%s: decord cannot seek exactly in open groups of pictures, PyAV reads it", path)

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_path"])

    def __len__(self) -> int:
        return len(self._sequence)

    def frames(self, indices: Sequence[int]) -> list[np.ndarray]:
        """T arrays h,w,3 uint8 RGB."""
        numbers = check_indices(self.name, self.backend, len(self), indices)
        if not numbers:
            return []
        continues = 0 <= numbers[0] - self._after <= _NEARBY and numbers == sorted(numbers)
        self._after = numbers[-1] + 1
        if continues or not self._exact:
            return self._sequence.frames(numbers)
        self._sequence.close()
        return self._fetch(numbers)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """T,h,w,3 uint8 RGB."""
        return stack_frames(self.frames(indices), self.size)

    def _fetch(self, numbers: list[int]) -> list[np.ndarray]:
        import torch  # noqa: F401 - decord must be loaded after torch, or both crash
        import decord  # isort: skip

        try:
            reader = decord.VideoReader(self.name, ctx=decord.cpu(0), num_threads=1)
            frames = reader.get_batch(numbers).asnumpy()
        except (RuntimeError, decord.DECORDError) as error:
            if "size must exactly match" in str(error):
                # decord 3.4 cannot copy frames whose rows are padded in memory: widths of 16, 24, 48 and 72 px.
                _log.info("%s: decord cannot read frames %d px wide, PyAV reads it", self.name, self.size[1])
                self._exact = False
                return self._sequence.frames(numbers)
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(
                f"{self.name}: frames {numbers[0]} to {numbers[-1]} cannot be decoded (backend decord): {lines[-1]}"
            ) from None
        if frames.shape[1:3] != self.size:
            have, want = (f"{shape[1]}x{shape[0]}" for shape in (frames.shape[1:], self.size))
            raise ValueError(f"{self.name}: decord gives frames of {have}, FFmpeg {want}; choose data.backend=av")
        return list(frames)

    def iterate(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """Sequential frames in bounded memory."""
        return self._sequence.iterate(start, stop, step)

    def close(self) -> None:
        """Close the file."""
        self._sequence.close()
        self._after = 0  # a closed file stands before its first frame
