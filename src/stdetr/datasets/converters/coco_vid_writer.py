"""Streams CocoVID records to disk; the finished file appears atomically or not at all.

The records of the three long lists arrive interleaved, so each list has its own spill file; ``finish`` joins
them into one JSON document next to its destination and ``publish`` renames it, which is atomic on one file system.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stdetr.atomic import publish
from stdetr.datasets.converters.records import NO_TRACK

_LISTS: tuple[str, ...] = ("videos", "images", "annotations")


@dataclass
class Counts:
    """Counts of one output file.  ``boxes`` and ``tracks`` exclude ignore regions."""

    videos: int = 0
    images: int = 0
    boxes: int = 0
    ignore_regions: int = 0
    tracks: int = 0
    clipped: int = 0
    outside: int = 0
    per_class: dict[str, int] = field(default_factory=dict)


class CocoVidWriter:
    """Writes one CocoVID file, and counts what is in it.

    path: the destination
    work: an existing folder on the same file system for the unfinished parts
    """

    def __init__(self, path: Path, work: Path) -> None:
        self.path, self.counts = path, Counts()
        self._parts = {name: work / f"{path.stem}.{name}" for name in _LISTS}
        self._unfinished = work / f"{path.stem}.json"
        self._spill = {name: part.open("w", encoding="utf-8") for name, part in self._parts.items()}
        self._empty = set(_LISTS)
        self._tracks: set[int] = set()
        self._video: int | None = None

    def add(self, name: str, record: Mapping[str, Any]) -> None:
        """Append a record to ``videos``, ``images`` or ``annotations``."""
        stream = self._spill[name]
        stream.write("\n" if name in self._empty else ",\n")
        self._empty.discard(name)
        # allow_nan=False: NaN is neither JSON nor a valid box.
        stream.write(json.dumps(record, separators=(",", ":"), ensure_ascii=False, allow_nan=False))

    def add_image(self, video: Mapping[str, Any], image: Mapping[str, Any]) -> None:
        """Append an image record, and that of its video before its first one."""
        if self._video != video["id"]:
            self._video = video["id"]
            self._tracks = {NO_TRACK}
            self.add("videos", video)
            self.counts.videos += 1
        self.add("images", image)
        self.counts.images += 1

    def count(self, ignore: bool, track: int, clipped: bool, name: str) -> None:
        """Count a box of the class ``name``, in the video of the last image."""
        self.counts.clipped += clipped
        self.counts.ignore_regions += ignore
        if not ignore:
            self.counts.boxes += 1
            self.counts.per_class[name] = self.counts.per_class.get(name, 0) + 1
            self.counts.tracks += track not in self._tracks
            self._tracks.add(track)

    def finish(self, categories: Sequence[Mapping[str, Any]], info: Mapping[str, Any]) -> None:
        """Join the parts into the complete document, next to its destination."""
        self.close()
        with self._unfinished.open("wb") as document:
            document.write(b'{"info":' + json.dumps(info, ensure_ascii=False).encode())
            document.write(b',\n"categories":' + json.dumps(list(categories), ensure_ascii=False).encode())
            for name, part in self._parts.items():
                document.write(f',\n"{name}":['.encode())
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
