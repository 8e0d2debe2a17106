"""What the training loop asks of an experiment tracker.

A logger is constructed by Hydra before anything else exists and does nothing until ``start``; in a distributed run
only the main process calls ``start``.  ``step`` counts optimiser steps and is the x axis of everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

Scalar = float | int | None


@dataclass(frozen=True)
class Table:
    """A small table, such as AP per class: one name a column, one sequence a row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"table row {index} has {len(row)} values for {len(self.columns)} columns")


@runtime_checkable
class Logger(Protocol):
    """One tracker.  ``start`` comes first and ``finish`` last; both may be called once per run."""

    def start(self, config: Mapping[str, Any], *, step: int | None = None) -> None:
        """Begin a run, or continue one: ``step`` is the last step whose state was restored, None for a fresh run."""

    def log(self, step: int, split: str, values: Mapping[str, Tensor | Scalar]) -> None:
        """Record scalars of ``split`` (``train``, ``val``, ...).  A one-element tensor counts as its number."""

    def log_image(self, step: int, key: str, path: Path) -> None:
        """Record an image file that already lies on disk."""

    def log_video(self, step: int, key: str, path: Path) -> None:
        """Record a video file (H.264 mp4) that already lies on disk."""

    def log_table(self, step: int, key: str, table: Table) -> None:
        """Record a table."""

    def log_artifact(self, name: str, path: Path, *, kind: str = "model", aliases: Sequence[str] = ()) -> None:
        """Keep a file or folder, such as a checkpoint, under ``name``; ``aliases`` point at this version of it."""

    def finish(self, exit_code: int = 0) -> None:
        """End the run; a non-zero ``exit_code`` marks it as crashed."""


def to_scalar(name: str, value: Tensor | Scalar) -> float | int | None:
    """``value`` as a JSON number; None where it is missing or not finite (JSON has neither NaN nor infinity).

    Raises ValueError for anything that is not one number, naming the metric.
    """
    number: Any = value
    if isinstance(value, Tensor) or (hasattr(value, "item") and hasattr(value, "size")):
        if math.prod(getattr(value, "shape", ())) != 1:
            raise ValueError(f"metric {name!r} must be one number, got shape {tuple(getattr(value, 'shape', ()))}")
        number = value.item()  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    if number is None:
        return None
    if isinstance(number, bool):
        return int(number)
    if not isinstance(number, int | float):
        raise ValueError(f"metric {name!r} must be a number, got {type(number).__name__} {number!r}")  # noqa: TRY004
    return number if math.isfinite(number) else None
