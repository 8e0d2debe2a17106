"""One run a folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOCK = ".lock"
_locks: set[IO[str]] = set()
# A lock lasts as long as a process has the file open: not the loader's workers, which outlive a kill by seconds.
os.register_at_fork(after_in_child=lambda: [lock.close() for lock in _locks])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of ``folder``, which is made where it is missing, for the length of the block.

    The lock is the operating system's (``flock``).  Raises ValueError with the process and machine of the other run.
    """
    path = folder / LOCK
    folder.mkdir(parents=True, exist_ok=True)
    with _open(path) as lock:
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        _locks.add(lock)
        try:
            yield
        finally:
            _locks.discard(lock)
            path.unlink(missing_ok=True)


def _open(path: Path) -> IO[str]:
    """The file, open and locked."""
    while True:
        lock = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The run before may have removed the file after it was opened here.
            if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise ValueError(
                f"output_dir={path.parent} is in use by {holder}: wait for it, end it or choose another output_dir"
            ) from None
        except OSError as error:
            print(f"{path.parent} cannot be locked ({error.strerror}): take care that no other run writes there")
            return lock
        lock.close()
