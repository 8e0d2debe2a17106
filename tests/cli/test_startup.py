"""What each command imports: nothing that it does not need, and nothing heavy before a mistake is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TORCH = ["torch", "torchvision", "accelerate", "transformers", "supervision", "cv2", "wandb"]
LIBRARIES = [*TORCH, "numpy", "scipy", "matplotlib", "PIL", "pycocotools", "av", "decord"]
GOOD = {
    "videos": [{"id": 1, "name": "a", "width": 64, "height": 48, "length": 2}],
    "images": [{"id": i + 1, "video_id": 1, "frame_id": i, "file_name": f"a/{i}.jpg"} for i in range(2)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "instance_id": 1, "bbox": [1, 2, 10, 12], "area": 120, "iscrowd": 0}
    ],
    "categories": [{"id": 1, "name": "car"}],
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "good.json").write_text(json.dumps(GOOD), encoding="utf-8")
    results = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 12], "score": 0.9}]
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (tmp_path / "empty").mkdir()
    return tmp_path


def imported(folder: Path, *programs: str) -> dict[str, set[str]]:
    """For each of ``programs``, run one after the other in one process: the libraries imported by its end."""
    names = [*LIBRARIES, "torch._dynamo", "scipy.optimize"]
    tell = f"print('LOADED', *[name for name in {names} if name in sys.modules])"
    code = "\n".join(["import sys", *(f"{program}\n{tell}" for program in programs)])
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    loaded = [set(line.split()[1:]) for line in result.stdout.splitlines() if line.startswith("LOADED")]
    return dict(zip(programs, loaded, strict=True))


def command(words: str, code: int) -> str:
    return f"from stdetr.cli import main; assert main({words.split()}) == {code}, {words!r}"


MISTAKES = [
    "train trainer.max_stpes=3",
    "train -m model.points=4,x",
    "train init_from=nope",
    "train resume=nope",
    "eval checkpoint=nope",
    "eval checkpoint=empty",
    "eval annotations=nope.json predictions=results.json",
    "eval annotations=good.json predictions=nope.json",
    "predict checkpoint=nope source=nope.mp4",
    "predict source=nope.mp4",
    "export checkpoint=nope",
    "bench suite=ops",
    "data action=validate path=nope.json",
    "data action=convrt",
]


def test_help_and_mistakes_import_nothing_heavy(files: Path) -> None:
    programs = [command("--help", 0), command("train --help", 0), *(command(words, 2) for words in MISTAKES)]
    for program, found in imported(files, *programs).items():
        assert not found, program


def test_files_are_scored_without_torch(files: Path) -> None:
    program = command("eval annotations=good.json predictions=results.json output_dir=out", 0)
    assert imported(files, program)[program].isdisjoint(TORCH)


def test_a_detector_needs_torch_alone(files: Path) -> None:
    """torchvision takes longer to import than torch, because it brings torch's compiler; scipy takes a third of it."""
    first = "from stdetr import Detector"
    model = (
        "from stdetr.config import compose, instantiate\n"
        "instantiate(compose('train', ['model.classes=3']).model.detector)"
    )
    for program, found in imported(files, first, model).items():
        assert "torch" in found
        heavy = {"torchvision", "torch._dynamo", "scipy.optimize", "matplotlib", "supervision", "accelerate"}
        assert found.isdisjoint(heavy), program
