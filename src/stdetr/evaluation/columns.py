"""Read lists of JSON records into numpy columns, and explain the first record that does not fit.

Shape legend
    n records       k values of one record (4 for a box)
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

NO_TRACK = np.iinfo(np.int64).min
"""The ``track_id`` of a detection that belongs to no track."""
_CHUNK = 1 << 22  # characters read from a results file at a time
_LONGEST_RECORD = 1 << 24  # more than that without an end is no record


def _describe(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _offender(records: Sequence[Any], key: str, size: int | None, kinds: str, what: str, offset: int) -> ValueError:
    """The error for the first record whose ``key`` is missing or of a wrong type."""
    wanted = "an integer" if "f" not in kinds else "a number"
    if size is not None:
        wanted = f"a list of {size} numbers"
    for index, record in enumerate(records):
        where = f"{what} record {index + offset}"
        if not isinstance(record, dict):
            return ValueError(f"{where} is {_describe(record)}; a record is a JSON object with the key {key!r}")
        if key not in record:
            near = difflib.get_close_matches(key, list(record), n=1)
            hint = f"; did you mean {key!r} where it says {near[0]!r}?" if near else f"; it has {sorted(record)}"
            return ValueError(f"{where} has no {key!r}{hint}")
        value = record[key]
        values = [value] if size is None else value
        fits = isinstance(values, list | tuple) and (size is None or len(values) == size)
        if not fits or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
            return ValueError(f"{where}: {key} is {_describe(value)}, it must be {wanted}")
        if "f" not in kinds and any(not isinstance(v, int) for v in values):
            return ValueError(f"{where}: {key} is {_describe(value)}, it must be {wanted}")
    raise AssertionError(f"{what}: no offending record for {key}")


def column(records: Sequence[Any], key: str, what: str, *, integer: bool = False, offset: int = 0) -> np.ndarray:
    """n values of ``key``, int64 or float64.

    Raises ValueError naming the first record (``what`` and its number) where it is missing or not a number.
    """
    kinds = "iu" if integer else "iuf"
    dtype = np.int64 if integer else np.float64
    try:
        values = np.array([record[key] for record in records])
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        raise _offender(records, key, None, kinds, what, offset) from None
    if len(records) and (values.ndim != 1 or values.dtype.kind not in kinds):
        raise _offender(records, key, None, kinds, what, offset)
    return values.astype(dtype).reshape(-1)


def optional_integers(records: Sequence[Any], key: str, what: str, missing: int, offset: int = 0) -> np.ndarray:
    """n int64 values of ``key``; ``missing`` where a record does not have it or holds null.  Raises ValueError."""
    values = [record.get(key) for record in records]
    filled = [{key: missing if value is None else value} for value in values]
    return column(filled, key, what, integer=True, offset=offset)


def flags(records: Sequence[Any], key: str, what: str) -> np.ndarray:
    """n bool values of ``key`` (0, 1, false, true); False where a record does not have it.  Raises ValueError."""
    out = np.zeros(len(records), dtype=bool)
    for index, record in enumerate(records):
        value = record.get(key)
        if value is None:
            continue
        if value not in (0, 1):
            raise ValueError(f"{what} record {index}: {key} is {_describe(value)}, it must be 0 or 1")
        out[index] = bool(value)
    return out


def box_column(records: Sequence[Any], what: str, *, key: str = "bbox", offset: int = 0) -> np.ndarray:
    """n,4 float64 boxes xywh in pixels.  Raises ValueError naming the first record without four numbers."""
    try:
        values = np.array([record[key] for record in records])
    except (KeyError, TypeError, ValueError, IndexError):
        raise _offender(records, key, 4, "iuf", what, offset) from None
    if len(records) and (values.shape != (len(records), 4) or values.dtype.kind not in "iuf"):
        raise _offender(records, key, 4, "iuf", what, offset)
    return values.astype(np.float64).reshape(-1, 4)


def check_boxes(boxes: np.ndarray, what: str) -> None:
    """Raises ValueError for the first box (n,4 xywh) that is not finite or has a negative width or height."""
    chunk = 1 << 20  # a whole-array temporary would cost as much memory as the boxes themselves
    for start in range(0, len(boxes), chunk):
        part = boxes[start : start + chunk]
        bad = ~np.isfinite(part).all(axis=1) | (part[:, 2:] < 0).any(axis=1)
        if bad.any():
            index = int(np.flatnonzero(bad)[0])
            box = [float(v) for v in part[index]]
            reason = "has a negative width or height" if np.isfinite(part[index]).all() else "is not finite"
            raise ValueError(f"{what} record {start + index}: bbox {box} {reason}; give [x, y, w, h] in pixels")


def index_of(ids: np.ndarray, wanted: np.ndarray, key: str, what: str, dtype: Any = np.int64) -> np.ndarray:
    """Position in ``ids`` (unique, any order) of each value of ``wanted`` (n).

    Raises ValueError naming the first unknown value and the nearest known one.
    """
    if not len(wanted):
        return np.zeros(0, dtype=dtype)
    if not len(ids):
        raise ValueError(f"{what} record 0: {key} {int(wanted[0])}, but the annotations have no {key} at all")
    order = np.argsort(ids, kind="stable")
    ranked = ids[order].astype(np.int64)
    out = np.empty(len(wanted), dtype=dtype)
    for start in range(0, len(wanted), 1 << 22):
        part = np.asarray(wanted[start : start + (1 << 22)])
        place = np.searchsorted(ranked, part)
        place[place == len(ranked)] = len(ranked) - 1
        unknown = ranked[place] != part
        if unknown.any():
            index = int(np.flatnonzero(unknown)[0])
            value = int(part[index])
            near = int(ranked[np.argmin(np.abs(ranked - value))])
            raise ValueError(
                f"{what} record {start + index}: {key} {value} is not in the annotations; nearest valid {key} is {near}"
            )
        out[start : start + len(part)] = order[place]
    return out


def load_json(path: Path, what: str) -> Any:
    """The JSON document at ``path``; FileNotFoundError or a one-line ValueError naming the file and the place."""
    try:
        with path.open(encoding="utf-8") as stream:
            return json.load(stream)
    except FileNotFoundError:
        raise FileNotFoundError(missing_file(path, what)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{what} file {path} is not JSON: {error}") from None


def missing_file(path: Path, what: str) -> str:
    """One line for a file that is not there, with the nearest name in its folder."""
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else ""
    return f"{what} file {path} does not exist{hint}"


def stream_list(path: Path, what: str, batch: int = 200_000) -> Iterator[list[Any]]:
    """The records of a file that holds one JSON list, ``batch`` at a time, without ever holding the whole file.

    A results file of ImageNet VID has tens of millions of records; parsed as one document it takes a hundred times
    the memory of its columns.  Raises FileNotFoundError, and ValueError naming the file and the character.
    """
    if not path.is_file():
        raise FileNotFoundError(missing_file(path, what))
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8") as stream:
        text, place, done = stream.read(_CHUNK), 0, 0

        def fail(reason: str, at: int) -> ValueError:
            return ValueError(f"{what} file {path} is not a JSON list of records: {reason} at character {done + at}")

        text = text.lstrip()
        if not text.startswith("["):
            found = f"it starts with {text[:20]!r}" if text else "it is empty"
            raise ValueError(f"{what} file {path} must hold a JSON list of records; {found}")
        place = 1
        records: list[Any] = []
        separated = True  # before the first record no comma is needed
        while True:
            while place < len(text) and text[place] in " \t\r\n":
                place += 1
            if place == len(text):
                done += place
                text, place = stream.read(_CHUNK), 0
                if not text:
                    raise fail("the list is not closed", place)
                continue
            if text[place] == "]":
                break
            if text[place] == ",":
                if separated:
                    raise fail("unexpected ','", place)
                separated, place = True, place + 1
                continue
            if not separated:
                raise fail(f"expected ',' before {text[place : place + 10]!r}", place)
            try:
                record, end = decoder.raw_decode(text, place)
                whole = end < len(text)  # a number cut by the end of the chunk would decode, but wrongly
            except json.JSONDecodeError as error:
                record, end, whole, reason = None, place, False, error.msg
            else:
                reason = "the list is not closed"
            if not whole:
                # A fault in the middle of a large file is named now, not after reading gigabytes.
                more = stream.read(_CHUNK) if len(text) - place < _LONGEST_RECORD else ""
                if not more:
                    raise fail(reason, place)
                done += place
                text, place = text[place:] + more, 0
                continue
            records.append(record)
            separated, place = False, end
            if len(records) == batch:
                yield records
                records = []
        if records:
            yield records
