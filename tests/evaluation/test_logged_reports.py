"""The tables and figures of a report, in W&B and in metrics.jsonl."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stdetr.class_names import ClassNames
from stdetr.cli import main
from stdetr.config import RunPaths, compose
from stdetr.engine.evaluation_loop import SplitEvaluator
from stdetr.engine.predictions import SplitPredictions
from stdetr.evaluation.detections import Detections
from stdetr.logger import JsonlLogger, read_metrics

TABLES = {"variants", "per_class", "per_motion", "per_size", "confusion", "tracking", "per_video"}


@pytest.fixture
def files(make_random_scene, tmp_path: Path) -> Path:
    scene = make_random_scene(4)
    (tmp_path / "annotations.json").write_text(json.dumps(scene.document))
    (tmp_path / "predictions.json").write_text(json.dumps(scene.predictions))
    return tmp_path


def words(files: Path, *more: str) -> list[str]:
    given = [f"{name}={files / name}.json" for name in ("annotations", "predictions")]
    return ["eval", *given, f"output_dir={files / 'run'}", "evaluators=[vid,vid_mega,motion,coco,tube,track]", *more]


def history(folder: Path) -> dict[str, Any]:
    """Key -> value of everything that an offline run logged."""
    reader = Path(__file__).resolve().parents[1] / "logger" / "test_wandb.py"
    spec = importlib.util.spec_from_file_location("read_wandb", reader)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # wandb's own process writes the file, on a busy machine after the run has finished here.
    for _ in range(100):
        records = list(module.records(folder))
        if any(record.HasField("exit") for record in records):
            break
        time.sleep(0.2)
    found = {}
    for record in records:
        if record.HasField("history"):
            found |= {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
    return found


def test_files_scored_into_wandb(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "CI"):
        monkeypatch.delenv(name, raising=False)
    assert main(words(files, "logger=wandb", "logger.wandb.mode=offline")) == 0
    record = json.loads((files / "run/wandb_run.json").read_text())
    folder = files / "run" / record["folder"]
    logged = history(folder)
    report = json.loads((files / "run/eval/report.json").read_text())
    assert set(report["tables"]) == TABLES
    for name, table in report["tables"].items():
        key = f"table/files/{name}"
        assert logged[f"{key}/_type"] == "table-file"
        written = json.loads((folder / "files" / logged[f"{key}/path"]).read_text())
        assert written["columns"] == table["columns"]
        assert written["data"] == table["rows"]
    variants = [row[0] for row in report["tables"]["variants"]["rows"]]
    assert variants == ["vid/AP50", "vid_mega/AP50", "coco/AP50", "coco/AP", "tube/AP50", "tube/AP"]
    for name in ("precision_recall", "per_class"):
        assert logged[f"media/files/{name}/_type"] == "image-file"
        copied = folder / "files" / logged[f"media/files/{name}/path"]
        assert copied.read_bytes() == (files / f"run/eval/{name}.png").read_bytes()
    metrics = json.loads((files / "run/eval/metrics.json").read_text())
    assert logged["files/vid/AP50"] == metrics["vid/AP50"]


def test_nothing_is_tracked_unless_asked(files: Path) -> None:
    assert main(words(files)) == 0
    assert not (files / "run/metrics.jsonl").exists()
    assert not (files / "run/wandb").exists()


def test_the_record_of_a_training_run_goes_on(files: Path) -> None:
    logger = JsonlLogger(files / "run")
    logger.start({})
    logger.log(7, "train", {"loss": 1.5})
    assert main(words(files, "logger=jsonl")) == 0
    records = read_metrics(files / "run/metrics.jsonl")
    assert records[0] == {"step": 7, "split": "train", "loss": 1.5}
    assert {key for record in records if record["split"] == "table" for key in record} >= {f"files/{t}" for t in TABLES}


def test_training_hands_its_report_to_the_logger(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = json.loads((files / "predictions.json").read_text())
    found = SplitPredictions(Detections.from_results(predictions), [])
    monkeypatch.setattr(SplitEvaluator, "_predictions", lambda *_: found)
    logger = JsonlLogger(files / "run")
    logger.start({})
    classes = ClassNames((1, 2, 3), ("class1", "class2", "class3"))
    data: Any = SimpleNamespace(annotations=lambda split: files / "annotations.json", frames=5, classes=classes)
    evaluator = SplitEvaluator(
        data=data,
        settings=compose("train", ["experiment=toy", "evaluation.evaluators=[coco,vid]"]).evaluation,
        paths=RunPaths(files / "run"), device=torch.device("cpu"), logger=logger,
    )  # fmt: skip
    metrics = evaluator(torch.nn.Identity(), 40)
    records = read_metrics(files / "run/metrics.jsonl")
    tables = {key: value for r in records if r["split"] == "table" for key, value in r.items() if "/" in key}
    assert set(tables) == {"val/variants", "val/per_class", "val/per_size", "val/confusion"}
    rows = {row[0]: row[1] for row in tables["val/variants"]["rows"]}
    assert rows["vid/AP50"] == metrics["vid/AP50"]
    assert [row[0] for row in tables["val/per_class"]["rows"]] == ["class1", "class2", "class3"]
    images = {key: value for r in records if r["split"] == "media" for key, value in r.items() if "/" in key}
    assert images == {f"val/{n}": f"eval/{n}.png" for n in ("precision_recall", "per_class")}
    assert {record["step"] for record in records} == {40}
