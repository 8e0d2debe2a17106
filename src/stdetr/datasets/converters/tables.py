"""Rows of numbers in text files, read line by line with clear refusals."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, Problems, number, whole


class Row(NamedTuple):
    """One line of a table: typed access that raises ``MalformedField`` naming the column."""

    cells: list[str]
    line: int

    def number(self, column: int, name: str) -> float:
        return number(self.cells[column].strip(), f"{name} (column {column + 1})")

    def integer(self, column: int, name: str) -> int:
        return whole(self.cells[column].strip(), f"{name} (column {column + 1})")

    def require(self, minimum: int) -> None:
        """Raises MalformedField when there are fewer cells."""
        if len(self.cells) < minimum:
            raise MalformedField(f"{len(self.cells)} columns, at least {minimum} are needed")


def read_rows(path: Path, shown: str) -> Iterator[Row]:
    """Non-empty lines of a comma separated file without header; ``Row.line`` counts from 1.

    Raises MalformedInputError when it is not text.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            for cells in reader:
                if any(cell.strip() for cell in cells):
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
    for cells, line in rows:
        if len(cells) == len(names):
            yield line, dict(zip(names, cells, strict=True))
        else:
            problems.add(shown, line, f"{len(cells)} cells, the header has {len(names)}")
