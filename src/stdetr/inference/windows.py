"""Frames in order, cut into windows.

Shape legend
    T frames of a window
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

Frame = TypeVar("Frame")


class WindowCutter(Generic[Frame]):
    """Windows of ``length`` frames that share ``overlap`` with the previous window.

    The last window is moved back so that it has full length too (and then shares more); only a video shorter than one
    window gives a shorter one.  At most ``length`` frames are held.

    Raises ValueError for numbers that do not fit.
    """

    def __init__(self, length: int, overlap: int) -> None:
        if length < 1:
            raise ValueError(f"clip_length={length} must be at least 1")
        if not 0 <= overlap < length:
            raise ValueError(f"overlap={overlap} must lie in [0, clip_length - 1] = [0, {length - 1}]")
        self.length, self.overlap = length, overlap
        self._recent: deque[Frame] = deque(maxlen=length)
        self._new, self._due = 0, length

    def push(self, frame: Frame) -> tuple[list[Frame], int] | None:
        """The window that this frame completes, and how many of its frames no earlier window has; else None."""
        self._recent.append(frame)
        self._new += 1
        return self.end() if self._new == self._due else None

    def resume(self, frames: Sequence[Frame]) -> None:
        """Go on after a window of these frames."""
        self._recent.extend(frames)
        self._due = self.length - self.overlap

    def end(self) -> tuple[list[Frame], int] | None:
        """The same for the frames that are left; None where none are."""
        new, self._new, self._due = self._new, 0, self.length - self.overlap
        return (list(self._recent), new) if new else None
