"""The table at the end of a sweep: one row per job, its overrides, its objective and its metrics."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stdetr.atomic import replacing, write_text
from stdetr.bench.report import draw_table

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
    with replacing(folder / "summary.csv") as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    shown = shown_columns(rows, columns)
    table = draw_table(shown, [[row.get(column) for column in shown] for row in rows])
    write_text(folder / "summary.md", f"{table}\n")
    return f"{table}\n\n{len(rows)} jobs: {folder / 'summary.csv'}, {folder / 'summary.md'}"


def read_jobs(folder: Path, *, since: float = 0.0) -> list[dict[str, Any]]:
    """One flat record per job, in order of number: job, overrides, status, objective, seconds, error, metrics.

    ``since`` leaves out jobs of an earlier sweep in ``folder``: those recorded before that time (seconds since the
    epoch).
    """
    rows: list[dict[str, Any]] = []
    for path in folder.glob(f"*/{JOB_FILE}"):
        # File systems keep coarser times than the clock.
        if path.stat().st_mtime < since - 2:
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        row: dict[str, Any] = {"job": record["job"]}
        row |= {key: value for key, _, value in (text.partition("=") for text in record["overrides"])}
        row |= {name: record[name] for name in ("status", "objective", "seconds", "error")}
        metrics = path.parent / METRICS_FILE
        if metrics.is_file():
            row |= json.loads(metrics.read_text(encoding="utf-8"))
        rows.append(row)
    return sorted(rows, key=lambda row: int(row["job"]))


def shown_columns(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """The columns worth a terminal's width: what differs between jobs, and the first headline metrics."""
    values = {column: [row.get(column) for row in rows] for column in columns}
    numbers = [name for name in columns if "/" in name and all(isinstance(v, int | float | None) for v in values[name])]
    told = [name for name in numbers if name.count("/") == 1 and any(v is not None for v in values[name])]
    headline = sorted(told, key=_rank)[:SHOWN_METRICS]

    def is_shown(column: str) -> bool:
        if column in numbers:
            return column in headline
        if column in {"job", "status", "objective", "seconds", "error"}:
            return any(value is not None for value in values[column])
        return len(rows) == 1 or len(set(map(str, values[column]))) > 1

    return [column for column in columns if is_shown(column)]


def _rank(column: str) -> int:
    """Headline figures first, then their splits (``AP50_degraded``), then the rest."""
    name = column.rpartition("/")[2]
    return 0 if name in HEADLINES else 1 if name.startswith(("AP50_", "AP_")) else 2
