"""Malformed records: refused with file, record and reason, or (strict=false) skipped and listed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from stdetr.data.json_file import MalformedInputError as MalformedInputError

_T = TypeVar("_T")
_R = TypeVar("_R")


class MalformedField(ValueError):  # noqa: N818 - a signal inside the readers, which add file and record
    """One field of a record is wrong."""


def locate(file: str, record: object) -> str:
    """``file:17`` for a line, ``file: annotations[3]`` for a named record, ``file`` for the file as a whole."""
    if isinstance(record, int):
        return f"{file}:{record}" if record > 0 else file
    return f"{file}: {record}"


class Problems:
    """Collects bad records.  With ``strict`` the first one ends the conversion.

    list_path: where skipped records are listed, one line each; the file exists only if there are any
    """

    def __init__(self, strict: bool, list_path: Path | None = None) -> None:
        self.strict = strict
        self.list_path = list_path
        self.skipped = 0
        self.first: list[str] = []
        self.notes: Counter[str] = Counter()

    def add(self, file: str, record: object, reason: str) -> None:
        """Report one bad record (see :func:`locate`); returns only when it is skipped.

        Raises:
            MalformedInputError: with ``strict``.
        """
        line = f"{locate(file, record)}: {reason}"
        if self.strict:
            raise MalformedInputError(f"{line} (strict=false skips and lists such records)")
        self.skipped += 1
        if len(self.first) < 20:
            self.first.append(line)
        if self.list_path is not None:
            with self.list_path.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")

    def attempt(self, file: str, record: object, call: Callable[..., _R], *args: Any) -> _R | None:
        """What ``call`` returns; None when it raised MalformedField, which is reported as a bad record."""
        try:
            return call(*args)
        except MalformedField as error:
            self.add(file, record, str(error))
            return None

    def each(self, file: str, records: Iterable[tuple[Any, _T]], call: Callable[[Any, _T], _R | None]) -> Iterator[_R]:
        """``call(record, value)`` for all records of a file, without those that are malformed or give None."""
        for record, value in records:
            result = self.attempt(file, record, call, record, value)
            if result is not None:
                yield result

    def note(self, what: str, count: int = 1) -> None:
        """Count what the format's rules leave out or change on purpose; it is reported, but not an error."""
        self.notes[what] += count


def number(text: str | None, name: str) -> float:
    """A finite number written in a cell or an attribute; raises MalformedField."""
    if text is None:
        raise MalformedField(f"{name} is missing")
    try:
        value = float(text)
    except ValueError:
        raise MalformedField(f"{name} is {text.strip()!r}, not a number") from None
    if not math.isfinite(value):
        raise MalformedField(f"{name} is {text.strip()!r}, not finite")
    return value


def whole(text: str | None, name: str) -> int:
    """A whole number of 63 bits written in a cell or an attribute (``12.0`` is one); raises MalformedField."""
    value = number(text, name)
    if value != int(value) or abs(value) >= 2**63:
        raise MalformedField(f"{name} is {text!r}, not a whole number" + (" of 63 bits" if abs(value) >= 2**63 else ""))
    return int(value)
