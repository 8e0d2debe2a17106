"""Damaged files cannot hang a run: another process tries them first."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stdetr.video.probe import probe_file, probe_videos


def test_good_and_bad_files_in_one_go(encode: Callable[..., Path], tmp_path: Path) -> None:
    good = encode("a.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "12", "-bf", "3")
    text, missing, record = tmp_path / "text.mp4", tmp_path / "missing.mp4", tmp_path / "cache" / "probed.json"
    text.write_text("no video")
    faults = probe_videos([good, text, missing, good], seconds=60, record=record)
    assert set(faults) == {text, missing}
    assert "is not a video" in faults[text]
    assert "does not exist" in faults[missing]
    assert list(json.loads(record.read_text())) == [f"av {good}"]
    # The good file is remembered, so nothing has to be started.
    began = time.monotonic()
    assert probe_videos([good], seconds=60, record=record) == {}
    assert time.monotonic() - began < 0.5
    assert probe_file(str(good), "decord") == ""
    record.write_text("{")
    with pytest.raises(ValueError, match=r"probed\.json is damaged; delete it"):
        probe_videos([good], record=record)


def test_a_file_that_hangs_or_crashes_the_decoder(
    encode: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the checking process: it hangs on ``hang``, dies on ``crash`` and approves of the rest."""
    worker = tmp_path / "worker"
    worker.write_text(
        "#!/usr/bin/env python3\n"
        "import os, sys, time\n"
        "from multiprocessing.connection import Connection\n"
        "connection = Connection(int(sys.argv[-1]))\n"
        "connection.send('ready')\n"
        "while True:\n"
        "    path = connection.recv()\n"
        "    if 'hang.mp4' in path:\n"
        "        time.sleep(600)\n"
        "    if 'crash.mp4' in path:\n"
        "        os.abort()\n"
        "    connection.send('')\n"
    )
    worker.chmod(0o755)
    monkeypatch.setattr("stdetr.video.probe.sys.executable", str(worker))
    paths = [tmp_path / f"{name}.mp4" for name in ("one", "hang", "two", "crash", "three")]
    for path in paths:
        path.write_bytes(b"x")
    faults = probe_videos(paths, seconds=5.0)
    assert list(faults) == [paths[1], paths[3]], faults
    assert "no frame after 5 s; on a slow machine raise data.probe_seconds" in faults[paths[1]]
    assert "the decoder crashed on it" in faults[paths[3]]
