"""Windows: which frames, in which order, and how many frames are held."""

from __future__ import annotations

import pytest

from stdetr.inference.windows import WindowCutter


def spans(length: int, frames: int, overlap: int) -> list[tuple[int, ...]]:
    """The windows of a video of ``length`` frames; those that are new follow each other without a gap."""
    cutter: WindowCutter[int] = WindowCutter(frames, overlap)
    found = [window for window in (*map(cutter.push, range(length)), cutter.end()) if window is not None]
    assert [frame for window, new in found for frame in window[-new:]] == list(range(length))
    assert cutter.end() is None
    return [tuple(window) for window, _ in found]


def test_the_last_window_is_moved_back():
    assert spans(12, 5, 2) == [(0, 1, 2, 3, 4), (3, 4, 5, 6, 7), (6, 7, 8, 9, 10), (7, 8, 9, 10, 11)]
    assert spans(8, 5, 2) == [(0, 1, 2, 3, 4), (3, 4, 5, 6, 7)]
    assert spans(7, 3, 0) == [(0, 1, 2), (3, 4, 5), (4, 5, 6)]
    assert spans(3, 1, 0) == [(0,), (1,), (2,)]
    assert spans(5, 3, 2) == [(0, 1, 2), (1, 2, 3), (2, 3, 4)]


def test_short_and_empty_videos():
    assert spans(3, 5, 2) == [(0, 1, 2)]
    assert spans(1, 5, 4) == [(0,)]
    assert spans(0, 5, 2) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "clip_length=0 must be at least 1"),
        ((5, 5), r"overlap=5 must lie in \[0, clip_length - 1\] = \[0, 4\]"),
        ((5, -1), "overlap=-1"),
    ],
)
def test_numbers_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        WindowCutter(*arguments)
