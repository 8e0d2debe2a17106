"""Checks video files in a separate process, with a time limit for each.

On a damaged file a decoder may loop without ever releasing the interpreter, and then no signal and no thread of the
same process can stop it.  Before a data set is used, another process therefore tries its files.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from tqdm import tqdm

from stdetr.atomic import write_text
from stdetr.video.open import open_source
from stdetr.video.packet_index import scan_packets

_START_SECONDS = 120.0


def probe_file(path: str, backend: str) -> str:
    """Read the first frame and the last key frame; "" when all is well, else the reason in one line.

    The last frame itself may lie thousands of frames behind a key frame: reaching it would take longer than any limit.
    """
    try:
        source = open_source(path, backend=backend, on_corrupt="keep")
        for number in sorted({0, int(scan_packets(Path(path)).keys[-1])}):
            source.read([number])
        source.close()
    except (ValueError, FileNotFoundError) as error:
        return " ".join(str(error).split())
    return ""


class _Prober:
    """One checking process; replaced when a file kills it."""

    def __init__(self, backend: str) -> None:
        self._connection, there = Pipe()
        # A fresh interpreter: multiprocessing's own would run the user's script again, or inherit open decoders.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stdetr.video.probe", backend, str(there.fileno())],
            pass_fds=[there.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        there.close()
        if not self._connection.poll(_START_SECONDS):
            self.stop()
            raise ValueError(f"the process that checks videos did not start within {_START_SECONDS:g} s")
        with contextlib.suppress(EOFError):  # the first check reports that it has ended
            self._connection.recv()

    def check(self, path: Path, seconds: float) -> tuple[str, bool]:
        """What is wrong with a file ("" for nothing), and whether the process can continue."""
        try:
            self._connection.send(str(path))
            if self._connection.poll(seconds):
                return self._connection.recv(), True
        except (EOFError, OSError):
            return f"{path} is damaged: the decoder crashed on it", False
        reason = f"no frame after {seconds:g} s; on a slow machine raise data.probe_seconds"
        return f"{path} seems damaged: {reason}", False

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._connection.close()


def probe_videos(
    paths: Iterable[Path], *, backend: str = "av", seconds: float = 60.0, record: Path | None = None
) -> dict[Path, str]:
    """Check files one after the other in another process.

    record: JSON file that remembers good files by size and time, so that they are checked only once

    Returns the fault of each bad file.
    """
    known = _load_record(record)
    faults: dict[Path, str] = {}
    todo = []
    for path in paths:
        if not path.is_file():
            faults[path] = f"{path} does not exist"
        elif known.get(f"{backend} {path}") != _state(path):
            todo.append(path)
    prober: _Prober | None = None
    try:
        for path in tqdm(todo, desc="check videos", unit="file", file=sys.stderr, disable=len(todo) < 20):
            prober = prober or _Prober(backend)
            fault, alive = prober.check(path, seconds)
            if fault:
                faults[path] = fault
            else:
                known[f"{backend} {path}"] = _state(path)
            if not alive:
                prober.stop()
                prober = None
    finally:
        if prober is not None:
            prober.stop()
        if record is not None and todo:
            write_text(record, json.dumps(known))
    return faults


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _load_record(record: Path | None) -> dict[str, list[int]]:
    if record is None or not record.is_file():
        return {}
    try:
        return json.loads(record.read_text())
    except json.JSONDecodeError:
        raise ValueError(f"{record} is damaged; delete it, the videos will be checked again") from None


def _main(backend: str, descriptor: str) -> None:
    # The libraries load before the clock starts.
    import av  # noqa: F401

    if backend == "decord":
        import torch  # noqa: F401  # isort: skip - before decord, or both crash
        import decord  # noqa: F401  # isort: skip
    connection = Connection(int(descriptor))
    connection.send("ready")
    while True:
        connection.send(probe_file(connection.recv(), backend))


if __name__ == "__main__":
    with contextlib.suppress(EOFError):
        _main(*sys.argv[1:])
