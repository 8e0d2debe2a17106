"""Every block of docs/ops.md runs, and what it puts into other codebases computes what stood there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.functional import grid_sample

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ops.md"


def sections():
    """Title of each section that has code, and its blocks."""
    found = {}
    for part in re.split(r"^#+ (?=\S)", PAGE.read_text(encoding="utf-8"), flags=re.M)[1:]:
        title, _, body = part.partition("\n")
        if blocks := re.findall(r"^```python\n(.*?)^```", body, flags=re.M | re.S):
            found[title] = blocks
    return found


BLOCKS = sections()


def run(title, **names):
    for block in BLOCKS[title]:
        exec(compile(block, f"docs/ops.md: {title}", "exec"), names)
    return names


@pytest.fixture
def stand_in(monkeypatch):
    """An empty module under the name of one that is not installed; its parents too."""

    def make(name):
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            path = ".".join(parts[:length])
            monkeypatch.setitem(sys.modules, path, ModuleType(path))
            if length > 1:
                setattr(sys.modules[".".join(parts[: length - 1])], parts[length - 1], sys.modules[path])
        return sys.modules[name]

    return make


def sampled(value, shapes, locations, weights):
    """Value B,S,H,D, locations B,Q,H,L,K,2, weights B,Q,H,L,K through grid_sample; B,Q,H*D."""
    total, start = 0, 0
    for level, (height, width) in enumerate(shapes):
        image = value[:, start : start + height * width].permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (height, width))
        start += height * width
        grid = locations[:, :, :, level].transpose(1, 2).flatten(0, 1) * 2 - 1
        samples = grid_sample(image, grid, align_corners=False)  # BH,D,Q,K
        total = total + (samples * weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return total.unflatten(0, (value.shape[0], -1)).permute(0, 3, 1, 2).flatten(2)


@pytest.fixture
def made(case):
    drawn = case(T=1, D=8, dtype=torch.float32)
    tensors = (drawn.value[:, 0], drawn.locations[:, :, :, 0], drawn.weights[:, :, :, 0])
    return *tensors, drawn.shapes, sampled(tensors[0], drawn.shapes, *tensors[1:])


def test_no_block_is_left_out():
    tested = {"Using the operator in another codebase", "Frames, and fewer steps", "transformers"}
    assert set(BLOCKS) == tested | {"mmcv and detrex", "RF-DETR"}
    assert sum(map(len, BLOCKS.values())) == PAGE.read_text(encoding="utf-8").count("```") // 2


def test_first_use():
    names = run("Using the operator in another codebase")
    wanted = sampled(names["value"], names["shapes"], names["locations"], names["weights"])
    torch.testing.assert_close(names["out"], wanted, rtol=1e-4, atol=1e-5)


def test_frames():
    names = run("Frames, and fewer steps")
    assert names["out"].shape == (1, 100, 256)
    # The last frame is masked: its values do not matter.
    value = names["value"].clone()
    value[:, 4] = 1e3
    arguments = (names["shapes"], names["reference"], names["offsets"], names["logits"], names["frames"])
    assert torch.equal(names["st_deform_attn_fused"](value, *arguments), names["out"])


@pytest.mark.peers
def test_transformers():
    pytest.importorskip("transformers", reason="needs the extra peers")
    assert run("transformers")["output"].pred_boxes.shape == (1, 300, 4)


def test_mmcv(stand_in, made):
    layer = stand_in("mmcv.ops.multi_scale_deform_attn")
    run("mmcv and detrex")
    value, locations, weights, shapes, wanted = made
    table = torch.tensor(shapes)
    starts = torch.tensor([0, *(h * w for h, w in shapes)]).cumsum(0)[:-1]
    on_gpu = layer.MultiScaleDeformableAttnFunction.apply(value, table, starts, locations, weights, 64)
    on_cpu = layer.multi_scale_deformable_attn_pytorch(value, table, locations, weights)
    torch.testing.assert_close(on_gpu, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(on_gpu, on_cpu)


def test_rf_detr(stand_in, made):
    layer = stand_in("rfdetr.models.ops.modules.ms_deform_attn")
    run("RF-DETR")
    value, locations, weights, shapes, wanted = made
    arguments = (value.permute(0, 2, 3, 1).contiguous(), torch.tensor(shapes), locations, weights.flatten(3))
    older = layer.ms_deform_attn_core_pytorch(*arguments)
    newer = layer.ms_deform_attn_core_pytorch(*arguments, value_spatial_shapes_hw=shapes)
    torch.testing.assert_close(older, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(older, newer)
