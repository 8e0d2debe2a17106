"""The interface of loggers, and a group of loggers that acts as one.

A logger is constructed by Hydra before anything else exists and does nothing until ``start``; in a distributed run
only the main process calls ``start``.  ``step`` counts optimiser steps and is the x axis of everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Scalar = float | int | None


@dataclass(frozen=True)
class Table:
    """A small table, such as AP per class: one name per column, one sequence per row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"table row {index} has {len(row)} values for {len(self.columns)} columns")


class Logger:
    """Records one run.  ``start`` comes first and ``finish`` last; both may be called once per run.

    Subclasses record what they can; methods they do not override do nothing.
    """

    def start(self, config: Mapping[str, Any], *, step: int | None = None, evaluated: bool = True) -> None:
        """Begin a run, or continue one.

        step: the last step whose state was restored, None for a fresh run
        evaluated: the evaluation of that step, if one was due, was finished; False: it follows, and all that was
            recorded of it comes again
        """

    def log(self, step: int, split: str, values: Mapping[str, Tensor | Scalar]) -> None:
        """Record scalars of ``split`` (``train``, ``val``, ...).  A one-element tensor counts as its number."""

    def log_media(self, step: int, key: str, path: Path) -> None:
        """Record a file that already lies on disk: a video (H.264 ``.mp4``), else an image."""

    def log_table(self, step: int, key: str, table: Table) -> None:
        """Record a table."""

    def log_artifact(self, name: str, path: Path, *, kind: str = "model", aliases: Sequence[str] = ()) -> None:
        """Keep a file or folder, such as a checkpoint, under ``name``; ``aliases`` point at this version of it."""

    def finish(self, exit_code: int = 0) -> None:
        """End the run; a non-zero ``exit_code`` marks it as crashed."""


class LoggerGroup(Logger):
    """Passes every call to each logger in the given order; an empty group records nothing.

    The loggers have names, ``LoggerGroup(jsonl=..., wandb=...)``, so that a configuration can address one of them
    (``logger.wandb.mode=offline``).  ``finish`` reaches every logger even if one of them fails, and then raises the
    first failure.
    """

    def __init__(self, **loggers: Logger) -> None:
        self.named = dict(loggers)

    def _each(self, method: str, *arguments: Any, **keywords: Any) -> None:
        for logger in self.named.values():
            getattr(logger, method)(*arguments, **keywords)

    def start(self, config: Mapping[str, Any], *, step: int | None = None, evaluated: bool = True) -> None:
        self._each("start", config, step=step, evaluated=evaluated)

    def log(self, step: int, split: str, values: Mapping[str, Tensor | Scalar]) -> None:
        self._each("log", step, split, values)

    def log_media(self, step: int, key: str, path: Path) -> None:
        self._each("log_media", step, key, path)

    def log_table(self, step: int, key: str, table: Table) -> None:
        self._each("log_table", step, key, table)

    def log_artifact(self, name: str, path: Path, *, kind: str = "model", aliases: Sequence[str] = ()) -> None:
        self._each("log_artifact", name, path, kind=kind, aliases=aliases)

    def finish(self, exit_code: int = 0) -> None:
        failures: list[Exception] = []
        for logger in self.named.values():
            try:
                logger.finish(exit_code)
            except Exception as error:  # the others must still be closed; raised below
                failures.append(error)
        if failures:
            raise failures[0]


def to_scalar(name: str, value: Tensor | Scalar) -> float | int | None:
    """``value`` as a JSON number; None where it is missing or not finite (JSON has neither NaN nor infinity).

    Raises ValueError for anything that is not one number, naming the metric.
    """
    number: Any = value
    if hasattr(value, "item") and hasattr(value, "size"):
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
