"""Every configuration that ships composes, resolves, and names objects that exist; every experiment instantiates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from stdetr.cli.run import place
from stdetr.cli.verbs import VERBS
from stdetr.config import compose, config_dir, instantiate
from stdetr.config.folder import list_options

CONF = config_dir()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("STDETR_CONF", "STDETR_DATA", "STDETR_OUTPUTS"):
        monkeypatch.delenv(name, raising=False)


def group_options() -> Iterator[tuple[str, str, str]]:
    """(verb, group as an override names it, option) for every group in a verb's defaults."""
    for verb in VERBS:
        if not (CONF / f"{verb}.yaml").is_file():
            continue
        for group in compose(verb, with_hydra=True).hydra.runtime.choices:
            name = str(group)
            if not name.startswith("hydra"):
                yield from ((verb, name, option) for option in list_options(CONF, name.split("@")[0]))


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_composes(verb: str) -> None:
    cfg = compose(verb)
    place(cfg, verb)
    OmegaConf.to_container(cfg, resolve=True)


def test_sweeps_have_their_groups() -> None:
    choices = compose("train", with_hydra=True).hydra.runtime.choices
    assert {"experiment", "debug", "launcher", "hparams_search"} <= set(choices)


@pytest.mark.parametrize(("verb", "group", "option"), list(group_options()))
def test_every_option_composes_and_resolves(verb: str, group: str, option: str) -> None:
    cfg = compose(verb, [f"{group}={option}"])
    place(cfg, verb)
    OmegaConf.to_container(cfg, resolve=True)


def targets() -> list[tuple[str, str]]:
    found = set()
    for path in sorted(CONF.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        found |= {(name, str(path.relative_to(CONF))) for name in re.findall(r"_target_: ([\w.]+)", text)}
    return sorted(found)


@pytest.mark.parametrize(("target", "file"), targets())
def test_every_target_exists(target: str, file: str) -> None:
    assert callable(get_object(target)), file


@pytest.mark.parametrize("file", sorted(str(path.relative_to(CONF)) for path in CONF.rglob("*.yaml")))
def test_every_file_is_commented_and_free_of_machine_paths(file: str) -> None:
    text = (CONF / file).read_text(encoding="utf-8")
    assert not re.search(r"(^|[\s:'\"])/(home|work|root|mnt|tmp)/", text)
    assert "\t" not in text
    assert OmegaConf.create(text) is not None


def nodes(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """The outermost nodes with a ``_target_``."""

    def walk(node: DictConfig, path: str) -> Iterator[tuple[str, DictConfig]]:
        if "_target_" in node:
            yield path, node
            return
        for key in node:
            child = OmegaConf.select(node, str(key), throw_on_missing=False)
            if isinstance(child, DictConfig):
                yield from walk(child, f"{path}.{key}".lstrip("."))

    yield from walk(cfg, "")


def experiments() -> list[list[str]]:
    found: list[list[str]] = [[]]
    found += [[f"experiment={name}"] for name in list_options(CONF, "experiment")]
    found += [[f"debug={name}"] for name in list_options(CONF, "debug")]
    return found


@pytest.mark.parametrize("overrides", experiments(), ids=lambda words: words[0] if words else "defaults")
def test_every_experiment_instantiates(overrides: list[str], tmp_path: Path) -> None:
    cfg = compose("train", [*overrides, "model.classes=3", f"output_dir={tmp_path / 'run'}"])
    built = {path: instantiate(node) for path, node in nodes(cfg)}
    assert {"data", "model.detector", "criterion", "optim", "trainer"} <= set(built)
    model = built["model.detector"]
    assert isinstance(model, torch.nn.Module)
    assert sum(parameter.numel() for parameter in model.parameters()) > 10_000


@pytest.mark.parametrize("model", list_options(CONF, "model"))
def test_every_model_instantiates(model: str) -> None:
    cfg = compose("train", [f"model={model}", "model.classes=3"])
    assert isinstance(instantiate(cfg.model.detector), torch.nn.Module)


@pytest.mark.parametrize("search", list_options(CONF, "hparams_search"))
def test_every_search_names_keys_that_exist(search: str) -> None:
    cfg = compose("train", [f"hparams_search={search}"], with_hydra=True)
    assert cfg.hydra.mode.name == "MULTIRUN"
    assert isinstance(cfg.hydra.sweeper.params, DictConfig)
    assert len(cfg.hydra.sweeper.params) > 0
    for key in cfg.hydra.sweeper.params:
        value = OmegaConf.select(cfg, str(key), default="no such key")
        assert value != "no such key", f"{search}: {key}"
        assert not isinstance(value, DictConfig | ListConfig)


@pytest.mark.parametrize("launcher", list_options(CONF, "launcher"))
def test_every_launcher_takes_its_settings(launcher: str) -> None:
    cfg = compose("train", [f"launcher={launcher}"], with_hydra=True)
    assert cfg.hydra.runtime.choices["hydra/launcher"] == launcher
    assert cfg.hydra.job.chdir is False
