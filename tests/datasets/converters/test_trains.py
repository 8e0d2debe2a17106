"""Every format from its source folder to a score: convert, validate, train five steps, evaluate, by the console."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_coco import source as coco_source  # noqa: F401 - fixtures are found by their names
from test_driving import argoverse_source, bdd_source, detrac_source  # noqa: F401
from test_epic_kitchens import source as epic_source  # noqa: F401
from test_imagenet_vid import ilsvrc  # noqa: F401
from test_mot import dancetrack_source, mot_source  # noqa: F401
from test_own_videos import cvat_source, videos_source  # noqa: F401
from test_tao import source as tao_source  # noqa: F401
from test_visdrone_vid import source as visdrone_source  # noqa: F401
from test_youtube_vis import lvvis_source, ovis_source  # noqa: F401
from test_youtube_vis import source as ytvis_source  # noqa: F401

from stdetr.cli import main
from stdetr.datasets.converters.convert import FORMATS

SOURCES = {
    "imagenet_vid": ("ilsvrc", "train"),
    "youtube_vis": ("ytvis_source", "train"),
    "ovis": ("ovis_source", "train"),
    "lvvis": ("lvvis_source", "train"),
    "tao": ("tao_source", "train"),
    "mot": ("mot_source", "all"),
    "dancetrack": ("dancetrack_source", "train"),
    "bdd100k": ("bdd_source", "train"),
    "ua_detrac": ("detrac_source", "train"),
    "visdrone_vid": ("visdrone_source", "train"),
    "argoverse_hd": ("argoverse_source", "val"),
    "epic_kitchens": ("epic_source", "train"),
    "coco": ("coco_source", "val2017"),
    "cvat": ("cvat_source", "all"),
    "videos": ("videos_source", "train"),
}
"""Format -> fixture of its source folder, and a split that holds boxes."""

TINY = [
    "experiment=toy",
    "data=coco_vid",
    "data.frames=2",
    "data.probe_seconds=null",
    "data.train_transforms.2.sizes=[64]",
    "data.eval_transforms.0.sizes=64",
    "data.loader.num_workers=0",
    "model.width=32",
    "model.queries=6",
    "model.feed_forward=32",
    "model.decoder_layers=1",
    "model.detector.neck.norm_groups=4",
    "trainer.max_steps=5",
    "trainer.threads=1",
    "trainer.deterministic=false",
    "evaluation.evaluators=[coco]",
    "logger=jsonl",
    "viz.samples=0",
]


def stdetr(*words: str) -> None:
    assert main(words) == 0, words


def test_no_format_is_left_out() -> None:
    assert SOURCES.keys() == FORMATS.keys()


@pytest.mark.parametrize("format", FORMATS)
def test_trains_and_evaluates(
    format: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture
) -> None:
    fixture, split = SOURCES[format]
    source: Path = request.getfixturevalue(fixture)
    data, run, scored = tmp_path / "data", tmp_path / "run", tmp_path / "scored"
    stdetr("data", "action=convert", f"format={format}", f"source={source}", f"output={data}")
    stdetr("data", "action=validate", f"path={data / f'{split}.json'}")
    assert "valid (" in capsys.readouterr().out

    files = [f"data.root={data}", f"data.train={split}.json", f"data.val={split}.json"]
    stdetr("train", *TINY, *files, f"output_dir={run}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = next(line for line in lines if line["split"] == "train")
    assert (trained["step"], trained["loss"] > 0) == (5, True)
    assert json.loads((run / "checkpoints/last/meta.json").read_text())["step"] == 5

    stdetr("eval", f"checkpoint={run}", f"output_dir={scored}", "device=cpu", "evaluation.evaluators=[coco,vid,tube]")
    metrics = json.loads((scored / "eval/metrics.json").read_text())
    assert 0 <= metrics["coco/AP50"] <= 1
    # The console's evaluation of the saved weights repeats what training found at its end.
    assert metrics["coco/AP50"] == pytest.approx(json.loads((run / "eval/metrics.json").read_text())["coco/AP50"])
    document = json.loads((data / f"{split}.json").read_text())
    known = {image["id"] for image in document["images"]}
    predictions = json.loads((scored / "predictions.json").read_text())
    assert predictions
    assert {record["image_id"] for record in predictions} <= known
    follows = any(annotation["instance_id"] >= 0 for annotation in document["annotations"])
    assert (metrics["tube/AP50"] is not None) == follows
