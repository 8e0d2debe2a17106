"""Video files through decord.  h, w height and width in pixels; T requested frames."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stdetr.video.av_source import NEARBY, AvSource, same_pixels

_log = logging.getLogger(__name__)


class DecordSource(AvSource):
    """decord for scattered reads, PyAV for reads in sequence.

    decord's reader keeps decoding between reads (hundreds of megabytes within seconds at 720p), so it is dropped after
    each read and reopened for the next.  Reads that continue where the last one stopped, and :meth:`iterate`, use PyAV,
    which holds one picture; both give the same pixels.  PyAV also reads what decord reads otherwise: open groups of
    pictures, where its frame numbers are wrong, files whose packets are not their frames, a few small widths, and files
    with a damaged frame, which decord would hand out without a word.  To know, each file is decoded once per process
    by PyAV and compared with decord at a few frames.
    """

    backend = "decord"

    def __init__(self, path: Path, on_corrupt: str = "stop") -> None:
        super().__init__(path, on_corrupt)
        self._exact = self._index.closed and self._index.plain and len(self._index.keys) > 1
        self._after = 0  # a closed file stands before its first frame

    def frames(self, indices: Sequence[int]) -> list[np.ndarray]:
        """T arrays h,w,3 uint8 RGB."""
        numbers = self.check_indices(indices)
        if not numbers:
            return []
        if self._exact and not same_pixels(_read, self._path):
            _log.info("%s: decord does not read this file exactly, PyAV reads it", self.name)
            self._exact = False
        continues = 0 <= numbers[0] - self._after <= NEARBY and numbers == sorted(numbers)
        if not continues and self._exact:
            super().close()
            self._after = numbers[-1] + 1
            return self._fetch(numbers)
        self._after = numbers[-1] + 1
        return super().frames(numbers)

    def _fetch(self, numbers: list[int]) -> list[np.ndarray]:
        try:
            return list(_read(self._path, numbers))
        except RuntimeError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(
                f"{self.name}: frames {numbers[0]} to {numbers[-1]} cannot be decoded (backend decord): {lines[-1]}"
            ) from None

    def close(self) -> None:
        """Close the file."""
        super().close()
        self._after = 0


def _read(path: Path, numbers: list[int]) -> np.ndarray:
    """T,h,w,3; raises RuntimeError."""
    import torch  # noqa: F401 - decord must be loaded after torch, or both crash
    import decord  # isort: skip

    try:
        return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1).get_batch(numbers).asnumpy()
    except decord.DECORDError as error:
        raise RuntimeError(str(error)) from None
