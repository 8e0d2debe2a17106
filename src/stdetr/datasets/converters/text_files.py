"""Text tables and XML files, read one record at a time; each comes as (line, record)."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, Problems, number, whole

_CHUNK = 1 << 16
_DEPTH = 64
# The prolog is the only place for a document type, and its key words are ASCII in every encoding but these.
_WIDE = (b"\xff\xfe", b"\xfe\xff", b"<\0", b"\0<")


class Row(list[str]):
    """The cells of one line; a cell that is not a number raises MalformedField, which names the column."""

    def numbers(self, first: int, *names: str) -> tuple[float, ...]:
        """Consecutive cells from column ``first`` (counted from 0)."""
        self.require(first + len(names))
        return tuple(number(self[at].strip(), f"{name} (column {at + 1})") for at, name in enumerate(names, first))

    def whole(self, column: int, name: str) -> int:
        self.require(column + 1)
        return whole(self[column].strip(), f"{name} (column {column + 1})")

    def require(self, minimum: int) -> None:
        """Raises MalformedField when there are fewer cells."""
        if len(self) < minimum:
            raise MalformedField(f"{len(self)} columns, at least {minimum} are needed")


def read_lines(path: Path, shown: str) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, from 1; raises MalformedInputError when it is not one."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            yield from enumerate(stream, start=1)
    except UnicodeDecodeError as error:
        raise MalformedInputError(f"{shown}: not a text file in UTF-8 ({error.reason})") from None


def _read_cells(path: Path, shown: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(line for _, line in read_lines(path, shown))
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise MalformedInputError(f"{shown}:{reader.line_num}: {error}") from None


def read_rows(path: Path, shown: str) -> Iterator[tuple[int, Row]]:
    """Non-empty lines of a comma separated file without header, each without the empty cells at its end.

    Raises MalformedInputError when it is not text.
    """
    for line, cells in _read_cells(path, shown):
        while not cells[-1].strip():
            cells.pop()
        yield line, Row(cells)


def read_records(
    path: Path, shown: str, required: tuple[str, ...], problems: Problems
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a comma separated file with header, by column name.

    Raises MalformedInputError when a required column is missing; a row with too few or many cells goes to ``problems``.
    """
    rows = _read_cells(path, shown)
    line, header = next(rows, (0, []))
    if not line:
        raise MalformedInputError(f"{shown}: the file is empty")
    names = [name.strip() for name in header]
    for name in required:
        if name not in names:
            raise MalformedInputError(f"{shown}:{line}: no column {name!r}; it has {', '.join(names)}")
    for line, cells in rows:
        if len(cells) == len(names):
            yield line, dict(zip(names, cells, strict=True))
        else:
            problems.add(shown, line, f"{len(cells)} cells, the header has {len(names)}")


def iter_elements(path: Path, shown: str, *tags: str) -> Iterator[tuple[int, ET.Element]]:
    """Elements with one of ``tags`` as they end, in document order; nested ones come only with the outer one.

    The file is parsed line by line, so that each element has the line of its start tag; yielded elements are freed.
    Raises MalformedInputError where it is not well-formed, nested too deeply, or declares a document type or entities,
    which XML bombs use.
    """
    parser = ET.XMLPullParser(("start", "end"))
    parents: list[ET.Element] = []
    element: ET.Element | None = None
    line, start_line, tail = 1, 1, b""
    try:
        with path.open("rb") as stream:
            while True:
                text = stream.readline(_CHUNK)
                # A keyword may be split across two pieces of a very long line.
                if b"<!DOCTYPE" in tail + text or b"<!ENTITY" in tail + text or (line == 1 and text[:2] in _WIDE):
                    raise MalformedInputError(f"{shown}:{line}: declares a document type or entities; refused")
                tail = (tail + text)[-9:]
                if text:
                    parser.feed(text)
                else:
                    parser.close()
                events: Any = parser.read_events()
                for event, node in events:
                    if event == "start":
                        parents.append(node)
                        if element is None and node.tag in tags:
                            element, start_line = node, line
                        if len(parents) > _DEPTH:
                            raise MalformedInputError(f"{shown}:{line}: nested too deeply; refused")
                        continue
                    parents.pop()
                    if node is element:
                        yield start_line, node
                        element = None
                    if element is None and parents:
                        parents[-1].remove(node)
                if not text:
                    return
                line += text.endswith(b"\n")
    except ET.ParseError as error:
        reason = str(error).partition(": line")[0]
        raise MalformedInputError(f"{shown}:{error.position[0]}: {reason}") from None
