"""The model of a checkpoint, the transforms it was evaluated with, and the device it runs on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from stdetr import checkpoint
from stdetr import config as configs
from stdetr.data.transforms import ClipTransform
from stdetr.structures import ClassNames


def load_model(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, DictConfig, ClassNames]:
    """Build the model that ``config.yaml`` describes and load the weights; in evaluation mode, on ``device``.

    Raises FileNotFoundError for a missing file and ValueError for a damaged one, or for weights that do not fit this
    model, with the names that differ.
    """
    files = checkpoint.find_checkpoint(path)
    cfg = configs.load_config(files.config)
    node = OmegaConf.select(cfg, "model.detector")
    if node is None:
        raise ValueError(f"{files.config}: key model.detector is missing; is it the configuration of a training run?")
    with configuration_at_fault(path):
        _without_files(node)
        model = configs.instantiate(node)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{files.config}: model.detector is a {type(model).__name__}, not a model")  # noqa: TRY004
    weights, parameters = checkpoint.read_weights(files.weights), model.state_dict()
    weights = {name: x for name, x in weights.items() if name in parameters or name not in checkpoint.UNUSED_TENSORS}
    checkpoint.refuse_nan(weights, files.weights)
    difference = checkpoint.Difference.between(parameters, weights)
    if difference:
        raise ValueError(f"{files.weights} does not fit the model of {files.config}: {difference}")
    model.load_state_dict(weights)
    return model.to(device).eval(), cfg, checkpoint.read_classes(files.meta)


@contextmanager
def configuration_at_fault(path: str | Path) -> Iterator[None]:
    """Any failure to build what the configuration beside a checkpoint says is that configuration's, and one line."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"checkpoint={path}: its configuration builds no detector ({type(error).__name__}: {line})"
        ) from error


def _without_files(node: Any) -> None:
    """Leave out the pretrained weights that training began with: those of the checkpoint replace them all."""
    for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
        if key == "weights" and isinstance(node, DictConfig):
            node[key] = None
        elif isinstance(node[key], DictConfig | ListConfig):
            _without_files(node[key])


def choose_device(device: str) -> torch.device:
    """``auto`` is the GPU of this process where there is one, else the CPU; raises ValueError for a missing device."""
    if device == "auto":
        local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
        return torch.device(f"cuda:{local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is unknown; use auto, cpu, cuda or cuda:<number>") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device} but PyTorch sees no GPU here; use device=auto or device=cpu")
    return chosen


def eval_transform(cfg: DictConfig) -> ClipTransform:
    """The transforms that the run evaluated with, from ``data.eval_transforms``, ``data.mean`` and ``data.std``."""
    transforms = configs.instantiate(cfg.data.eval_transforms)
    return ClipTransform(list(transforms or ()), mean=list(cfg.data.mean), std=list(cfg.data.std))


def pad_to(cfg: DictConfig) -> int:
    return int(OmegaConf.select(cfg, "data.loader.pad_to", default=32))
