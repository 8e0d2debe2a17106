"""Several loggers that act as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from stdetr.logger.logger import Logger, Scalar, Table


class LoggerGroup:
    """Hands every call to each logger in the order given; an empty group tracks nothing.

    The loggers have names, ``LoggerGroup(jsonl=..., wandb=...)``, so that a configuration can reach into one of them
    (``logger.wandb.mode=offline``).  ``finish`` reaches every logger even if one of them fails, and then raises the
    first failure.
    """

    def __init__(self, **loggers: Logger) -> None:
        self.named = dict(loggers)

    @property
    def loggers(self) -> tuple[Logger, ...]:
        return tuple(self.named.values())

    def start(self, config: Mapping[str, Any], *, step: int | None = None) -> None:
        for logger in self.loggers:
            logger.start(config, step=step)

    def log(self, step: int, split: str, values: Mapping[str, Tensor | Scalar]) -> None:
        for logger in self.loggers:
            logger.log(step, split, values)

    def log_image(self, step: int, key: str, path: Path) -> None:
        for logger in self.loggers:
            logger.log_image(step, key, path)

    def log_video(self, step: int, key: str, path: Path) -> None:
        for logger in self.loggers:
            logger.log_video(step, key, path)

    def log_table(self, step: int, key: str, table: Table) -> None:
        for logger in self.loggers:
            logger.log_table(step, key, table)

    def log_artifact(self, name: str, path: Path, *, kind: str = "model", aliases: Sequence[str] = ()) -> None:
        for logger in self.loggers:
            logger.log_artifact(name, path, kind=kind, aliases=aliases)

    def finish(self, exit_code: int = 0) -> None:
        failures: list[Exception] = []
        for logger in self.loggers:
            try:
                logger.finish(exit_code)
            except Exception as error:  # the others must still be closed; raised below
                failures.append(error)
        if failures:
            raise failures[0]
