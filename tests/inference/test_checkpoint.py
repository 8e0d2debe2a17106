"""Run folder, checkpoint folder or weights file in; a model, or one line that says what is wrong, out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stdetr.checkpoint import find_checkpoint, load_weights
from stdetr.inference.load import load_model


@pytest.fixture
def run(tmp_path: Path, write_run) -> Path:
    return write_run(tmp_path / "run")


@pytest.mark.parametrize("where", ["", "checkpoints/best", "checkpoints/best/model.safetensors", "checkpoints/last"])
def test_every_form_of_path_loads(run: Path, where: str):
    model, cfg, classes = load_model(run / where)
    assert float(model.threshold) == 0.25  # pyright: ignore[reportArgumentType]
    assert not model.training
    assert cfg.data.frames == 5
    assert (classes.ids, classes.names) == ((7, 3, 5), ("red", "green", "blue"))


def test_best_comes_before_last(run: Path):
    assert find_checkpoint(run).weights == run / "checkpoints/best/model.safetensors"
    shutil.rmtree(run / "checkpoints/best")
    assert find_checkpoint(run).weights == run / "checkpoints/last/model.safetensors"


def fails(path: Path, kind: type[Exception], *parts: str) -> None:
    with pytest.raises(kind) as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_missing_files_are_named(run: Path, tmp_path: Path):
    fails(tmp_path / "rum", FileNotFoundError, "does not exist", f"did you mean {run}?")
    fails(tmp_path / "no" / "such", FileNotFoundError, f"nor does {tmp_path / 'no'}")
    (tmp_path / "empty").mkdir()
    fails(tmp_path / "empty", FileNotFoundError, "holds no model.safetensors")
    fails(run / "config.yaml", ValueError, "is not a .safetensors file")
    (run / "checkpoints/best/meta.json").unlink()
    fails(run, FileNotFoundError, "meta.json is missing")
    (run / "config.yaml").unlink()
    fails(run / "checkpoints/last", FileNotFoundError, "no config.yaml in")


def test_damaged_files_are_named(run: Path):
    (run / "checkpoints/best/meta.json").write_text('{"class_ids": [1]}')
    fails(run, ValueError, "meta.json does not name the classes", "class_names")
    (run / "checkpoints/best/meta.json").write_text("{")
    fails(run, ValueError, "meta.json is damaged", "line 1")
    weights = run / "checkpoints/best/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    fails(run, ValueError, "not a readable safetensors file")


def test_weights_of_another_model_are_listed(run: Path):
    weights = run / "checkpoints/best/model.safetensors"
    save_file({f"layer.{i}": torch.zeros(1) for i in range(6)}, weights)
    fails(run, ValueError, "1 missing (threshold)", "6 unknown (layer.0, layer.1, layer.2, layer.3, and 2 more)")
    save_file({"threshold": torch.zeros(3)}, weights)
    fails(run, ValueError, "1 other shape (threshold (3,), model ())")


def test_configuration_without_a_model(run: Path):
    (run / "config.yaml").write_text("data: {frames: 5}\n")
    fails(run, ValueError, "key model.detector is missing")


def test_starting_weights_take_over_what_fits(tmp_path: Path):
    source = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 7))
    save_file(dict(source.state_dict()), tmp_path / "model.safetensors")
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    head = model[1].weight.detach().clone()
    line = load_weights(model, tmp_path / "model.safetensors")
    assert torch.equal(model[0].weight, source[0].weight)
    assert torch.equal(model[1].weight, head)
    assert re.search(r"2 of 4 tensors taken over; left as they were: 2 other shape \(1.bias \(7,\), model \(2,\)", line)
    with pytest.raises(ValueError, match=r"no tensor of .* fits the model"):
        load_weights(nn.LayerNorm(9), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"init_from=.* does not exist"):
        load_weights(model, tmp_path / "nowhere")


def test_meta_is_json_with_integers(run: Path):
    meta = json.loads((run / "checkpoints/best/meta.json").read_text())
    meta["class_ids"] = ["one", "two", "three"]
    (run / "checkpoints/best/meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="invalid literal"):
        load_model(run)


def test_an_older_checkpoint_with_tensors_that_nothing_read_loads(run: Path):
    file = run / "checkpoints/best/model.safetensors"
    save_file({**load_file(file), "neck.level_embed": torch.zeros(2, 4)}, file)
    model, _, _ = load_model(run)
    assert "neck.level_embed" not in model.state_dict()
