"""Composition, instantiation and files of configurations."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from stdetr.config import compose, config_dir, instantiate, load_config, save_config, trusting
from stdetr.names import nearest_path

REPOSITORY = Path(__file__).resolve().parents[2]


class Box:
    """A target that keeps what it is given."""

    def __init__(self, a, b=2, *, inner=None):
        if a == "bad":
            raise ValueError("a=bad is not good")
        if a == "bug":
            raise TypeError("a bug inside")
        self.a, self.b, self.inner = a, b, inner


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name under which configurations reach ``Box``."""
    monkeypatch.setattr("stdetr.names.Box", Box, raising=False)
    monkeypatch.setattr(Box, "__module__", "stdetr.names")
    return "stdetr.names.Box"


def test_compose_accepts_overrides_and_leaves_hydra_out(conf: Path) -> None:
    cfg = compose("train", ["experiment=toy", "model=large", "seed=3"])
    assert (cfg.trainer.max_steps, cfg.model.width, cfg.seed) == (20, 256, 3)
    assert "hydra" not in cfg
    assert compose("train", with_hydra=True).hydra.runtime.choices.model == "small"


def test_compose_says_what_is_wrong_in_one_line(conf: Path) -> None:
    with pytest.raises(ValueError, match=r"^trainer.max_stpes=3: no such key; did you mean 'trainer.max_steps'\?$"):
        compose("train", ["trainer.max_stpes=3"])
    with pytest.raises(ValueError, match=r"train2.yaml does not exist"):
        compose("train2")


def test_compose_inside_a_composition_restores_hydra(conf: Path) -> None:
    from hydra.core.global_hydra import GlobalHydra

    compose("train")
    assert not GlobalHydra.instance().is_initialized()


def test_folder_of_the_checkout_and_of_the_variable(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config_dir() == conf
    monkeypatch.delenv("STDETR_CONF")
    assert config_dir() == REPOSITORY / "conf"
    monkeypatch.setenv("STDETR_CONF", "/nowhere/at/all")
    with pytest.raises(FileNotFoundError, match="STDETR_CONF=/nowhere/at/all"):
        config_dir()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("trainer.max_stpes", "trainer.max_steps"),
        ("trianer.max_steps", "trainer.max_steps"),
        ("max_steps", "trainer.max_steps"),
        ("trainer.zzz", None),
        ("sead", "seed"),
        ("", None),
    ],
)
def test_nearest_path(path: str, expected: str | None) -> None:
    assert nearest_path(path, ["seed", "trainer", "trainer.max_steps", "trainer.log_every"]) == expected


def test_keyword_arguments_are_handed_over_uncopied(box: str) -> None:
    parameters = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.1}]
    node = OmegaConf.create({"_target_": box, "a": "???", "b": [1, {"c": 2}], "inner": {"_target_": box, "a": 5}})
    made = instantiate(node, a=parameters)
    assert made.a is parameters
    assert made.b == [1, {"c": 2}]
    assert type(made.b) is list
    assert type(made.b[1]) is dict
    assert made.inner.a == 5
    assert "_partial_" not in node  # the node itself is left alone


def test_keyword_arguments_replace_the_nodes_own(box: str) -> None:
    assert instantiate(OmegaConf.create({"_target_": box, "a": 1, "b": 3}), b=None).b is None


def test_an_optimiser_takes_parameter_groups() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    node = OmegaConf.create({"_target_": "torch.optim.SGD", "lr": 0.5})
    with trusting(["torch.optim.SGD"]):
        optimiser = instantiate(node, params=[{"params": [weight], "lr": 0.25}])
    weight.grad = torch.ones(1)
    optimiser.step()
    assert weight.item() == 0.75


def test_partial_lists_and_nothing(box: str) -> None:
    half = instantiate(OmegaConf.create({"_target_": box, "_partial_": True, "a": 1}), b=7)
    assert isinstance(half, functools.partial)
    assert (half().a, half().b, half(b=8).b) == (1, 7, 8)
    made = instantiate(OmegaConf.create([{"_target_": box, "a": 1}, {"_target_": box, "a": 2}]))
    assert [item.a for item in made] == [1, 2]
    assert instantiate(None) is None


def test_interpolations_reach_outside_the_node(box: str) -> None:
    cfg = OmegaConf.create({"width": 12, "model": {"_target_": box, "a": "${width}"}})
    assert instantiate(cfg.model).a == 12


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"a": 1, "bb": 2}, r"model: .*unexpected keyword argument 'bb'.*did you mean 'b'\?"),
        ({}, r"model: .*missing a required argument: 'a'"),
        ({"a": 1, "inner": {"_target_": "BOX", "a": 1, "bb": 3}}, r"model.inner: .*'bb'.*did you mean 'b'\?"),
        ({"a": "bad"}, r"^a=bad is not good$"),
        ({"a": 1, "inner": {"_target_": "BOX", "a": "bad"}}, r"^a=bad is not good$"),
        ({"_target_": "stdetr.names.Bix", "a": 1}, r"model: .*stdetr.names.Bix"),
        ({"a": 1, "inner": {"_target_": "stdetr.nowhere.Box"}}, r"model.inner: .*stdetr.nowhere"),
        ({"_target_": "os.system", "command": "true"}, r"model: .*os.system"),
    ],
)
def test_mistakes_in_a_node(box: str, node: dict, message: str) -> None:
    if node.get("inner", {}).get("_target_") == "BOX":
        node = {**node, "inner": {**node["inner"], "_target_": box}}
    cfg = OmegaConf.create({"model": {"_target_": box, **node}})
    with pytest.raises(ValueError, match=message) as caught:
        instantiate(cfg.model)
    assert "\n" not in str(caught.value)


def test_a_bug_inside_a_target_stays_one(box: str) -> None:
    with pytest.raises(TypeError, match="a bug inside"):
        instantiate(OmegaConf.create({"_target_": box, "a": "bug"}))
    with pytest.raises(TypeError, match="a bug inside"):
        instantiate(OmegaConf.create({"_target_": box, "a": 1, "inner": {"_target_": box, "a": "bug"}}))


def test_saved_configuration_is_resolved_and_loads_again(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"seed": 3, "data": {"seed": "${seed}", "root": "???"}, "none": None, "lr": 1e-4})
    assert save_config(cfg, tmp_path / "run") == tmp_path / "run" / "config.yaml"
    assert "${" not in (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    loaded = load_config(tmp_path / "run")
    assert loaded.data.seed == 3
    assert loaded.lr == 1e-4
    assert OmegaConf.is_missing(loaded.data, "root")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    with pytest.raises(Exception, match="sed"):
        _ = loaded.sed


@pytest.mark.parametrize(("text", "message"), [("a: [1\n", "not a YAML file"), ("- 1\n", "mapping"), ("\x00", "YAML")])
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_config(tmp_path / "nowhere.yaml")
