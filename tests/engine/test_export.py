"""A trained run as an ONNX file: onnxruntime gives what the model gives, and mistakes are one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stdetr.config import compose
from stdetr.engine import export, train
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


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"format='onxx'; known: onnx"):
        export.run(compose("export", ["format=onxx", "checkpoint=a"]))
    with pytest.raises(ValueError, match=r"stdetr export checkpoint=RUN"):
        export.run(compose("export", []))
