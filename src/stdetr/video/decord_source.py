"""Video files through decord.  h, w height and width in pixels; T requested frames."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stdetr.video.av_source import NEARBY, AvSource

_log = logging.getLogger(__name__)


class DecordSource(AvSource):
    """decord for scattered reads, PyAV for reads in sequence.

    decord's reader keeps decoding between reads (hundreds of megabytes within seconds at 720p), so it is dropped after
    each read and reopened for the next.  Reads that continue where the last one stopped, and :meth:`iterate`, use PyAV,
    which holds one picture; both give the same pixels.  In files with open groups of pictures decord's frame numbers
    are wrong, and at a few small widths it fails, so PyAV reads those.
    """

    backend = "decord"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._exact = self._index.closed
        self._after = 0  # a closed file stands before its first frame
        if not self._exact:
            _log.info("%s: decord cannot seek exactly in open groups of pictures, PyAV reads it", path)

    def frames(self, indices: Sequence[int]) -> list[np.ndarray]:
        """T arrays h,w,3 uint8 RGB."""
        numbers = self.check_indices(indices)
        if not numbers:
            return []
        continues = 0 <= numbers[0] - self._after <= NEARBY and numbers == sorted(numbers)
        if not continues and self._exact:
            super().close()
            self._after = numbers[-1] + 1
            return self._fetch(numbers)
        self._after = numbers[-1] + 1
        return super().frames(numbers)

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
                return super().frames(numbers)
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(
                f"{self.name}: frames {numbers[0]} to {numbers[-1]} cannot be decoded (backend decord): {lines[-1]}"
            ) from None
        if frames.shape[1:3] != self.size:
            have, want = (f"{shape[1]}x{shape[0]}" for shape in (frames.shape[1:], self.size))
            raise ValueError(f"{self.name}: decord gives frames of {have}, FFmpeg {want}; choose data.backend=av")
        return list(frames)

    def close(self) -> None:
        """Close the file."""
        super().close()
        self._after = 0
