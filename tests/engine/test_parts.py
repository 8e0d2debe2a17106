"""Optimiser groups and schedule, averaged weights, checkpoint folders."""

from __future__ import annotations

import pytest
from torch import nn

from stdetr.engine.average import WeightAverage
from stdetr.engine.optim import Optimisation
from stdetr.structures import ClassNames

CLASSES = ClassNames((3, 7), ("cat", "dog"))


def test_schedule_by_hand() -> None:
    cosine = Optimisation(warmup=10, final_factor=0.0)
    assert cosine.factor(0, 110) == pytest.approx(1 / 11)
    assert cosine.factor(9, 110) == pytest.approx(10 / 11)
    assert cosine.factor(60, 110) == pytest.approx(0.5)
    assert cosine.factor(110, 110) == pytest.approx(0.0)
    step = Optimisation(schedule="step", drops=(0.5, 0.75), warmup=0)
    assert [step.factor(i, 100) for i in (0, 49, 50, 75)] == pytest.approx([1, 1, 0.1, 0.01])
    with pytest.raises(ValueError, match="cosin"):
        Optimisation(schedule="cosin")


def test_every_parameter_is_in_one_group() -> None:
    model = nn.ModuleDict(
        {"backbone": nn.Conv2d(3, 4, 3), "sampling_offsets": nn.Linear(4, 4), "head": nn.Linear(4, 2)}
    )
    model["head"].bias.requires_grad_(False)
    groups = {g["name"]: g for g in Optimisation(lr=1.0, backbone_factor=0.1, offset_factor=0.5).groups(model)}
    assert {name: g["lr"] for name, g in groups.items()} == {
        "backbone": 0.1, "backbone_no_decay": 0.1, "main": 1.0, "offsets": 0.5, "offsets_no_decay": 0.5,
    }  # fmt: skip
    assert groups["backbone_no_decay"]["weight_decay"] == 0
    counted = sum(p.numel() for g in groups.values() for p in g["params"])
    assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_average_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = WeightAverage(model, decay=0.5)
    nn.init.constant_(model.weight, 1.0)
    average.update(model)  # decay 0.1: 0.9 of the new value
    average.update(model)  # decay 2/11
    assert average.model.weight.item() == pytest.approx(1 - 0.1 * 2 / 11)
    with pytest.raises(ValueError, match="ema_decay"):
        WeightAverage(model, decay=1.5)
