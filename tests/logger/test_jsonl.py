"""metrics.jsonl: what is written is what is read, also after a crash and a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from stdetr.logger import JsonlLogger, Logger, LoggerGroup, Table, read_metrics


def test_records_are_one_strict_json_object_a_line(tmp_path: Path):
    logger = JsonlLogger(tmp_path)
    logger.start({})
    logger.log(10, "train", {"loss": torch.tensor(1.5), "lr": 1e-4, "count": np.int64(3), "bad": math.nan})
    logger.log(10, "val", {"coco/AP": None, "coco/AP50": float("inf"), "done": True})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"step": 10, "split": "train", "loss": 1.5, "lr": 1e-4, "count": 3, "bad": None},
        {"step": 10, "split": "val", "coco/AP": None, "coco/AP50": None, "done": 1},
    ]
    assert read_metrics(tmp_path / "metrics.jsonl", "val")[0]["step"] == 10


def test_resume_drops_later_records_and_a_line_cut_short(tmp_path: Path):
    logger = JsonlLogger(tmp_path)
    logger.start({})
    for step in (10, 20, 30):
        logger.log(step, "train", {"loss": float(step)})
    with logger.path.open("a") as stream:
        stream.write('{"step": 40, "split": "tra')
    resumed = JsonlLogger(tmp_path)
    resumed.start({}, step=20)
    resumed.log(30, "train", {"loss": 0.5})
    assert [(record["step"], record["loss"]) for record in read_metrics(logger.path)] == [(10, 10), (20, 20), (30, 0.5)]
    assert logger.path.read_text().count("\n") == 3
    assert list(tmp_path.iterdir()) == [logger.path]  # no temporary file stays


def test_an_evaluation_that_comes_again_is_dropped(tmp_path: Path):
    logger = JsonlLogger(tmp_path)
    logger.start({})
    for step in (2, 4):
        logger.log(step, "train", {"loss": step})
        logger.log(step, "val", {"coco/AP": 0.5})
        logger.log_table(step, "per_class", Table(("class",), (("cat",),)))
    logger.start({}, step=4, evaluated=False)
    assert [(r["step"], r["split"]) for r in read_metrics(logger.path)] == [
        (2, "train"), (2, "val"), (2, "table"), (4, "train"),
    ]  # fmt: skip


def test_resume_without_earlier_records_starts_empty(tmp_path: Path):
    logger = JsonlLogger(tmp_path / "new")
    logger.start({}, step=5)
    logger.log(6, "train", {"loss": 1})
    assert len(read_metrics(logger.path)) == 1


def test_fresh_run_in_an_old_folder_keeps_the_earlier_records(tmp_path: Path):
    for value in (1.0, 2.0, 3.0):
        logger = JsonlLogger(tmp_path)
        logger.start({})
        logger.log(1, "train", {"loss": value})
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["loss"] == 3.0
    assert read_metrics(tmp_path / "metrics.1.jsonl")[0]["loss"] == 1.0
    assert read_metrics(tmp_path / "metrics.2.jsonl")[0]["loss"] == 2.0


def test_media_paths_are_relative_and_tables_round_trip(tmp_path: Path):
    logger = JsonlLogger(tmp_path)
    logger.start({})
    logger.log_media(3, "sampling", tmp_path / "media" / "sampling.png")
    logger.log_media(3, "overlay", tmp_path / "media" / "overlay.mp4")
    logger.log_table(3, "per_class", Table(("class", "AP"), (("cat", 0.25), ("dog", None))))
    logger.finish(1)
    media = read_metrics(logger.path, "media")
    assert media[0]["sampling"] == "media/sampling.png"
    assert media[1]["overlay"] == "media/overlay.mp4"
    assert read_metrics(logger.path, "table")[0]["per_class"] == {
        "columns": ["class", "AP"],
        "rows": [["cat", 0.25], ["dog", None]],
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": torch.zeros(2)}, "metric 'loss' must be one number, got shape (2,)"),
        ({"loss": "high"}, "metric 'loss' must be a number, got str 'high'"),
        ({"step": 1.0}, "metric name 'step' is reserved"),
    ],
)
def test_a_wrong_metric_is_named(tmp_path: Path, values: dict, message: str):
    logger = JsonlLogger(tmp_path)
    logger.start({})
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        logger.log(1, "train", values)
    assert not logger.path.exists()  # nothing half-written


def test_reading_names_the_broken_line(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": \n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2 is not JSON"):
        read_metrics(file)
    with pytest.raises(FileNotFoundError, match="no metrics file"):
        read_metrics(tmp_path / "none.jsonl")


def test_table_rows_must_fit_the_columns():
    with pytest.raises(ValueError, match="row 1 has 1 values for 2 columns"):
        Table(("class", "AP"), (("cat", 0.5), ("dog",)))


class Failing(JsonlLogger):
    def finish(self, exit_code: int = 0) -> None:
        raise RuntimeError("disk full")


class Remembering(JsonlLogger):
    exit_code: int | None = None

    def finish(self, exit_code: int = 0) -> None:
        self.exit_code = exit_code


def test_group_reaches_every_logger_even_when_one_fails_to_finish(tmp_path: Path):
    last = Remembering(tmp_path / "b")
    group = LoggerGroup(first=Failing(tmp_path / "a"), last=last)
    assert isinstance(group, Logger)
    group.start({})
    group.log(1, "train", {"loss": 2.0})
    group.log_media(1, "x", tmp_path / "x.png")
    with pytest.raises(RuntimeError, match="disk full"):
        group.finish(1)
    assert last.exit_code == 1
    assert read_metrics(tmp_path / "a" / "metrics.jsonl") == read_metrics(tmp_path / "b" / "metrics.jsonl")


def test_empty_group_writes_nothing(tmp_path: Path):
    group = LoggerGroup()
    group.start({"output_dir": str(tmp_path)})
    group.log(1, "train", {"loss": 1})
    group.finish()
    assert list(tmp_path.iterdir()) == []
