"""``stdetr export``: a checkpoint as an ONNX file, checked against the original model.

``format=onnx`` uses standard operators only and is compared in onnxruntime.  ``format=tensorrt`` holds the deformable
attention as nodes of TensorRT's plugin; the layout is compared in PyTorch and the nodes are counted, but nothing here
runs TensorRT.

Shape legend: B clips, T frames, h x w pixels, Q tubes, N classes.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from stdetr import config as configs
from stdetr.engine.tensorrt import check_nodes, plugin_nodes
from stdetr.inference.load import load_model
from stdetr.ops import use_backend

FORMATS = ("onnx", "tensorrt")


class PlainOutputs(nn.Module):
    """The model with tensor outputs: frames B,T,3,h,w -> logits B,Q,N; boxes B,Q,T,4 cxcywh in [0,1]; presence B,Q,T;
    frame_logits B,Q,T,N."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        output = self.model(frames)
        return output.logits, output.boxes, output.presence, output.frame_logits


def run(cfg: DictConfig) -> Path:
    """Write ``<output_dir>/model.onnx`` (``model_tensorrt.onnx``) for clips of one fixed size, and compare it."""
    if cfg.format not in FORMATS:
        raise ValueError(f"format={cfg.format!r}; known: {', '.join(FORMATS)}")
    if cfg.checkpoint is None:
        raise ValueError("checkpoint is not given: stdetr export checkpoint=RUN")
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError("export needs the extra `export`: pip install 'stdetr[export]'") from error
    with configs.trusting(cfg.trust):
        model, trained, classes = load_model(cfg.checkpoint, "cpu")
    frames = int(cfg.frames or trained.data.frames)
    height, width = (int(side) for side in cfg.size)
    example = torch.randn(1, frames, 3, height, width, generator=torch.Generator().manual_seed(0))
    plain = PlainOutputs(model).eval()
    tensorrt = cfg.format == "tensorrt"
    path = Path(cfg.output_dir) / ("model_tensorrt.onnx" if tensorrt else "model.onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ["logits", "boxes", "presence", "frame_logits"]
    with use_backend("reference"), torch.no_grad():
        expected = plain(example)
        with plugin_nodes() if tensorrt else nullcontext([]) as calls:
            outputs = plain(example) if tensorrt else ()
            if tensorrt and not calls:
                raise ValueError("format=tensorrt: this model has no deformable attention; export it with format=onnx")
            try:
                torch.onnx.export(
                    plain, (example,), str(path), input_names=["frames"], output_names=names,
                    opset_version=int(cfg.opset), dynamo=True, external_data=False, verbose=False,
                )  # fmt: skip
            except torch.onnx.OnnxExporterError as error:
                causes = [line for line in str(error.__cause__ or error).splitlines() if line.strip()]
                raise ValueError(
                    f"torch.onnx cannot translate this model with torch {torch.__version__}: {causes[0][:300]}; "
                    "nothing is written"
                ) from None
    if tensorrt:
        what = f"the plugin's layout in PyTorch ({check_nodes(path, calls)} nodes, not run in TensorRT)"
    else:
        what = "onnxruntime"
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs = session.run(names, {"frames": example.numpy()})
    worst = max(float(np.abs(np.asarray(f) - e.numpy()).max()) for f, e in zip(outputs, expected, strict=True))
    if worst > float(cfg.tolerance):
        raise RuntimeError(f"{path}: {what} differs from the model by {worst:.2e}, more than {cfg.tolerance}")
    print(
        f"wrote {path}: frames 1,{frames},3,{height},{width} -> {', '.join(names)}; {len(classes)} classes; "
        f"{what} differs by at most {worst:.1e}"
    )
    return path
