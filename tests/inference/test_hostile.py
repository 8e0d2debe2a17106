"""Checkpoints from anywhere: none runs code, whatever lies in its configuration, weights and state."""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from stdetr import checkpoint
from stdetr.cli import main
from stdetr.config import instantiate, load_config, trusting
from stdetr.engine.meter import Meter
from stdetr.engine.state import RunState
from stdetr.inference.detector import Detector
from stdetr.inference.load import load_model

MARK = "it-ran"


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def trained(tmp_path: Path, write_run: Callable[..., Path]) -> Path:
    return write_run(tmp_path / "run")


def with_model(run: Path, node: dict[str, Any]) -> Path:
    cfg = OmegaConf.load(run / "config.yaml")
    cfg.model.detector = node
    OmegaConf.save(cfg, run / "config.yaml")
    return run


def nodes(mark: Path) -> list[dict[str, Any]]:
    """Targets that would leave ``mark`` or read a file, if they were called."""
    touch = ["touch", str(mark)]
    return [
        {"_target_": "os.system", "command": f"touch {mark}"},
        {"_target_": "subprocess.run", "args": touch},
        {"_target_": "builtins.eval", "source": f"open({str(mark)!r}, 'w')"},
        {"_target_": "builtins.open", "file": str(mark), "mode": "w"},
        {"_target_": "pathlib.Path.touch", "self": str(mark)},
        {"_target_": "torch.utils.collect_env.run", "command": touch},
        {"_target_": "torch.hub.load", "repo_or_dir": str(mark.parent), "model": "m", "source": "local"},
        {"_target_": "torch.load", "f": str(mark.parent / "evil.pkl"), "weights_only": False},
        {"_target_": "torch.save", "obj": 1, "f": str(mark)},
        {"_target_": "torchvision.datasets.utils.download_url", "url": f"file://{mark}", "root": str(mark.parent)},
        {"_target_": "torchvision.transforms._presets.torch.load", "f": str(mark.parent / "evil.pkl")},
        {"_target_": "torchvision.transforms.functional.to_tensor", "pic": 1},
        {"_target_": "timm.create_model", "model_name": "resnet18", "checkpoint_path": str(mark.parent / "evil.pkl")},
        {"_target_": "stdetr.checkpoint.shutil.copy", "src": __file__, "dst": str(mark)},
        {"_target_": "stdetr.checkpoint.Path.touch", "self": str(mark)},
        {"_target_": "stdetr.atomic.write_text", "path": str(mark), "text": "x"},
        {"_target_": "stdetr.cli.main", "arguments": ["doctor"]},
        {"_target_": "stdetr.atomic.os.system", "command": f"touch {mark}"},
        {"_target_": "hydra.utils.get_method", "path": "os.system"},
        {"_target_": "hydra.utils.instantiate", "config": {"target": "os.system", "command": f"touch {mark}"}},
    ]


@pytest.mark.parametrize("where", ["model", "inside the model", "partial", "transform"])
@pytest.mark.parametrize("number", range(len(nodes(Path("x")))))
def test_targets_of_others_are_not_called(number: int, where: str, trained: Path, tmp_path: Path) -> None:
    mark = tmp_path / MARK
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil(mark)))
    (tmp_path / "hubconf.py").write_text(f"open({str(mark)!r}, 'w')\ndef m(): pass\n")
    node = nodes(mark)[number]
    good = dict(OmegaConf.load(trained / "config.yaml").model.detector)
    if where == "transform":
        cfg = OmegaConf.load(trained / "config.yaml")
        cfg.data.eval_transforms = [node]
        OmegaConf.save(cfg, trained / "config.yaml")
    elif where == "inside the model":
        with_model(trained, {**good, "threshold": node})
    else:
        with_model(trained, {**node, "_partial_": True} if where == "partial" else node)
    with pytest.raises(
        ValueError, match=rf"_target_ {node['_target_']} is no (part|class) of stdetr.*add trust=\["
    ) as told:
        Detector.from_checkpoint(trained, device="cpu")
    assert "\n" not in str(told.value)
    assert not mark.exists()


def test_a_checkpoint_cannot_trust_itself(trained: Path, tmp_path: Path) -> None:
    cfg = OmegaConf.load(trained / "config.yaml")
    cfg.model.detector = {"_target_": "os.system", "command": f"touch {tmp_path / MARK}"}
    cfg.trust = ["os.system"]
    OmegaConf.save(cfg, trained / "config.yaml")
    with pytest.raises(ValueError, match=r"os\.system is no part of stdetr"):
        Detector.from_checkpoint(trained, device="cpu")
    assert not (tmp_path / MARK).exists()


def test_what_the_user_trusts_is_built_and_nothing_else(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    colour_detector: type,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = types.ModuleType("mylab")
    module.Model = type("Model", (colour_detector,), {})  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "mylab", module)
    with_model(trained, {"_target_": "mylab.Model", "threshold": 0.5})
    for trust in ((), ("mylab.Other",), ("mylab",), ("mylab.*",)):
        with pytest.raises(ValueError, match=r"mylab\.Model is no part of stdetr.*add trust=\[mylab\.Model\]"):
            Detector.from_checkpoint(trained, device="cpu", trust=trust)
    detector = Detector.from_checkpoint(trained, device="cpu", trust=["mylab.Model"])
    assert type(detector.model).__name__ == "Model"
    with pytest.raises(ValueError, match=r"mylab\.Model is no part"):
        Detector.from_checkpoint(trained, device="cpu")  # trusted for that call alone
    words = ["predict", f"checkpoint={trained}", f"source={trained}", f"output_dir={tmp_path / 'out'}"]
    assert main([*words, "trust=mylab.Other"]) == 2
    assert "mylab.Model is no part of stdetr" in capsys.readouterr().err
    assert main([*words, "trust=mylab.Other,mylab.Model"]) == 2
    assert "no part of stdetr" not in capsys.readouterr().err, "trusted; the source is no video"


def test_a_model_that_is_none(trained: Path) -> None:
    with_model(trained, {"_target_": "stdetr.data.sampling.CoveringWindows", "frames": 3})
    with pytest.raises(ValueError, match=r"model\.detector is a CoveringWindows, not a model"):
        load_model(trained)


def test_pretrained_weights_are_not_read_again(tmp_path: Path) -> None:
    """The file that training began with may be gone, or be a trap."""
    from stdetr.inference.load import _without_files

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(tmp_path / MARK)))
    node = OmegaConf.create(
        {"backbone": {"_target_": "stdetr.models.backbone.ResNet", "name": "resnet18", "out_strides": [8],
                      "weights": str(tmp_path / "evil.pth")}, "parts": [{"weights": "x"}]}
    )  # fmt: skip
    with pytest.raises(Exception, match=r"[Ww]eights"):  # torch's own refusal of pickles
        instantiate(node.backbone)
    _without_files(node)
    assert OmegaConf.to_container(node.parts) == [{"weights": None}]
    assert isinstance(instantiate(node.backbone), nn.Module)
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("name", ["optimizer.bin", "custom_checkpoint_1.pkl", "custom_checkpoint_2.pkl"])
def test_pickles_in_a_state_do_not_run(name: str, tmp_path: Path) -> None:
    """In the layout of earlier versions, the only one with pickles that are read at all."""
    from safetensors.torch import save_file

    mark, folder = tmp_path / MARK, tmp_path / "last"
    model = nn.Linear(1, 1)
    (folder / "state").mkdir(parents=True)
    for target in (folder, folder / "state"):
        save_file(model.state_dict(), target / "model.safetensors")
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save(optimizer.state_dict(), folder / "state" / "optimizer.bin")
    torch.save({"step": 1, "epoch": 0, "batch": 1}, folder / "state" / "custom_checkpoint_1.pkl")
    (folder / "meta.json").write_text(json.dumps({"step": 1, "class_ids": [1], "class_names": ["a"]}))
    state = RunState(model, optimizer, None, Meter())
    state.read(folder)
    assert state.progress.step == 1
    for file in ("random_states_0.pkl", "scheduler.bin", "custom_checkpoint_0.pkl"):  # never read
        (folder / "state" / file).write_bytes(pickle.dumps(Evil(mark)))
    state.read(folder)
    for content in (pickle.dumps(Evil(mark)), None):
        if content is None:
            torch.save({"step": Evil(mark)}, folder / "state" / name)
        else:
            (folder / "state" / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"state does not fit this run"):
            state.read(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x05N.", b"x" * 100, b"\xff" * 16, (10**12).to_bytes(8, "little") + b"{}"]
)
def test_weights_that_are_no_safetensors(content: bytes, trained: Path) -> None:
    for name in ("best", "last"):
        (trained / "checkpoints" / name / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"is not a readable safetensors file"):
        Detector.from_checkpoint(trained, device="cpu")


def pickled_with_protocol(mark: Path) -> bytes:
    return pickle.dumps(Evil(mark))


def test_weights_that_are_a_pickle(trained: Path, tmp_path: Path) -> None:
    for name in ("best", "last"):
        file = trained / "checkpoints" / name / "model.safetensors"
        file.write_bytes(pickled_with_protocol(tmp_path / MARK))
    with pytest.raises(ValueError, match=r"is not a readable safetensors file"):
        Detector.from_checkpoint(trained, device="cpu")
    assert not (tmp_path / MARK).exists()


BOMB = "a: &a [x,x]\n" + "\n".join(f"{b}: &{b} [*{a},*{a}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BOMB, r"it has aliases \(\*a\)"),
        ("a: " + "[" * 4000 + "]" * 4000, r"more than 50 levels"),
        ("a: " + "x" * 1_100_000, r"bytes are too many"),
        ("!!python/object/apply:os.system ['touch x']", r"not a (YAML file|configuration)"),
        ("a: !!python/name:os.system", r"not a (YAML file|configuration)"),
        ("a: ${b}\nb: ${a}", r"not a configuration"),
        ("a: ${nope}", r"not a configuration"),
        ("a: ${oc.env:NOT_THERE_AT_ALL}", r"not a configuration"),
        ("- 1\n- 2", r"a configuration is a mapping"),
        ("a: [", r"not a YAML file"),
        ("\x00", r"not a YAML file"),
        ("? [1, 2]\n: 3", r"not a"),
    ],
    ids=range(12),
)
def test_hostile_yaml(text: str, told: str, trained: Path) -> None:
    (trained / "config.yaml").write_text(text)
    for _ in range(2):
        with pytest.raises(ValueError, match=told) as error:
            load_config(trained)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 1000
    (trained / "config.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ValueError, match="not a YAML file"):
        Detector.from_checkpoint(trained, device="cpu")


@pytest.mark.parametrize(
    "meta",
    [b"", b"[]", b"{}", b"null", b"\xff", b'{"class_ids": 3, "class_names": 4}',
     b'{"class_ids": [1], "class_names": []}',
     b'{"class_ids": ["x"], "class_names": ["a"]}', b'{"class_ids": [1e999], "class_names": ["a"]}', b"[" * 100_000],
    ids=range(10),
)  # fmt: skip
def test_hostile_meta(meta: bytes, trained: Path) -> None:
    for name in ("best", "last"):
        (trained / "checkpoints" / name / "meta.json").write_bytes(meta)
    with pytest.raises(ValueError, match=r"meta\.json") as error:
        Detector.from_checkpoint(trained, device="cpu")
    assert "\n" not in str(error.value)


def test_checksums_name_no_file_outside(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    (folder / "state").mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"step": 1, "sha256": {"../../../etc/passwd": "0"}}))
    with pytest.raises(ValueError, match=r"cannot be resumed: meta\.json is damaged"):
        checkpoint.check_state(folder)


def test_an_evaluation_writes_where_its_user_says(
    tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data set of a checkpoint may be one that generates itself, below any folder."""
    cfg = OmegaConf.load(trained / "config.yaml")
    other = tmp_path / "somewhere"
    toy = OmegaConf.load(Path(__file__).resolve().parents[2] / "conf" / "data" / "toy.yaml")
    toy.root, toy.cache, toy.cache_dir, toy.seed = str(other), "disk", str(other / "cache"), 0
    cfg.data = {**OmegaConf.to_container(toy, resolve=False), "frames": 5}  # pyright: ignore[reportGeneralTypeIssues]
    cfg.model.causal, cfg.seed = False, 0
    OmegaConf.save(cfg, trained / "config.yaml")
    words = [f"checkpoint={trained}", f"output_dir={tmp_path / 'out'}", f"paths.data={tmp_path / 'own'}", "device=cpu"]
    with trusting(["colour_models.SamplingColourDetector"]):
        assert main(["eval", *words]) == 2
    assert "its data set is not on this machine; generate it: data=toy" in capsys.readouterr().err
    assert not other.exists()
