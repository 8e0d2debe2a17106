"""Signals that ask a run to stop.  It finishes its step, saves, closes its loggers and exits with a code that says that
the same command goes on.

SIGTERM and SIGUSR1 come from schedulers (preemption; the end of the time, ``sbatch --signal=USR1@120``), SIGUSR2 from
submitit, SIGHUP from a closed terminal, SIGINT from Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

RESTART, INTERRUPTED = 75, 130
"""Exit codes: EX_TEMPFAIL of sysexits.h, for ``RequeueExit`` of Slurm; after Ctrl-C 128 + SIGINT, as shells have it."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)


class Stopped(SystemExit):
    """The run ends as it was asked to.  agreed: every process raises this at the same step."""

    def __init__(self, number: int, *, agreed: bool = False) -> None:
        super().__init__(INTERRUPTED if number == signal.SIGINT else RESTART)
        self.number, self.agreed = number, agreed

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


class StopRequest:
    """Whether a signal has asked this process to stop.

    deferred: the training loop looks at ``number`` after its step; otherwise a signal raises ``Stopped`` at once
    """

    def __init__(self) -> None:
        self.number = 0
        self.deferred = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For work that a later run does again: a signal, also an earlier one, ends it."""
        before, self.deferred = self.deferred, False
        if self.number:
            raise Stopped(self.number)
        try:
            yield
        finally:
            self.deferred = before

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """The handler of the signals."""
        if self.number:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.number = number
        if not self.deferred:
            raise Stopped(number)
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        # Not print: the signal may come while something else is printed.
        os.write(2, f"\n{signal.Signals(number).name}: stopping after this step{again}\n".encode())


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Receive the signals for the length of the block; those that are ignored (``nohup``) stay ignored.

    Who handled a signal before, as submitit does to requeue its job, gets it after the block.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        # SIGUSR2 means a stop only where somebody, who would requeue, says so.
        if handler is not signal.SIG_IGN and (number != signal.SIGUSR2 or callable(handler)):
            signal.signal(number, request.receive)
    try:
        yield request
    except Stopped as stopped:
        _restore(before)
        handler = before[signal.Signals(stopped.number)]
        if callable(handler) and handler is not signal.default_int_handler:
            handler(stopped.number, None)
        raise
    finally:
        _restore(before)


def _restore(handlers: dict) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)
