"""The lines that mistakes give, and what the console offers, against the record."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf

from stdetr.cli import main
from stdetr.cli.verbs import VERBS
from stdetr.config import compose

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Small files with something wrong."""
    good: dict[str, Any] = {
        "videos": [{"id": 1, "name": "a", "width": 64, "height": 48, "length": 2}],
        "images": [
            {"id": 1, "video_id": 1, "frame_id": 0, "file_name": "a/0.jpg"},
            {"id": 2, "video_id": 1, "frame_id": 1, "file_name": "a/1.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "instance_id": 1, "bbox": [1, 2, 10, 12], "iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "car"}],
    }
    wrong = {
        "good": good,
        "box": {**good, "annotations": [{**good["annotations"][0], "bbox": [1, 2, -3, 4]}]},
        "category": {**good, "annotations": [{**good["annotations"][0], "category_id": 7}]},
        "image": {**good, "annotations": [{**good["annotations"][0], "image_id": 9}]},
        "twice": {**good, "annotations": good["annotations"] * 2},
        "no_videos": {k: v for k, v in good.items() if k != "videos"},
        "text_id": {**good, "images": [{**good["images"][0], "id": "x"}]},
        "escape": {**good, "images": [{**good["images"][0], "file_name": "../../x.jpg"}]},
    }
    for name, document in wrong.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    (tmp_path / "cut.json").write_text(json.dumps(good)[:100])
    (tmp_path / "results.json").write_text(
        json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 12], "score": 0.9}])
    )
    (tmp_path / "results_image.json").write_text(
        json.dumps([{"image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.9}])
    )
    (tmp_path / "empty").mkdir()
    return tmp_path


COMMANDS = [
    "predcit",
    "train experiment=toi",
    "train trainer.max_stpes=3",
    "train model.pionts=4",
    "train trainer.max_steps=abc",
    "train model=smal",
    "train experiment=toy data.loader.batch_size=0",
    "train data=coco_vid data.root=TMP/nowhere",
    "train experiment=toy model.width=30",
    "train experiment=toy trainer.precision=fp8",
    "train experiment=toy trainer.max_steps=0",
    "eval checkpoint=TMP/nope",
    "eval checkpoint=TMP/empty",
    "eval",
    "eval annotations=TMP/good.json",
    "eval annotations=TMP/nope.json predictions=TMP/results.json",
    "eval annotations=TMP/box.json predictions=TMP/results.json",
    "eval annotations=TMP/good.json predictions=TMP/results_image.json",
    "eval annotations=TMP/good.json predictions=TMP/results.json evaluators=[coko]",
    "eval compare=TMP/empty",
    "predict checkpoint=TMP/nope source=TMP/x.mp4",
    "predict source=TMP/x.mp4",
    "export checkpoint=TMP/nope",
    "bench suite=ops",
    "data",
    "data action=convrt",
    "data action=convert format=mto source=TMP output=TMP/o",
    "data action=convert format=mot source=TMP/nope output=TMP/o",
    "data action=convert format=mot source=TMP/empty output=TMP/o",
    "data action=convert format=coco source=TMP/empty output=TMP/o",
    "data action=convert format=videos source=TMP/empty output=TMP/o",
    "data action=convert format=cvat source=TMP/empty output=TMP/o",
    "data action=validate path=TMP/nope.json",
    "data action=validate path=TMP/box.json check_media=false",
    "data action=validate path=TMP/category.json check_media=false",
    "data action=validate path=TMP/image.json check_media=false",
    "data action=validate path=TMP/twice.json check_media=false",
    "data action=validate path=TMP/no_videos.json check_media=false",
    "data action=validate path=TMP/text_id.json check_media=false",
    "data action=validate path=TMP/escape.json check_media=false",
    "data action=validate path=TMP/cut.json check_media=false",
    "data action=stats path=TMP/nope.json",
    "data action=show path=TMP/good.json output=TMP/shown",
]


def test_error_lines(
    files: Path, tmp_path: Path, golden: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines: dict[str, list[Any]] = {}
    for command in COMMANDS:
        words = command.replace("TMP", str(files)).split()
        if words[0] in ("train", "eval", "export", "predict"):
            words.append(f"output_dir={tmp_path / 'out'}")
        if words[0] == "train":
            words += ["logger=none", f"paths.data={tmp_path / 'data'}"]
        if words[0] == "train" and "data=coco_vid" not in words:
            words += [f"data.benchmark.splits.{split}.videos=1" for split in ("train", "val", "test")]
        code = main(words)
        out, err = capfd.readouterr()
        assert code in (1, 2), (command, code, out, err)
        text = re.sub(r"generate .*\r|\rgenerate .*\n|generate .*\n", "", err).replace("\r", "") if code == 2 else out
        lines[command] = [code, text.replace(str(files), "TMP").splitlines()[-1]]
        if code == 2:
            assert text.startswith("error: "), (command, text)
            assert text.count("\n") == 1, (command, text)
    assert lines == golden("errors", lines)


def _keys(cfg: DictConfig, prefix: str = "") -> list[str]:
    names = []
    for name in cfg:
        node = cfg._get_node(name)
        path = f"{prefix}{name}"
        if isinstance(node, DictConfig) and not node._is_none():
            names += _keys(node, path + ".")
        elif (
            isinstance(node, ListConfig) and not node._is_none() and any(isinstance(part, DictConfig) for part in node)
        ):
            names.append(path + "[]")
        else:
            names.append(path)
    return names


def test_inventory(golden: Any) -> None:
    """Verbs, keys, formats and the options of each config group: what disappears is named in the changelog."""
    from importlib import import_module

    groups = {
        str(folder.relative_to(ROOT / "conf")): sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted((ROOT / "conf").rglob("*"))
        if folder.is_dir()
    }
    inventory = {
        "verbs": sorted(VERBS),
        "groups": groups,
        "keys": {verb: sorted(_keys(compose(verb, []))) for verb in sorted(VERBS)},
        "experiments": {
            name: sorted(set(_keys(compose("train", [f"experiment={name}"]))) - set(_keys(compose("train", []))))
            for name in groups["experiment"]
        },
        "formats": sorted(import_module("stdetr.datasets.converters.convert").FORMATS),
    }
    recorded = golden("inventory", inventory)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for verb in recorded["verbs"]:
        assert verb in inventory["verbs"]
    for verb, keys in recorded["keys"].items():
        gone = [key for key in keys if key not in inventory["keys"][verb]]
        missing = [key for key in gone if f"`{key}`" not in changelog]
        assert not missing, f"stdetr {verb}: keys that are gone without a reason in CHANGELOG.md: {missing}"
    for group, options in recorded["groups"].items():
        missing = [
            name
            for name in options
            if name not in inventory["groups"].get(group, []) and f"`{group}={name}`" not in changelog
        ]
        assert not missing, f"conf/{group}: options that are gone without a reason in CHANGELOG.md: {missing}"
    assert set(recorded["formats"]) <= set(inventory["formats"])
    assert not OmegaConf.is_missing(compose("train", []), "seed")
