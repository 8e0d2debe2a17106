"""Tables of a few rows, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def to_text(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns aligned with spaces: numbers to the right, text to the left."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[index]) for row in cells)]) for index, name in enumerate(columns)]
    right = [all(isinstance(row[index], int | float | None) for row in rows) for index in range(len(columns))]

    def line(values: Sequence[str]) -> str:
        padded = [
            value.rjust(width) if to_right else value.ljust(width)
            for value, width, to_right in zip(values, widths, right, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(columns), line(["-" * width for width in widths]), *(line(row) for row in cells)])


def to_markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The same table as GitHub's Markdown, with a line break at its end."""
    lines = [
        list(columns),
        ["---"] * len(columns),
        *([_cell(value).replace("|", "\\|") for value in row] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(str(value).split())
