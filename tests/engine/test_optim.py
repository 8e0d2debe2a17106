"""Parameter groups of the detectors that ship: what decays, and at which rate it learns."""

from __future__ import annotations

import pytest
from torch import nn

from stdetr.config import compose, instantiate
from stdetr.engine.optim import Optimisation

TABLES = ("offset_table", "logit_table", "level_embed", "frame_attention.bias")


@pytest.mark.parametrize("overrides", [["model=small"], ["model=clip", "model/backbone@model.detector.backbone=small"]])
def test_only_maps_and_convolutions_decay(overrides: list[str]) -> None:
    cfg = compose("train", [*overrides, "model.classes=3", "model.detector.queries.content=learned"])
    model = instantiate(cfg.model.detector)
    groups = Optimisation(lr=1.0, backbone_factor=0.1, offset_factor=0.3, weight_decay=0.5).groups(model)
    name_of = {id(p): name for name, p in model.named_parameters()}
    found = {name_of[id(p)]: group for group in groups for p in group["params"]}
    assert found.keys() == set(name_of.values())
    expected = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            expected.add(f"{name}.weight")
        elif isinstance(module, nn.MultiheadAttention):
            expected |= {f"{name}.in_proj_weight", f"{name}.out_proj.weight"}
    assert {name for name, group in found.items() if group["weight_decay"] == 0.5} == expected
    assert all(group["weight_decay"] in (0.0, 0.5) for group in groups)
    embeddings = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    assert {"denoising.labels.weight", "queries.embedding.weight"} == embeddings
    assert all(found[name]["weight_decay"] == 0.0 for name in embeddings)
    for name, group in found.items():
        if name.endswith(TABLES):
            assert group["weight_decay"] == 0.0, name
        slow = any(part in name for part in ("sampling_offsets", "velocity", "offset_table"))
        assert group["lr"] == (0.1 if name.startswith("backbone.") else 0.3 if slow else 1.0), name
