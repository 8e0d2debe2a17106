"""Every precision trains every term of the criterion, and the losses are float32 whatever the model computes in."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from stdetr.config import compose, instantiate
from stdetr.losses.dense import DenseLoss
from stdetr.losses.packed import PackedTargets
from stdetr.models.queries import DenseOutput
from stdetr.structures import ClipTargets

PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]


def _targets() -> tuple[ClipTargets, ...]:
    """Two tracks, of which one is absent on a frame and one has an ignored frame, and a clip with nothing in it."""
    boxes = torch.tensor([[[0.3, 0.3, 0.3, 0.3]] * 3, [[0.7, 0.6, 0.3, 0.2]] * 3])
    present = torch.tensor([[True, True, True], [False, True, True]])
    ignored = torch.tensor([[False, False, True], [False, False, False]])
    some = ClipTargets(torch.tensor([0, 2]), boxes, present, ignored, torch.arange(2))
    return some, ClipTargets.empty(3)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=["fp32", "bf16", "fp16"])
def test_a_step_of_every_term(dtype: torch.dtype, tmp_path: Path) -> None:
    changes = ["model.width=32", "model.queries=6", "model.feed_forward=32", "model.detector.neck.norm_groups=4"]
    cfg = compose("train", ["experiment=toy", "model.classes=3", "model.encoder_layers=1", *changes])
    torch.manual_seed(0)
    model, criterion = instantiate(cfg.model.detector).train(), instantiate(cfg.criterion)
    optimizer = instantiate(cfg.optim).optimizer(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen: list[torch.dtype] = []
    model.queries.class_head.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    frames, targets = torch.randn(2, 3, 3, 64, 64), _targets()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        output = model(frames, targets=targets)
    assert seen == [dtype], "autocast was on"
    total, terms = criterion(output, targets)
    tube = {"class", "box", "giou", "presence", "frame_class"}
    wanted = {prefix + name + layer for prefix in ("", "dn_") for name in tube for layer in ("", "_0")}
    assert terms.keys() == wanted | {"dense_class", "dense_box", "dense_giou"}
    for name, value in terms.items():
        assert value.dtype == torch.float32, name
        assert 0 < value.item() < math.inf, name
    scale = 2.0**10 if dtype == torch.float16 else 1.0
    (total * scale).backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= scale
            assert parameter.grad.dtype == torch.float32
            assert torch.isfinite(parameter.grad).all()
    optimizer.step()
    moved = [name for name, p in model.named_parameters() if not torch.equal(before[name], p)]
    for part in ("backbone", "neck", "encoder", "queries", "decoder", "class_heads", "presence_head", "denoising"):
        assert any(name.startswith(part) for name in moved), part


@pytest.mark.parametrize("dtype", PRECISIONS[1:], ids=["bf16", "fp16"])
def test_the_dense_loss_is_computed_in_float32(dtype: torch.dtype) -> None:
    """It equals the loss of the same numbers given as float32, to the last bit."""
    torch.manual_seed(0)
    axis = (torch.arange(4) + 0.5) / 4
    centres = torch.stack((axis.repeat(4), axis.repeat_interleave(4)), -1)[None].expand(2, -1, -1)
    low = DenseOutput(torch.randn(2, 3, 16, 3).to(dtype), torch.rand(2, 3, 16, 4).mul(0.5).add(0.2).to(dtype))
    high = DenseOutput(low.logits.float(), low.boxes.float())
    valid, mask = torch.ones(2, 16, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    packed = PackedTargets.pack(_targets())
    a, b = (DenseLoss()(dense, valid, centres, mask, packed) for dense in (low, high))
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert {value.dtype for value in a.values()} == {torch.float32}
