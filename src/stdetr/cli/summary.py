"""The table at the end of a sweep: one row a job, its overrides, its objective and its metrics."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stdetr.cli.table import to_markdown, to_text

JOB_FILE = "job.json"
METRICS_FILE = Path("eval") / "metrics.json"
SHOWN_METRICS = 8
"""Metrics of the printed table; the CSV has all."""
HEADLINES = ("AP", "AP50", "HOTA", "IDF1", "MOTA")


def summarise(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Write ``summary.csv`` and ``summary.md`` into ``folder`` and return the table to print.

    ``rows`` are those of ``read_jobs``, at least one.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    shown = shown_columns(rows, columns)
    table = [[row.get(column) for column in shown] for row in rows]
    (folder / "summary.md").write_text(to_markdown(shown, table), encoding="utf-8")
    return f"{to_text(shown, table)}\n\n{len(rows)} jobs: {folder / 'summary.csv'}, {folder / 'summary.md'}"


def read_jobs(folder: Path, *, since: float = 0.0) -> list[dict[str, Any]]:
    """One flat record a job, in the order of their numbers: job, overrides, status, objective, seconds, error, metrics.

    ``since`` leaves out jobs recorded before that time (seconds since the epoch): those of an earlier sweep in
    ``folder``.
    """
    rows: list[dict[str, Any]] = []
    for path in folder.glob(f"*/{JOB_FILE}"):
        # File systems keep coarser times than the clock.
        if path.stat().st_mtime < since - 2:
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        row: dict[str, Any] = {"job": record["job"]}
        for override in record["overrides"]:
            key, _, value = override.partition("=")
            row[key] = value
        row |= {name: record[name] for name in ("status", "objective", "seconds", "error")}
        metrics = path.parent / METRICS_FILE
        if metrics.is_file():
            row |= json.loads(metrics.read_text(encoding="utf-8"))
        rows.append(row)
    return sorted(rows, key=lambda row: int(row["job"]))


def shown_columns(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """The columns worth a terminal's width: what differs between jobs, and the first headline metrics."""
    fixed = {"job", "status", "objective", "seconds", "error"}
    metrics = [column for column in columns if "/" in column and _is_number_column(rows, column)]
    headline = [column for column in metrics if any(row.get(column) is not None for row in rows)]
    headline = sorted((column for column in headline if column.count("/") == 1), key=_rank)[:SHOWN_METRICS]
    shown = []
    for column in columns:
        values = [row.get(column) for row in rows]
        if column in fixed:
            keep = column == "job" or any(value is not None for value in values)
        elif column in metrics:
            keep = column in headline
        else:
            keep = len(rows) == 1 or len(set(map(str, values))) > 1
        if keep:
            shown.append(column)
    return shown


def _rank(column: str) -> int:
    """Headline figures first, then their splits (``AP50_degraded``), then the rest."""
    name = column.rpartition("/")[2]
    if name in HEADLINES:
        return 0
    return 1 if name.startswith(("AP50_", "AP_")) else 2


def _is_number_column(rows: Sequence[dict[str, Any]], column: str) -> bool:
    return all(isinstance(row.get(column), int | float | None) for row in rows)
