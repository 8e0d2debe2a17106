"""Streams CocoVID records to disk; the finished file appears atomically or not at all.

The records of the three long lists arrive interleaved, so each list has its own spill file; ``finish`` joins
them into one JSON document next to its destination and ``publish`` renames it, which is atomic on one file system.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stdetr.atomic import publish

_LISTS: tuple[str, ...] = ("videos", "images", "annotations")


class CocoVidWriter:
    """Writes one CocoVID file.

    path: the destination
    work: an existing folder on the same file system for the unfinished parts
    """

    def __init__(self, path: Path, work: Path) -> None:
        self.path = path
        self._work = work
        self._stem = path.stem
        self._spill = {name: (work / f"{self._stem}.{name}").open("w", encoding="utf-8") for name in _LISTS}
        self.written = dict.fromkeys(_LISTS, 0)

    def add(self, name: str, record: Mapping[str, Any]) -> None:
        """Append a record to ``videos``, ``images`` or ``annotations``."""
        stream = self._spill[name]
        stream.write(",\n" if self.written[name] else "\n")
        # allow_nan=False: NaN is neither JSON nor a valid box.
        stream.write(json.dumps(record, separators=(",", ":"), ensure_ascii=False, allow_nan=False))
        self.written[name] += 1

    def finish(self, categories: Sequence[Mapping[str, Any]], info: Mapping[str, Any]) -> None:
        """Join the parts into the complete document, next to its destination."""
        self.close()
        with self._unfinished.open("wb") as document:
            document.write(b'{"info":' + json.dumps(info, ensure_ascii=False).encode())
            document.write(b',\n"categories":' + json.dumps(list(categories), ensure_ascii=False).encode())
            for name in _LISTS:
                document.write(f',\n"{name}":['.encode())
                part = self._work / f"{self._stem}.{name}"
                with part.open("rb") as spill:
                    shutil.copyfileobj(spill, document, 1 << 20)
                part.unlink()
                document.write(b"]")
            document.write(b"}\n")

    def publish(self) -> None:
        """Give the finished document its name, atomically replacing an earlier one."""
        publish(self._unfinished, self.path)

    def close(self) -> None:
        for stream in self._spill.values():
            stream.close()

    @property
    def _unfinished(self) -> Path:
        return self._work / f"{self._stem}.json"
