"""Windows: which frames, in which order, and how many frames are held."""

from __future__ import annotations

import numpy as np
import pytest

from stdetr.inference.windows import iterate_windows


def spans(array_source, length: int, *args, **kwargs) -> list[tuple[int, ...]]:
    source = array_source(np.arange(length, dtype=np.uint8)[:, None, None, None].repeat(3, -1))
    windows = list(iterate_windows(source, *args, **kwargs))
    for window in windows:
        assert window.frames[:, 0, 0, 0].tolist() == list(window.frame_index)
    return [window.frame_index for window in windows]


def test_the_last_window_is_moved_back(array_source):
    assert spans(array_source, 12, 5, 2) == [(0, 1, 2, 3, 4), (3, 4, 5, 6, 7), (6, 7, 8, 9, 10), (7, 8, 9, 10, 11)]
    assert spans(array_source, 8, 5, 2) == [(0, 1, 2, 3, 4), (3, 4, 5, 6, 7)]
    assert spans(array_source, 7, 3, 0) == [(0, 1, 2), (3, 4, 5), (4, 5, 6)]
    assert spans(array_source, 3, 1, 0) == [(0,), (1,), (2,)]
    assert spans(array_source, 5, 3, 2) == [(0, 1, 2), (1, 2, 3), (2, 3, 4)]


def test_short_and_empty_videos(array_source):
    assert spans(array_source, 3, 5, 2) == [(0, 1, 2)]
    assert spans(array_source, 1, 5, 4) == [(0,)]
    assert spans(array_source, 0, 5, 2) == []


def test_start_stop_and_step(array_source):
    assert spans(array_source, 20, 3, 1, start=4, stop=14, step=2) == [(4, 6, 8), (8, 10, 12)]
    assert spans(array_source, 20, 3, 1, start=19) == [(19,)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "clip_length=0 must be at least 1"),
        ((5, 5), r"overlap=5 must lie in \[0, clip_length - 1\] = \[0, 4\]"),
        ((5, -1), "overlap=-1"),
    ],
)
def test_numbers_that_do_not_fit(array_source, arguments, message):
    with pytest.raises(ValueError, match=message):
        spans(array_source, 10, *arguments)
    with pytest.raises(ValueError, match="step=0 must be at least 1"):
        spans(array_source, 10, 5, 0, step=0)
