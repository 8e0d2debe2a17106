"""Frames decoded in a thread of their own, a few ahead of who takes them."""

from __future__ import annotations

import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

_Ready = queue.Queue[list[Any] | Exception]


class ReadAhead:
    """Calls ``decode`` for the numbers ``first``, ``first + 1``, ... in a thread, at most three groups ahead.

    FFmpeg decodes without Python's lock, so what the reader does with its frames costs the decoder little time.  Until
    :meth:`stop` returns nobody else may use the decoder.  The thread keeps neither the decoder nor this object alive.

    decode: bound method that gives the frame of a number; what it raises is raised where that frame is taken
    stop:   the first number that does not exist
    group:  frames that are handed over together: waking the reader for each costs more than some frames take
    """

    def __init__(self, decode: Callable[[int], Any], first: int, stop: int, group: int) -> None:
        self.next = first
        """The number that :meth:`take` gives without dropping any."""
        self._here: deque[Any] = deque()
        self._ready: _Ready = queue.Queue(1)
        halted = threading.Event()
        groups = [range(start, min(start + group, stop)) for start in range(first, stop, group)]
        work = (weakref.WeakMethod(decode), groups, self._ready, halted)
        thread = threading.Thread(target=_decode_groups, args=work, daemon=True)
        thread.start()
        self._end = weakref.finalize(self, _end_thread, thread, self._ready, halted)

    def take(self, number: int) -> Any:
        """The frame ``number``, which is at least ``next``; those before it are dropped."""
        assert number >= self.next
        while True:
            if not self._here:
                made = self._ready.get()
                if isinstance(made, Exception):
                    self._ready.put(made)  # the thread has ended: whoever asks again gets it again
                    raise made
                self._here.extend(made)
            frame = self._here.popleft()
            self.next += 1
            if self.next > number:
                return frame

    def stop(self) -> None:
        """End the thread; waits for the frame that is being decoded."""
        self._end()


def _decode_groups(
    decode: weakref.WeakMethod[Callable[[int], Any]], groups: list[range], ready: _Ready, halted: threading.Event
) -> None:
    for group in groups:
        made: list[Any] = []
        failed: Exception | None = None
        for number in group:
            call = decode()
            if call is None or halted.is_set():
                return
            try:
                made.append(call(number))
            except Exception as error:
                failed = error
                break
            del call
        if made:
            ready.put(made)
        if failed is not None:
            ready.put(failed)
            return


def _end_thread(thread: threading.Thread, ready: _Ready, halted: threading.Event) -> None:
    halted.set()
    while thread.is_alive() and thread is not threading.current_thread():
        # It may be waiting for room.
        try:
            ready.get_nowait()
        except queue.Empty:
            thread.join(0.001)
