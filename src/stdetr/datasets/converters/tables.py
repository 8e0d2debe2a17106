"""Rows of numbers in text files, read line by line with clear refusals."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, Problems


class Row:
    """One line of a table: typed access that raises ``MalformedField`` naming the column."""

    def __init__(self, cells: list[str], line: int) -> None:
        self.cells = cells
        self.line = line

    def __len__(self) -> int:
        return len(self.cells)

    def number(self, column: int, name: str) -> float:
        text = self.cells[column].strip()
        try:
            value = float(text)
        except ValueError:
            raise MalformedField(f"{name} (column {column + 1}) is {text!r}, not a number") from None
        if not math.isfinite(value):
            raise MalformedField(f"{name} (column {column + 1}) is {text!r}, not finite")
        return value

    def integer(self, column: int, name: str) -> int:
        value = self.number(column, name)
        if value != int(value):
            raise MalformedField(f"{name} (column {column + 1}) is {self.cells[column].strip()!r}, not a whole number")
        return int(value)


def read_rows(path: Path, shown: str) -> Iterator[Row]:
    """Non-empty lines of a comma separated file without header; ``Row.line`` counts from 1.

    Raises MalformedInputError when it is not text.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            for cells in reader:
                if cells and any(cell.strip() for cell in cells):
                    yield Row(cells, reader.line_num)
    except UnicodeDecodeError as error:
        raise MalformedInputError(f"{shown}: not a text file ({error.reason})") from None
    except csv.Error as error:
        raise MalformedInputError(f"{shown}: {error}") from None


def read_records(
    path: Path, shown: str, required: tuple[str, ...], problems: Problems
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row by column name) of a comma separated file with header.

    Raises MalformedInputError when a required column is missing; a row with too few or many cells goes to ``problems``.
    """
    rows = read_rows(path, shown)
    header = next(rows, None)
    if header is None:
        raise MalformedInputError(f"{shown}: the file is empty")
    names = [name.strip() for name in header.cells]
    for name in required:
        if name not in names:
            raise MalformedInputError(f"{shown}:{header.line}: no column {name!r}; it has {', '.join(names)}")
    for row in rows:
        if len(row) != len(names):
            problems.add(shown, row.line, f"{len(row)} cells, the header has {len(names)}")
            continue
        yield row.line, dict(zip(names, row.cells, strict=True))


def checked(problems: Problems, shown: str, row: Row, minimum: int) -> bool:
    """True when the row has at least ``minimum`` cells; otherwise the problem is reported."""
    if len(row) >= minimum:
        return True
    problems.add(shown, row.line, f"{len(row)} columns, at least {minimum} are needed")
    return False
