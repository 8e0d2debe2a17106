"""What a run has done so far, one record a line, so that the same command goes on after a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from stdetr.structures import Tubes

FINISHED = "finished"
_FIELDS = {
    "boxes": torch.float32, "scores": torch.float32, "labels": torch.int64, "track_ids": torch.int64,
    "frame_index": torch.int64, "tube_scores": torch.float32, "present": torch.bool,
}  # fmt: skip


class Journal:
    """A file of JSON records that grows as a run goes on.

    key: what the records depend on (``fingerprint``); a file with another key is of another run and begins anew

    A line that a kill cut off is dropped.  ``records`` says how many there were at the start, and ``finished`` that the
    last of them says so.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.records, self.finished = path, 0, False
        head = json.dumps({"key": key}).encode() + b"\n"
        whole = 0
        if path.is_file():
            with path.open("rb") as file:
                if file.readline() == head:
                    whole = len(head)
                    for line in file:
                        if not line.endswith(b"\n"):
                            break
                        whole += len(line)
                        self.records += 1
                        self.finished = line == json.dumps(FINISHED).encode() + b"\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("r+b" if whole else "w+b")
        self._file.truncate(whole)
        self._file.seek(0, 2)
        if not whole:
            self._file.write(head)
            self._file.flush()

    def __iter__(self) -> Iterator[Any]:
        """The records that were there at the start."""
        with self.path.open("rb") as file:
            file.readline()
            for _ in range(self.records):
                yield json.loads(file.readline())

    def append(self, record: Any) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def close(self, *, remove: bool = False) -> None:
        self._file.close()
        if remove:
            self.path.unlink(missing_ok=True)


def pack(tubes: Tubes) -> dict[str, Any]:
    """Tubes as a record; no digit is lost."""
    return {name: getattr(tubes, name).tolist() for name in _FIELDS}


def unpack(record: dict[str, Any]) -> Tubes:
    """The tubes of a record."""
    shape = (len(record["labels"]), len(record["frame_index"]))
    columns = {name: torch.tensor(record[name], dtype=kind) for name, kind in _FIELDS.items()}
    for name, trail in (("boxes", (4,)), ("scores", ()), ("present", ())):
        columns[name] = columns[name].reshape(*shape, *trail)
    return Tubes(**columns)


def fingerprint(settings: DictConfig, *files: str | Path) -> str:
    """What tells the results of one command from those of another: settings, and size and time of files."""
    text = OmegaConf.to_yaml(settings, resolve=True)
    for file in map(Path, files):
        stat = file.stat() if file.exists() else None
        text += f"{file.absolute()} {stat and (stat.st_size, stat.st_mtime_ns)}\n"
    return hashlib.sha256(text.encode()).hexdigest()
