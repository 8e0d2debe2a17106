"""Checks video files in a process of its own, within a time limit for each.

A decoder that meets a damaged file may loop without ever giving the interpreter back, and then no signal and no
thread of the same process can stop it.  Whoever indexes a data set therefore lets another process try first.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
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
        source = open_source(path, backend=backend)
        for number in sorted({0, int(scan_packets(Path(path)).keys[-1])}):
            source.read([number])
        source.close()
    except (ValueError, FileNotFoundError) as error:
        return " ".join(str(error).split())
    return ""


class _Prober:
    """One checking process; replaced after a file that it does not survive."""

    def __init__(self, backend: str) -> None:
        command = [sys.executable, "-m", "stdetr.video.probe", backend]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._answer(_START_SECONDS)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _answer(self, seconds: float) -> str | None:
        """The next line, "" when the process has ended, None when the time is over."""
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            return None

    def check(self, path: Path, seconds: float) -> tuple[str, bool]:
        """What is wrong with a file ("" for nothing), and whether the process can go on."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(str(path)) + "\n")
            self._process.stdin.flush()
        answer = self._answer(seconds)
        if answer is None:
            reason = f"no frame after {seconds:g} s; on a slow machine raise data.probe_seconds"
            return f"{path} seems damaged: {reason}", False
        if not answer:
            return f"{path} is damaged: the decoder crashed on it", False
        return json.loads(answer), True

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()


def probe_videos(
    paths: Iterable[Path], *, backend: str = "av", seconds: float = 60.0, record: Path | None = None
) -> dict[Path, str]:
    """Check files one after the other in another process.

    record: JSON file that remembers good files by size and time, so that they are checked once

    Returns what is wrong with each bad file; good files are left out.
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


def _main(arguments: Sequence[str]) -> None:
    backend = arguments[0]
    # Decoders print to the standard output as they please; answers need a channel of their own.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # The libraries load before the clock starts.
    import av  # noqa: F401

    if backend == "decord":
        import stdetr.video.decord_source  # noqa: F401  # isort: skip - brings torch, which must come before decord
        import decord  # noqa: F401  # isort: skip
    print(json.dumps("ready"), file=channel, flush=True)
    for line in sys.stdin:
        print(json.dumps(probe_file(json.loads(line), backend)), file=channel, flush=True)


if __name__ == "__main__":
    _main(sys.argv[1:])
