"""A video as overlapping windows, read once from start to end.

Shape legend
    T frames of a window      h, w pixels of the source frame
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stdetr.video.source import VideoSource


@dataclass(frozen=True)
class Window:
    """frame_index: T decoded frame numbers; frames: T,h,w,3 uint8 RGB."""

    frame_index: tuple[int, ...]
    frames: np.ndarray


def iterate_windows(
    source: VideoSource, frames: int, overlap: int, *, start: int = 0, stop: int | None = None, step: int = 1
) -> Iterator[Window]:
    """Windows of ``frames`` frames, every ``step``-th of the source, that share ``overlap`` with the previous window.

    The last window is moved back so that it has full length too (and then shares more); only a video shorter than one
    window gives a shorter one.  At most ``frames`` frames are held at a time.

    Raises ValueError for numbers that do not fit.
    """
    if frames < 1:
        raise ValueError(f"clip_length={frames} must be at least 1")
    if not 0 <= overlap < frames:
        raise ValueError(f"overlap={overlap} must lie in [0, clip_length - 1] = [0, {frames - 1}]")
    if step < 1:
        raise ValueError(f"step={step} must be at least 1")
    recent: deque[tuple[int, np.ndarray]] = deque(maxlen=frames)
    new, due = 0, frames
    for item in source.iterate(start, stop, step):
        recent.append(item)
        new += 1
        if new == due:
            yield _window(recent)
            new, due = 0, frames - overlap
    if new:
        yield _window(recent)


def _window(recent: deque[tuple[int, np.ndarray]]) -> Window:
    return Window(tuple(index for index, _ in recent), np.stack([frame for _, frame in recent]))
