"""A trained run as an ONNX file: onnxruntime gives what the model gives, and mistakes are one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stdetr.config import compose
from stdetr.engine import export, tensorrt, train
from stdetr.inference.load import load_model


@pytest.fixture
def run(tiny) -> Path:
    cfg = tiny("run", "trainer.max_steps=1", "data.frames=2")
    train.run(cfg)
    return Path(cfg.output_dir)


def test_onnxruntime_agrees_with_the_model(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    out = tmp_path / "out"
    path = export.run(compose("export", [f"checkpoint={run}", f"output_dir={out}", "size=[64,96]"]))
    assert path == out / "model.onnx"
    model, _, classes = load_model(run, "cpu")
    frames = torch.rand(1, 2, 3, 64, 96, generator=torch.Generator().manual_seed(3))  # not what it was traced with
    with torch.no_grad():
        expected = model.eval()(frames)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = ["logits", "boxes", "presence", "frame_logits"]
    found = dict(zip(names, session.run(names, {"frames": frames.numpy()}), strict=True))
    assert found["logits"].shape == (1, 6, len(classes))
    for name in names:
        np.testing.assert_allclose(found[name], getattr(expected, name).numpy(), atol=1e-4)


def sampled(value, sizes, starts, locations, weights):
    """The plugin's definition, in float64: bilinear, zero outside, pixel = location * size - 0.5.  Returns N,Q,H,D."""
    out = np.zeros((value.shape[0], locations.shape[1], *value.shape[2:]))
    image, head = np.arange(value.shape[0])[:, None, None, None], np.arange(value.shape[2])[None, None, :, None]
    for level, ((height, width), start) in enumerate(zip(sizes, starts, strict=True)):
        x = locations[:, :, :, level, :, 0] * width - 0.5  # N,Q,H,K
        y = locations[:, :, :, level, :, 1] * height - 0.5
        for row in (np.floor(y), np.floor(y) + 1):
            for column in (np.floor(x), np.floor(x) + 1):
                share = (1 - abs(y - row)) * (1 - abs(x - column)) * weights[:, :, :, level]
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                token = start + np.where(inside, row * width + column, 0).astype(int)
                out += (np.where(inside, share, 0.0)[..., None] * value[image, token, head]).sum(3)
    return out.astype(value.dtype)


@pytest.mark.slow
def test_tensorrt_nodes_compute_what_the_model_computes(run: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    out = tmp_path / "out"
    settings = [f"checkpoint={run}", f"output_dir={out}", "size=[64,96]", "format=tensorrt"]
    path = export.run(compose("export", settings))
    assert path == out / "model_tensorrt.onnx"
    ran = []

    class MultiscaleDeformableAttnPlugin_TRT(OpRun):  # noqa: N801
        op_domain = tensorrt.DOMAIN

        def _run(self, value, sizes, starts, locations, weights, plugin_version=None, plugin_namespace=None):
            assert sizes.dtype == starts.dtype == np.int32 and sizes.prod(1).sum() == value.shape[1]
            assert plugin_version in ("2", b"2")
            ran.append(len(sizes))
            return (sampled(value, sizes, starts, locations, weights),)

    class GatherElements(OpRun):  # that of the evaluator stops at 64 entries of an axis
        def _run(self, data, indices, axis=0):
            return (np.take_along_axis(data, indices, axis),)

    model, _, _ = load_model(run, "cpu")
    frames = torch.rand(1, 2, 3, 64, 96, generator=torch.Generator().manual_seed(3))  # not what it was traced with
    with torch.no_grad():
        expected = model.eval()(frames)
    session = ReferenceEvaluator(onnx.load(str(path)), new_ops=[MultiscaleDeformableAttnPlugin_TRT, GatherElements])
    names = ["logits", "boxes", "presence", "frame_logits"]
    found = dict(zip(names, session.run(names, {"frames": frames.numpy()}), strict=True))
    assert ran and all(levels % 2 == 0 for levels in ran)  # the levels of two frames
    for name in names:
        np.testing.assert_allclose(found[name], getattr(expected, name).numpy(), atol=1e-4)


def test_frames_that_a_query_does_not_sample_get_no_weight() -> None:
    index = torch.tensor([[[2, 0], [1, -1]]], dtype=torch.int32)  # B,Q,F = 1,2,2; T = 3
    locations = torch.rand(1, 2, 1, 2, 1, 1, 2)
    weights = torch.tensor([[[0.25, 0.75]], [[0.5, 0.5]]]).reshape(1, 2, 1, 2, 1, 1)
    placed, shares = tensorrt.on_all_frames(locations, weights, index, 3)
    assert shares.flatten().tolist() == [0.75, 0, 0.25, 0, 0.5, 0]
    assert torch.equal(placed[0, 0, 0, 2], locations[0, 0, 0, 0]) and torch.equal(
        placed[0, 0, 0, 0], locations[0, 0, 0, 1]
    )
    assert torch.equal(placed[0, 1, 0, 1], locations[0, 1, 0, 0])
    with pytest.raises(ValueError, match="samples one frame twice"):
        tensorrt.on_all_frames(locations, weights, torch.ones_like(index), 3)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"format='onxx'; known: onnx, tensorrt"):
        export.run(compose("export", ["format=onxx", "checkpoint=a"]))
    with pytest.raises(ValueError, match=r"stdetr export checkpoint=RUN"):
        export.run(compose("export", []))
