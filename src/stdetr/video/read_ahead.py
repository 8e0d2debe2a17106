"""Frames decoded in a separate thread, a few ahead of the reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class ReadAhead:
    """Calls ``decode`` for the numbers ``first``, ``first + 1``, ... in a thread, at most three groups ahead.

    FFmpeg decodes without Python's lock, so the reader's work costs the decoder little time.  Nothing else may use the
    decoder until :meth:`stop` returns.  The thread ends with this object.

    decode: returns the frame of a number; its exception is raised where that frame is taken
    stop:   the first number that does not exist
    group:  frames that are handed over together: waking the reader can cost more time than decoding a frame
    """

    def __init__(self, decode: Callable[[int], Any], first: int, stop: int, group: int) -> None:
        self.next = first
        """The frame number that :meth:`take` returns without dropping any."""
        self._here: deque[Any] = deque()
        self._groups = (range(start, min(start + group, stop)) for start in range(first, stop, group))
        self._decode = decode
        self._thread = ThreadPoolExecutor(1)
        self._coming: deque[Future[list[Any]]] = deque()
        self._order()
        self._order()

    def take(self, number: int) -> Any:
        """The frame ``number``, which is at least ``next``; those before it are dropped."""
        assert number >= self.next
        while True:
            if not self._here:
                self._here.extend(self._coming.popleft().result())
                self._order()
            if isinstance(self._here[0], Exception):
                raise self._here[0]
            frame = self._here.popleft()
            self.next += 1
            if self.next > number:
                return frame

    def stop(self) -> None:
        """End the thread; waits for the group that is being decoded."""
        self._thread.shutdown(cancel_futures=True)

    def _order(self) -> None:
        group = next(self._groups, None)
        if group is not None:
            self._coming.append(self._thread.submit(_decode_group, self._decode, group))


def _decode_group(decode: Callable[[int], Any], group: range) -> list[Any]:
    """The frames of a group up to the first failure, which is represented by its exception."""
    frames: list[Any] = []
    for number in group:
        try:
            frames.append(decode(number))
        except Exception as error:
            return [*frames, error]
    return frames
