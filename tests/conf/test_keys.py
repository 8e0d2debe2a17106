"""Every key of a configuration does something.

Two checks.  In the sources: a key of a node with ``_target_`` is a parameter that the target reads, or keeps as an
attribute that something reads; any other key is used by an interpolation or by name.  By running: each key of the model
and the criterion, set to another value, changes what they compute.
"""

from __future__ import annotations

import ast
import copy
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

import stdetr
from stdetr.config import compose, config_dir, instantiate
from stdetr.config.folder import list_options
from stdetr.losses.packed import PackedTargets
from stdetr.structures import ClipTargets

CONF, SOURCES = config_dir(), Path(stdetr.__file__).parent
GROUPS = ("model", "criterion", "optim", "trainer", "data")


@cache
def loaded_attributes() -> frozenset[str]:
    """Names of all attributes that the sources read."""
    found: set[str] = set()
    for file in SOURCES.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)}
    return frozenset(found)


def reads(target: Any, name: str) -> bool:
    """Whether ``target`` uses its parameter ``name``, beyond keeping it in an attribute that nothing reads."""
    if "__init__" not in vars(target) or getattr(target, "__dataclass_fields__", None):
        return name in loaded_attributes()
    tree = ast.parse(textwrap.dedent(inspect.getsource(target.__init__)))
    attributes, kept = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            pairs = [(node.targets[0], node.value)]
            if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(node.targets[0].elts, node.value.elts, strict=True))
            for to, value in pairs:
                if isinstance(to, ast.Attribute) and isinstance(value, ast.Name) and value.id == name:
                    attributes.add(to.attr)
                    kept.add(value)
    used = any(isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load) and n.id == name and n not in kept
               for n in ast.walk(tree))  # fmt: skip
    return used or bool(attributes & loaded_attributes())


def nodes(node: Any, path: str) -> Iterator[tuple[str, DictConfig]]:
    if isinstance(node, DictConfig):
        yield path, node
        for key in node:
            if not OmegaConf.is_interpolation(node, str(key)) and not OmegaConf.is_missing(node, str(key)):
                yield from nodes(node[key], f"{path}.{key}")
    elif OmegaConf.is_list(node):
        for i, item in enumerate(node):
            yield from nodes(item, f"{path}[{i}]")


def options() -> list[tuple[str, str]]:
    found = [(group, option) for group in GROUPS for option in list_options(CONF, group)]
    return found + [("model/backbone@model.detector.backbone", name) for name in list_options(CONF, "model/backbone")]


@pytest.mark.parametrize(("group", "option"), options())
def test_something_reads_every_key(group: str, option: str) -> None:
    cfg = compose("train", [f"{group}={option}"])
    name = group.split("/")[0]
    configs = "\n".join(file.read_text(encoding="utf-8") for file in CONF.rglob("*.yaml"))
    sources = "\n".join(file.read_text(encoding="utf-8") for file in SOURCES.rglob("*.py"))
    idle = []
    for path, node in nodes(cfg[name], name):
        target = get_object(node["_target_"]) if "_target_" in node else None
        for key in map(str, node):
            if key in ("_target_", "_partial_", "_convert_", "_recursive_"):
                continue
            if target is None:
                key = f"{path}.{key}"
                if isinstance(OmegaConf.select(cfg, key), DictConfig):
                    continue
                if not re.search(rf"\$\{{{re.escape(key)}\}}|\b{re.escape(key)}\b", configs + sources):
                    idle.append(key)
            elif target.__module__.startswith("stdetr") and not reads(target, key):
                idle.append(f"{path}.{key}")
    assert idle == []


def test_a_parameter_that_nothing_reads_is_found() -> None:
    class Example:
        def __init__(self, used: int, kept: int, dropped: int, stored: int) -> None:
            self.pad_to, self.nobody_reads_this = kept, stored
            self.sum = used + 1

    # pad_to is an attribute that other code reads.
    assert [reads(Example, name) for name in ("used", "kept", "dropped", "stored")] == [True, True, False, False]


# Another value for each key of model=small, with what it needs beside it.
MODEL: dict[str, tuple[Any, ...]] = {
    "width": (32,),
    "heads": (2,),
    "levels": (3,),
    "points": (2,),
    "queries": (5,),
    "encoder_layers": (2,),
    "decoder_layers": (1,),
    "feed_forward": (32,),
    "dropout": (0.5,),
    "window": (2,),
    "decoder_window": (1,),
    "causal": (True,),
    "frame_weights": ("content",),
    "classes": (2,),
    "detector.neck.norm_groups": (4,),
    "detector.neck.top_down": (False,),
    "detector.queries.candidates": (7,),
    "detector.queries.pool": (24, "+model.detector.queries.overlap=0.05"),
    "detector.queries.content": ("learned",),
    "detector.queries.anchor": (0.4,),
    "detector.queries.births": (2, "model.causal=true"),
    "detector.queries.linker.seeds": (20,),
    "detector.queries.linker.overlap": (0.05,),
    "detector.decoder.look_forward_twice": (True,),
    "detector.denoising.queries": (4,),
    "detector.backbone.widths": ("[16,32,32,96]",),
    "detector.backbone.out_strides": ("[4,16]",),
    "detector.backbone.blocks": (2,),
    "detector.backbone.norm": ("group",),
}
CRITERION: dict[str, Any] = {
    "matcher.cost_class": 1.0,
    "matcher.cost_box": 1.0,
    "matcher.cost_giou": 1.0,
    "dense.positives": 2,
    "dense": None,
    "classification": "focal",
    "quality": False,
    "auxiliary": False,
    **{f"weight_{name}": 0.5 for name in ("class", "box", "giou", "presence", "frame_class", "dense", "denoising")},
}
BASE = ["experiment=toy", "model.classes=3", "model.encoder_layers=1", "model.window=1"]


def leaves(node: DictConfig, path: str = "") -> Iterator[str]:
    """Keys with a value of their own; those that another key fills in are that key's."""
    for key in map(str, node):
        if key.startswith("_") or OmegaConf.is_interpolation(node, key):
            continue
        if isinstance(node[key], DictConfig):
            yield from leaves(node[key], f"{path}{key}.")
        else:
            yield path + key


def _targets() -> list[ClipTargets]:
    boxes = torch.tensor([[[0.3, 0.3, 0.3, 0.3]] * 4, [[0.7, 0.6, 0.3, 0.2]] * 4])
    present = torch.ones(2, 4, dtype=torch.bool)
    return [ClipTargets(torch.tensor([0, 1]), boxes, present, ~present, torch.arange(2))]


def _train(model: torch.nn.Module) -> tuple[Any, list[torch.Tensor]]:
    """The output on a fixed clip, and every number that training sees of it, gradients of weights included."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():  # nothing stays at an initial zero
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    torch.manual_seed(2)
    frames = torch.randn(1, 4, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    output = model.train()(frames, targets=_targets())
    training = output.losses_input
    numbers = [x for p in (*training.layers, *training.denoising) for x in (p.logits, p.boxes, p.presence)]
    sum(x.sum() for x in numbers).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return output, [*(x.detach() for x in numbers), *grads]


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@cache
def _model(*overrides: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return _train(instantiate(compose("train", [*BASE, *overrides]).model.detector))[1]


def test_the_table_has_every_key_of_the_model() -> None:
    assert set(leaves(compose("train", BASE).model)) == set(MODEL)
    assert {*leaves(compose("train", BASE).criterion), "dense"} == set(CRITERION)


@pytest.mark.parametrize("key", MODEL)
def test_every_key_of_the_model_changes_what_it_computes(key: str) -> None:
    value, *beside = MODEL[key]
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert _same(_model.__wrapped__(*beside), _model(*beside)), "the same twice"
        assert not _same(_model(f"model.{key}={value}", *beside), _model(*beside))
    finally:
        torch.use_deterministic_algorithms(before)


def test_every_key_of_the_criterion_changes_the_loss() -> None:
    torch.manual_seed(0)
    cfg = compose("train", [*BASE, "model.queries=20"])
    output, _ = _train(instantiate(cfg.model.detector))

    def compute(key: str | None = None, value: Any = None) -> list[torch.Tensor]:
        changed = copy.deepcopy(cfg)
        if key is not None:
            OmegaConf.update(changed, f"criterion.{key}", value)
        criterion = instantiate(changed.criterion)
        layer = output.losses_input.layers[0]
        cost = criterion.matcher.cost(layer.logits, layer.boxes, PackedTargets.pack(_targets()))
        return [cost, *criterion(output, _targets())[1].values()]

    base = compute()
    assert _same(base, compute())
    for key, value in CRITERION.items():
        assert not _same(base, compute(key, value)), key
