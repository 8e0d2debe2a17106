"""CocoVID as types and columns: COCO's JSON (Lin et al., 2014) with the video fields of MMTracking's CocoVID.

Training, validation and evaluation read a file through this module, so that none accepts what another refuses.
File names are relative to the data set's folder and may not leave it (no "..", no absolute names).  Symbolic links on
the disk are followed: conversions make them (``link=auto|symlink``), and no archive that holds one is unpacked.

Shape legend
    n rows of a section
"""

from __future__ import annotations

import contextlib
import re
from array import array
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stdetr.data.json_file import (
    ABSENT,
    MISFITS,
    Flag,
    JsonFile,
    MalformedInputError,
    Number,
    Positive,
    Text,
    Whole,
    explain,
)

DEGRADATIONS = ("blur", "defocus", "noise", "blank")
"""Kinds of degradation that ``images[].degradation`` may name."""

_BATCH = 1 << 14
_LARGEST = 2**31 - 1


class Category(msgspec.Struct, gc=False):
    """One class."""

    id: Whole
    name: Text


class Video(msgspec.Struct, gc=False):
    """One video; ``length`` counts its decoded frames; ``file_name`` is absent where the frames are image files.

    neg_category_ids, not_exhaustive_category_ids: classes known to be absent, or not fully annotated; None where all
    classes were annotated
    """

    id: Whole
    name: Text
    width: Positive
    height: Positive
    length: Positive
    file_name: str | None = None
    fps: Number | None = None
    neg_category_ids: list[Whole] | None = None
    not_exhaustive_category_ids: list[Whole] | None = None


class Image(msgspec.Struct, gc=False):
    """One frame: ``frame_id`` counts decoded frames from 0.  ``video_id`` is absent in plain COCO only."""

    id: Whole
    video_id: Whole = ABSENT
    frame_id: Whole = 0
    file_name: str | None = None
    width: Positive | None = None
    height: Positive | None = None
    degradation: str | msgspec.UnsetType | None = msgspec.UNSET


class Annotation(msgspec.Struct, gc=False):
    """One box, xywh in source pixels; ``instance_id`` < 0 or absent: it belongs to no track.

    ``track_id`` is what other formats call ``instance_id``; it is refused where it stands alone.
    """

    id: Whole
    image_id: Whole
    category_id: Whole
    bbox: tuple[float, float, float, float]
    video_id: Whole | None = None
    instance_id: Whole | None = -1
    track_id: Whole | None = None
    area: float | None = None
    iscrowd: Flag = 0
    ignore: Flag = 0


class _Identity(msgspec.Struct):
    id: Whole


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "categories": Category,
    "videos": Video,
    "images": Image,
    "annotations": Annotation,
}
_IDS = ("id", "video_id", "frame_id", "image_id", "category_id", "instance_id", "track_id")
_WHOLE = frozenset({*_IDS, "iscrowd", "ignore"})
_EMPTY = {"video_id": ABSENT, "instance_id": -1, "track_id": ABSENT, "area": np.nan}


class Table:
    """The rows of one section as columns, in the order of the file.

    numbers: n int64, position of each row among the records of the file
    malformed: positions of the records that do not fit the schema; they have no row
    lost: ids of those records, so that references to them are not reported as well

    ``table["id"]`` is a column: n int64 for whole numbers, n,4 float64 for ``bbox``, n float64 for ``area`` (nan where
    absent), else a list of n values.
    """

    def __init__(self, records: list[msgspec.Raw], kind: type[msgspec.Struct]) -> None:
        self.records, self.kind = records, kind
        self.malformed: list[int] = []
        self.lost: list[int] = []
        self._columns: dict[str, Any] = {
            name: array("q") if name in _WHOLE else array("d") if name in ("bbox", "area") else []
            for name in kind.__struct_fields__
        }
        decoder = msgspec.json.Decoder(kind)
        batch: list[Any] = []
        for number, raw in enumerate(records):
            try:
                batch.append(decoder.decode(raw))
            except MISFITS:
                self.malformed.append(number)
                with contextlib.suppress(*MISFITS):
                    self.lost.append(msgspec.json.decode(raw, type=_Identity).id)
            if len(batch) == _BATCH:
                self._take(batch)
                batch = []
        self._take(batch)
        rows = np.ones(len(records), dtype=bool)
        rows[self.malformed] = False
        self.numbers = np.flatnonzero(rows)

    def _take(self, batch: list[Any]) -> None:
        for name, column in self._columns.items():
            values = map(attrgetter(name), batch)
            if name == "bbox":
                for box in values:
                    column.extend(box)
            elif name in _EMPTY:
                empty = _EMPTY[name]
                column.extend(empty if value is None else value for value in values)
            else:
                column.extend(values)

    def misfit(self, number: int) -> str:
        """Why a record of ``malformed`` does not fit."""
        try:
            msgspec.json.decode(self.records[number], type=self.kind)
        except MISFITS as error:
            return explain(error, self.records[number])
        raise AssertionError("the record was refused before")

    def as_videos(self) -> Table:
        """One video per image of this table, and the images' ``video_id`` set to it."""
        self._columns["video_id"] = self._columns["id"][:]
        self._columns["frame_id"] = array("q", [0] * len(self))
        names = (str(name or number) for name, number in zip(self["file_name"], self["id"].tolist(), strict=True))
        sizes = zip(self["width"], self["height"], strict=True)
        videos = (
            Video(number, name, width or _LARGEST, height or _LARGEST, 1)
            for number, name, (width, height) in zip(self["id"].tolist(), names, sizes, strict=True)
        )
        return Table([msgspec.Raw(msgspec.json.encode(video)) for video in videos], Video)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, name: str) -> Any:
        column = self._columns[name]
        if not isinstance(column, array):
            return column
        values = np.array(column, np.int64 if column.typecode == "q" else np.float64)
        return values.reshape(-1, 4) if name == "bbox" else values


class CocoVidFile:
    """A file (or the same document in memory) read into tables; :func:`stdetr.data.coco_vid_rules.faults` checks it.

    stills: take plain COCO, which has no ``videos``, as videos of one image each

    Raises:
        FileNotFoundError: no such file; with the nearest name.
        MalformedInputError: it is not a JSON object whose sections are lists, with the line.
    """

    def __init__(self, source: Path | dict[str, Any], stills: bool = False) -> None:
        self.path = source if isinstance(source, Path) else "annotations"
        try:
            self.json = JsonFile(source, f"{self.path}")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"annotation file {error}") from None
        if isinstance(self.json.value, list):
            raise MalformedInputError(
                f"{self.path}:1: the document is a list (COCO results?), not an object with {', '.join(SECTIONS)}"
            )
        self.tables = {name: Table(self.json.records(name), kind) for name, kind in SECTIONS.items()}
        self.stills = stills and not self.tables["videos"].records
        if self.stills:
            self.tables["videos"] = self.tables["images"].as_videos()
        self.categories, self.videos, self.images, self.annotations = self.tables.values()

    def place(self, section: str, number: int) -> str:
        """``file:12: annotations[3] (id 7)``, for messages."""
        raw = self.tables[section].records[number]
        try:
            identity = str(msgspec.json.decode(raw)["id"])
        except (*MISFITS, TypeError, KeyError):
            identity = ""
        told = f" (id {identity})" if 0 < len(identity) < 40 else ""
        return f"{self.path}:{self.json.line(raw)}: {section}[{number}]{told}"


def leaves_folder(name: str) -> bool:
    """Whether a file name is absolute, climbs out with "..", or holds a zero byte; by Windows' rules too."""
    return _OUTSIDE.search(name) is not None


_OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)|\x00")
