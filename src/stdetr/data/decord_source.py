"""Video files through decord.  h, w height and width in pixels; T frames asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: F401 - decord must be loaded after torch, or both crash

from stdetr.data.video_source import check_indices, check_range


class DecordSource:
    """A :class:`~stdetr.data.video_source.VideoSource` over one video file.

    The reader is dropped after each :meth:`read`: an idle decord reader goes on decoding ahead, without limit.
    Raises ValueError naming the file when decord cannot open it.
    """

    backend = "decord"

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        reader = self._open()
        self._length = len(reader)
        if self._length < 1:
            raise ValueError(f"{path}: no frame can be decoded (backend decord)")
        self.fps = float(reader.get_avg_fps())
        self.size = tuple(int(side) for side in reader[0].shape[:2])

    def _open(self) -> Any:
        import decord

        try:
            return decord.VideoReader(self.name, ctx=decord.cpu(0), num_threads=1)
        except (RuntimeError, decord.DECORDError) as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise ValueError(f"{self.name} cannot be opened as a video (backend decord): {reason}") from error

    def __len__(self) -> int:
        return self._length

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """T,h,w,3 uint8 RGB."""
        import decord

        numbers = check_indices(self.name, self.backend, self._length, indices)
        if not numbers:
            return np.zeros((0, *self.size, 3), dtype=np.uint8)
        reader = self._open()
        try:
            return reader.get_batch(numbers).asnumpy()
        except (RuntimeError, decord.DECORDError) as error:
            raise ValueError(f"{self.name}: frames {numbers} cannot be decoded (backend decord): {error}") from error

    def iterate(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """Sequential frames."""
        for index in check_range(self.name, start, stop, step, self._length):
            yield index, self.read([index])[0]

    def close(self) -> None:
        """No reader outlives a call."""
