"""The data configurations, built as a run builds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from stdetr.config import instantiate
from stdetr.data.module import DataModule
from stdetr.data.sampling import RandomWindows

CONF = Path(__file__).parents[2] / "conf" / "data"


def _node(name: str, folder: Path, **changes: object) -> DictConfig:
    def load(name: str) -> DictConfig:
        node = OmegaConf.load(CONF / f"{name}.yaml")
        assert isinstance(node, DictConfig)
        parents = [load(parent) for parent in node.pop("defaults", []) if parent != "_self_"]
        merged = OmegaConf.merge(*parents, node)
        assert isinstance(merged, DictConfig)
        return merged

    config = OmegaConf.create({"seed": 0, "paths": {"data": str(folder)}, "data": load(name)})
    for key, value in changes.items():
        OmegaConf.update(config, f"data.{key.replace('__', '.')}", value)
    return config.data


@pytest.fixture
def toy(tmp_path: Path) -> DataModule:
    splits = {f"benchmark__splits__{split}__videos": 2 for split in ("train", "val", "test")}
    return instantiate(_node("toy", tmp_path, benchmark__frames=7, **splits))


def test_the_toy_makes_itself_and_loads(toy: DataModule, tmp_path: Path) -> None:
    folder = toy.root
    assert folder.parent == tmp_path / "toy"
    assert toy.annotations("val") == folder / "val.json"
    assert toy.classes.names == ("striped disc", "checkered square", "dotted triangle", "ringed star")
    assert len(toy.train_dataset()) == 2 * 7 // 5
    assert len(toy.val_dataset()) == len(toy.test_dataset()) == 2 * 2
    batch = next(iter(toy.eval_loader("test")))
    assert batch.frames.shape == (2, 5, 3, 96, 96)  # of one video
    assert len(toy.train_loader()) == 1
    loader = toy.train_loader(frames=1)
    assert next(iter(loader)).frames.shape == (14, 1, 3, 96, 96)
    assert len(next(iter(toy.train_loader(frames=1, batch_size=2)))) == 2
    assert len(next(iter(toy.train_loader(frames=1, batch_size=5, share=(1, 2))))) == 2
    assert {info.video_id for batch in toy.eval_loader("test", share=(1, 2)) for info in batch.infos} == {2}


@pytest.mark.parametrize("name", ["coco_vid", "drone_vid", "mot_pets", "imagenet_vid"])
def test_data_of_ones_own(name: str, toy: DataModule, tmp_path: Path) -> None:
    """Each configuration reads any CocoVID folder, here the toy's."""
    node = _node(name, tmp_path, root=str(toy.root), loader__num_workers=0, probe_seconds=None)
    module = instantiate(node)
    assert isinstance(module.train_sampler, RandomWindows)
    batch = next(iter(module.train_loader()))
    assert batch.frames.shape[:3] == (1, 5, 3)
    assert min(batch.sizes[0]) >= 300
    short = node.eval_transforms[0].sizes
    assert next(iter(module.eval_loader("val"))).sizes.tolist() == [[short, short]]
    with pytest.raises(ValueError, match=r"this data set has no split 'test': data.test is null"):
        module.test_dataset()


def test_mistakes_in_keys_and_files(toy: DataModule, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"split 'vall' is unknown.*did you mean 'val'"):
        toy.annotations("vall")
    with pytest.raises(FileNotFoundError, match=r"data\.root=.*nowhere is not a folder"):
        _ = instantiate(_node("coco_vid", tmp_path, root=str(tmp_path / "nowhere"))).classes
    with pytest.raises(FileNotFoundError, match=r"trian\.json does not exist; did you mean train\.json"):
        _ = instantiate(_node("coco_vid", tmp_path, root=str(toy.root), train="trian.json")).classes
    document = json.loads((toy.root / "val.json").read_text())
    document["categories"][0]["name"] = "another"
    (toy.root / "other.json").write_text(json.dumps(document))
    module = instantiate(_node("coco_vid", tmp_path, root=str(toy.root), val="other.json", probe_seconds=None))
    with pytest.raises(ValueError, match=r"the splits of a data set must share their categories"):
        module.val_dataset()


def test_a_damaged_video_stops_the_run_before_it_starts(
    toy: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def probe(paths: list[Path], **settings: object) -> dict[Path, str]:
        asked.update(settings, paths=paths)
        return {paths[1]: f"{paths[1]} is damaged", paths[0]: "so is this"}

    monkeypatch.setattr("stdetr.data.module.probe_videos", probe)
    module = instantiate(_node("coco_vid", tmp_path, root=str(toy.root), probe_seconds=7))
    with pytest.raises(ValueError, match=r"train\.json: .*00001\.mp4 is damaged \(2 such files of 2\)"):
        module.train_dataset()
    assert asked["paths"] == [toy.root / f"videos/train/0000{number}.mp4" for number in (0, 1)]
    assert (asked["seconds"], asked["backend"]) == (7, "av")
    assert asked["record"] == tmp_path / "cache" / "probed.json"
