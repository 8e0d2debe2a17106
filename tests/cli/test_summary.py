"""Tables of a sweep, against tables written by hand."""

from __future__ import annotations

import json
from pathlib import Path

from stdetr.cli.summary import read_jobs, shown_columns, summarise


def write_job(folder: Path, number: int, overrides: list[str], metrics: dict | None = None) -> None:
    job = folder / str(number)
    (job / "eval").mkdir(parents=True)
    record = {"job": number, "overrides": overrides, "status": "done", "objective": None, "seconds": 1.0, "error": None}
    (job / "job.json").write_text(json.dumps(record), encoding="utf-8")
    if metrics is not None:
        (job / "eval" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


def test_jobs_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        write_job(tmp_path, number, [f"seed={number}"])
    assert [row["job"] for row in read_jobs(tmp_path)] == [0, 2, 10]
    assert read_jobs(tmp_path / "nowhere") == []


def test_columns_that_tell_jobs_apart(tmp_path: Path) -> None:
    metrics = {"coco/AP": 0.5, "coco/AP/cat": 0.4, "note/text": "x"}
    write_job(tmp_path, 0, ["seed=0", "data=toy", "path='a=b'"], metrics)
    write_job(tmp_path, 1, ["seed=1", "data=toy", "path='a=b'"])
    rows = read_jobs(tmp_path)
    assert rows[0]["path"] == "'a=b'"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    assert shown_columns(rows, columns) == ["job", "seed", "status", "seconds", "coco/AP", "note/text"]
    text = summarise(tmp_path, rows)
    cells = [line.replace("|", " ").split() for line in text.splitlines()]
    assert cells[2] == ["0", "0", "done", "1", "0.5", "x"]
    assert cells[3] == ["1", "1", "done", "1", "-", "-"]
    assert (tmp_path / "summary.md").read_text(encoding="utf-8").splitlines() == text.splitlines()[:4]
    # The CSV has everything, also what is the same in every job and per class.
    header = (tmp_path / "summary.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert set(header) >= {"data", "coco/AP/cat", "error", "objective"}


def test_headline_metrics_come_first_and_empty_ones_not_at_all() -> None:
    names = [f"coco/AR{n}" for n in range(9)] + ["coco/AP50_degraded", "coco/AP_large", "tube/AP", "coco/AP"]
    row = {"job": 0, **dict.fromkeys(names, 0.5), "coco/AP_large": None}
    shown = shown_columns([row], list(row))
    assert {"coco/AP", "tube/AP", "coco/AP50_degraded", "coco/AR0", "coco/AR4"} <= set(shown)
    assert "coco/AP_large" not in shown
    assert "coco/AR5" not in shown
    assert len(shown) == 1 + 8
