"""Logs the tables and figures of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stdetr.config import RunPaths
from stdetr.evaluation.evaluate import Evaluation
from stdetr.evaluation.report import tables
from stdetr.logger import Logger, Table, read_metrics


def log_evaluation(logger: Logger, step: int, split: str, evaluation: Evaluation, figures: Iterable[Path]) -> None:
    """All tables of the report (``<split>/variants``, ``per_class``, ``per_motion``, ``per_size``, ...) and its figures
    (``<split>/precision_recall``, ``<split>/per_class``), at ``step``."""
    for name, table in tables(evaluation).items():
        rows = tuple(tuple(row) for row in table.rows)
        logger.log_table(step, f"{split}/{name}", Table(tuple(table.columns), rows))
    for path in figures:
        logger.log_media(step, f"{split}/{path.stem}", path)


@contextmanager
def logged_run(logger: Logger, config: Mapping[str, Any], paths: RunPaths) -> Iterator[None]:
    """A run of the logger around an evaluation.

    If ``paths`` is the folder of a training run, its record is continued: nothing recorded so far is lost.
    """
    records = read_metrics(paths.metrics) if paths.metrics.is_file() else []
    logger.start(config, step=max((int(record["step"]) for record in records), default=None))
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        logger.finish(exit_code)
