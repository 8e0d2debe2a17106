"""A folder of configurations of its own, and verbs that record what they are given instead of training."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from stdetr.cli import verbs

CONF = {
    "train.yaml": """
# A verb for tests.
defaults:
  - paths: default
  - model: small
  - hydra: default
  - _self_
  - experiment: null
  - launcher: null
  - hparams_search: null
seed: 0 # of everything
output_dir: ${paths.run}
checkpoint: null
trainer:
  max_steps: 200
  lr: 0.001
  ema: true
  precision: auto
  betas: [0.9, 0.999]
  evaluators: [coco, tube]
  note: null
""",
    "predict.yaml": """
defaults:
  - paths: default
  - hydra: default
  - _self_
source: ???
output_dir: ${paths.run}
""",
    "doctor.yaml": "defaults:\n  - paths: default\n  - hydra: default\n  - _self_\n",
    "model/small.yaml": "width: 64\npoints: 4\nstride: 1\n",
    "model/large.yaml": "width: 256\npoints: 4\nstride: 1\n",
    "experiment/toy.yaml": "# @package _global_\ntrainer:\n  max_steps: 20\n",
    "experiment/mot_pets.yaml": "# @package _global_\ntrainer:\n  max_steps: 50\n",
}
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small ``conf/``: the real ``hydra``, ``paths``, ``launcher`` and ``hparams_search`` beside made-up groups."""
    folder = tmp_path / "conf"
    for name, text in CONF.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for group in ("hydra", "paths", "launcher", "hparams_search"):
        for source in (REPOSITORY / "conf" / group).glob("*.yaml"):
            target = folder / group / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setenv("STDETR_CONF", str(folder))
    monkeypatch.chdir(tmp_path)
    for name in ("STDETR_TRACEBACK", "STDETR_OUTPUTS", "STDETR_DATA", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return folder


class Recorder:
    """Stands for a verb's module: keeps each configuration and answers with what ``answer`` returns."""

    def __init__(self) -> None:
        self.configs: list[DictConfig] = []
        self.answer: Callable[[DictConfig], object] = lambda cfg: None

    def run(self, cfg: DictConfig) -> object:
        self.configs.append(cfg)
        return self.answer(cfg)


@pytest.fixture
def recorder(conf: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Every verb runs this recorder."""
    recorder = Recorder()
    module = types.ModuleType("verb_for_tests")
    module.run = recorder.run  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "verb_for_tests", module)
    for name, verb in list(verbs.VERBS.items()):
        monkeypatch.setitem(verbs.VERBS, name, verb._replace(module="verb_for_tests"))
    return recorder


@pytest.fixture
def write_metrics() -> Callable[[DictConfig, dict[str, float]], None]:
    """Writes ``eval/metrics.json`` into a run's folder as training does."""

    def write(cfg: DictConfig, metrics: dict[str, float]) -> None:
        path = Path(cfg.output_dir) / "eval" / "metrics.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(metrics), encoding="utf-8")

    return write
