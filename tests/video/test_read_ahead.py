"""Decoding ahead: the right frames in order, a bound, errors where they belong, and no thread that stays."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from stdetr.video.read_ahead import ReadAhead


class Decoder:
    def __init__(self, broken: int | None = None) -> None:
        self.made: list[int] = []
        self.broken = broken

    def decode(self, number: int) -> str:
        if number == self.broken:
            raise ValueError(f"frame {number} is damaged")
        self.made.append(number)
        return f"frame {number}"


def settle(decoder: Decoder) -> int:
    """Frames made once the thread waits."""
    before = -1
    while before != len(decoder.made):
        before = len(decoder.made)
        time.sleep(0.05)
    return before


@pytest.mark.parametrize("group", [1, 3, 100])
def test_frames_come_in_order_up_to_the_end(group: int) -> None:
    decoder = Decoder()
    ahead = ReadAhead(decoder.decode, 4, 11, group)
    assert [ahead.take(number) for number in range(4, 11)] == [f"frame {number}" for number in range(4, 11)]
    assert ahead.next == 11
    ahead.stop()
    assert decoder.made == list(range(4, 11))


def test_frames_between_are_dropped() -> None:
    ahead = ReadAhead(decode := Decoder().decode, 0, 20, 4)
    assert [ahead.take(number) for number in (1, 2, 9)] == ["frame 1", "frame 2", "frame 9"]
    ahead.stop()
    assert decode(0) == "frame 0"


def test_it_is_at_most_three_groups_ahead() -> None:
    decoder = Decoder()
    ahead = ReadAhead(decoder.decode, 0, 1000, 5)
    assert settle(decoder) == 10  # one is ready, one waits for room
    ahead.take(0)  # ... and one is being taken
    assert settle(decoder) == 15
    ahead.stop()
    assert settle(decoder) <= 16


def test_an_error_comes_with_its_frame_and_again() -> None:
    decoder = Decoder(broken=3)
    ahead = ReadAhead(decoder.decode, 0, 10, 2)
    assert [ahead.take(number) for number in range(3)] == ["frame 0", "frame 1", "frame 2"]
    for _ in range(2):
        with pytest.raises(ValueError, match="frame 3 is damaged"):
            ahead.take(3)
    ahead.stop()


def test_no_thread_outlives_its_decoder() -> None:
    before = threading.active_count()
    decoder = Decoder()
    decoder.ahead = ReadAhead(decoder.decode, 0, 1000, 2)
    settle(decoder)
    assert threading.active_count() <= before + 1
    del decoder
    gc.collect()
    for _ in range(100):  # it is told to end; a busy machine needs its time
        if threading.active_count() > before:
            time.sleep(0.02)
    assert threading.active_count() <= before
