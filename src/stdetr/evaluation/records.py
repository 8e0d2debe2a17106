"""Typed records of JSON files as numpy columns, and checks that name the offending record.

Shape legend
    n records or boxes
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stdetr.data.coco_vid_rules import positions
from stdetr.data.coco_vid_schema import Table
from stdetr.data.json_file import JsonFile

NO_TRACK = np.iinfo(np.int64).min
"""The ``track_id`` of a detection that belongs to no track."""
_CHUNK = 1 << 20  # boxes or ids checked at a time: temporaries of whole arrays would cost as much memory as they do


def read_list(source: Path | str | list[Any], kind: type[msgspec.Struct], what: str) -> Table:
    """The records of a JSON list, in a file or in memory.

    Raises FileNotFoundError, and ValueError naming the first record that is not of ``kind``.
    """
    file = JsonFile(source if isinstance(source, list) else Path(source), f"{what} file {source}")
    if isinstance(file.value, dict):
        keys = ", ".join(map(repr, file.value))
        raise ValueError(f"{what} file {source} must hold a list of records; it holds an object with {keys}")  # noqa: TRY004
    columns = Table(file.records(), kind)
    for number in columns.malformed:
        reason = columns.misfit(number)
        hint = " (or not finite)" if reason.endswith("it is None") else ""
        raise ValueError(f"{what} record {number}: {reason}{hint}")
    return columns


def check_boxes(boxes: np.ndarray, what: str) -> None:
    """Raises ValueError for the first box (n,4 xywh) that is not finite or has a negative width or height."""
    for start in range(0, len(boxes), _CHUNK):
        part = boxes[start : start + _CHUNK]
        bad = ~np.isfinite(part).all(axis=1) | (part[:, 2:] < 0).any(axis=1)
        if bad.any():
            index = int(np.flatnonzero(bad)[0])
            box = [float(v) for v in part[index]]
            reason = "has a negative width or height" if np.isfinite(part[index]).all() else "is not finite"
            raise ValueError(f"{what} record {start + index}: bbox {box} {reason}; give [x, y, w, h] in pixels")


def index_of(ids: np.ndarray, values: np.ndarray, key: str, what: str, dtype: Any = np.int64) -> np.ndarray:
    """Position in ``ids`` (unique, any order) of each value of ``wanted`` (n).

    Raises ValueError naming the first unknown value and the nearest known one.
    """
    if len(values) and not len(ids):
        raise ValueError(f"{what} record 0: {key} {int(values[0])}, but the annotations have no {key} at all")
    out = np.empty(len(values), dtype=dtype)
    for start in range(0, len(values), _CHUNK):
        part = np.asarray(values[start : start + _CHUNK])
        place = positions(ids, part)
        for row in np.flatnonzero(place < 0):
            near = int(ids[np.argmin(np.abs(ids - part[row]))])
            told = f"{key} {part[row]} is not in the annotations; nearest valid {key} is {near}"
            raise ValueError(f"{what} record {start + row}: {told}")
        out[start : start + len(part)] = place
    return out
