"""The operator as nodes of TensorRT's plugin ``MultiscaleDeformableAttnPlugin_TRT`` in an ONNX file.

Shape legend
    B clips    T frames of a clip    S tokens of a frame    H heads    D channels per head
    Q queries  F sampled frames    L levels    K points per head, level and frame

TensorRT 10.14 to 11.1 computes deformable attention that is written with grid samples wrongly and says nothing
(github.com/NVIDIA/TensorRT/issues/4813); its plugin is right.  The plugin knows levels and no frames, so the frames of
a clip become levels, T x L of them, and frames that a query does not sample get weight 0.  Inputs and outputs of the
plugin: plugin/multiscaleDeformableAttnPlugin/README.md in NVIDIA/TensorRT.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stdetr.ops import reference

NODE = "MultiscaleDeformableAttnPlugin_TRT"
DOMAIN = "trt.plugins"
# Version 2 came with TensorRT 10.11, where version 1 was deprecated.
ATTRIBUTES: dict[str, Any] = {"plugin_version": "2", "plugin_namespace": ""}


def on_all_frames(locations: Tensor, weights: Tensor, frame_index: Tensor | None, clip: int) -> tuple[Tensor, Tensor]:
    """Locations B,Q,H,T,L,K,2 and weights B,Q,H,T,L,K of every frame of the clip, from those of the F sampled frames.

    A frame that ``frame_index`` (B,Q,F) does not name has weight 0.  Raises ValueError where it names a frame twice.
    """
    if frame_index is None:
        return locations, weights
    named = frame_index[:, :, None] == torch.arange(clip, device=frame_index.device)[:, None]  # B,Q,T,F
    if not torch.onnx.is_in_onnx_export() and (named.sum(-1) > 1).any():
        raise ValueError("format=tensorrt: a query samples one frame twice, which the plugin's layout has no place for")
    slot, found = named.long().argmax(-1), named.any(-1)
    slot, found = slot[:, :, None, :, None, None], found[:, :, None, :, None, None]
    size = (*weights.shape[:3], clip, *weights.shape[4:])
    weights = weights.gather(3, slot.expand(size)) * found
    return locations.gather(3, slot[..., None].expand(*size, 2)), weights


@contextmanager
def plugin_nodes() -> Iterator[list[int]]:
    """In the block, exports of the operator's reference become plugin nodes; yields the number of levels of each call.

    Outside an export the same layout is computed in PyTorch, so that it can be compared.
    """
    original = reference.st_deform_attn_reference
    calls: list[int] = []

    def attention(
        value: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        frame_index: Tensor | None,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        batch, clip, _, heads, channels = value.shape
        locations, weights = on_all_frames(sampling_locations, attention_weights, frame_index, clip)
        value, locations, weights = value.flatten(1, 2), locations.flatten(3, 4), weights.flatten(3, 4)
        shapes = list(spatial_shapes) * clip
        if not torch.onnx.is_in_onnx_export():
            calls.append(len(shapes))
            return original(value[:, None], locations[:, :, :, None], weights[:, :, :, None], None, shapes)
        sizes = torch.tensor(shapes, dtype=torch.int32, device=value.device)
        ends = sizes.prod(1).cumsum(0)
        starts = (ends - sizes.prod(1)).to(torch.int32)
        out = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{NODE}",
            (value, sizes, starts, locations.to(value.dtype), weights.to(value.dtype)),
            ATTRIBUTES,
            dtype=value.dtype,
            shape=(batch, locations.shape[1], heads, channels),
            version=1,
        )
        return out.flatten(2)

    reference.st_deform_attn_reference = attention
    try:
        yield calls
    finally:
        reference.st_deform_attn_reference = original


def check_nodes(path: Path, calls: Sequence[int]) -> int:
    """The number of plugin nodes in the file.

    RuntimeError unless there is one for each of ``calls`` and no grid sample.
    """
    import onnx

    nodes = onnx.load(str(path), load_external_data=False).graph.node
    plugins = [node for node in nodes if node.op_type == NODE and node.domain == DOMAIN]
    if len(plugins) != len(calls) or any(len(node.input) != 5 for node in plugins):
        raise RuntimeError(f"{path}: {len(plugins)} nodes {NODE}, expected {len(calls)} with 5 inputs")
    if any(node.op_type == "GridSample" for node in nodes):
        raise RuntimeError(f"{path}: there is a GridSample node, which TensorRT may compute wrongly")
    return len(plugins)
