"""The scripts that write other detectors' predictions, on random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "compare"
FRAMES, NAMES = 4, ["bird", "drone"]


@pytest.fixture
def annotations(tmp_path: Path, encode: Callable[..., Path]) -> Path:
    """A video of four frames of 64x48, of which frames 0, 2 and 3 have a record."""
    video = encode("a.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p", frames=FRAMES, size="64x48")
    (tmp_path / "a.mp4").write_bytes(video.read_bytes())
    document: dict[str, Any] = {
        "videos": [{"id": 1, "name": "a", "width": 64, "height": 48, "length": FRAMES, "file_name": "a.mp4"}],
        "images": [{"id": 10 + f, "video_id": 1, "frame_id": f} for f in (0, 2, 3)],
        "categories": [{"id": 5 + n, "name": name} for n, name in enumerate(NAMES)],
        "annotations": [
            {"id": 1, "image_id": 12, "category_id": 6, "bbox": [16, 12, 32, 24]},
            {"id": 2, "image_id": 13, "category_id": 5, "bbox": [0, 0, 8, 8], "ignore": 1},
        ],
    }
    (tmp_path / "val.json").write_text(json.dumps(document))
    return tmp_path / "val.json"


def _run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "1"}
    command = [sys.executable, str(SCRIPTS / script), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


def _results(script: str, annotations: Path, weights: Path, *words: str) -> list[dict[str, Any]]:
    out = annotations.parent / "out.json"
    done = _run(
        script, f"--annotations={annotations}", f"--weights={weights}", f"--output={out}", "--min-score=0", *words
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert {record["image_id"] for record in found} <= {10, 12, 13}
    assert all(record["category_id"] in (5, 6) and len(record["bbox"]) == 4 for record in found)
    return found


def test_frames_are_exported_for_training(annotations: Path, tmp_path: Path) -> None:
    done = _run("export_frames.py", f"--annotations={annotations}", f"--output={tmp_path / 'out'}", "--every=2")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "10.jpg", "10.txt", "13.jpg", "13.txt", "_annotations.coco.json",
    ]  # fmt: skip
    done = _run("export_frames.py", f"--annotations={annotations}", f"--output={tmp_path / 'all'}")
    assert (tmp_path / "all" / "12.txt").read_text() == "1 0.500000 0.500000 0.500000 0.500000"
    assert (tmp_path / "all" / "13.txt").read_text() == "", "ignore regions are left out"
    coco = json.loads((tmp_path / "all" / "_annotations.coco.json").read_text())
    assert [image["width"] for image in coco["images"]] == [64] * 3
    assert len(coco["annotations"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["RTDetr", "DFine"])
def test_transformers(family: str, annotations: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{family}Config")(
        num_queries=12, decoder_layers=2, id2label=dict(enumerate(["Bird", "plane"])), label2id={"Bird": 0, "plane": 1}
    )
    getattr(transformers, f"{family}ForObjectDetection")(config).save_pretrained(tmp_path / "model")
    size = {"height": 64, "width": 64}
    transformers.RTDetrImageProcessor(size=size).save_pretrained(tmp_path / "model")
    found = _results("with_transformers.py", annotations, tmp_path / "model")
    assert {record["category_id"] for record in found} == {5}, "planes are not in the annotations"
    assert {record["image_id"] for record in found} == {10, 12, 13}
    found = _results("with_transformers.py", annotations, tmp_path / "model", "--name=plane=drone")
    assert {record["category_id"] for record in found} == {5, 6}


@pytest.mark.slow
def test_ultralytics(annotations: Path, tmp_path: Path) -> None:
    ultralytics = pytest.importorskip("ultralytics")
    model = ultralytics.YOLO("yolo26n.yaml")
    model.save(tmp_path / "n.pt")
    _results("with_ultralytics.py", annotations, tmp_path / "n.pt", "--size=64", "--name=person=drone")


@pytest.mark.slow
def test_rfdetr(annotations: Path, tmp_path: Path) -> None:
    rfdetr = pytest.importorskip("rfdetr")
    torch = pytest.importorskip("torch")
    model = rfdetr.RFDETRNano(pretrain_weights=None)
    torch.save({"model": model.model.model.state_dict(), "model_name": "RFDETRNano", "args": {}}, tmp_path / "n.pth")
    _results("with_rfdetr.py", annotations, tmp_path / "n.pth", "--name=person=drone")
