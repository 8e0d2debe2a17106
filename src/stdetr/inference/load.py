"""The model of a checkpoint, the transforms it was evaluated with, and the device it runs on."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
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
    model: nn.Module = configs.instantiate(node)
    weights, parameters = checkpoint.read_weights(files.weights), model.state_dict()
    weights = {name: x for name, x in weights.items() if name in parameters or name not in checkpoint.UNUSED_TENSORS}
    difference = checkpoint.Difference.between(parameters, weights)
    if difference:
        raise ValueError(f"{files.weights} does not fit the model of {files.config}: {difference}")
    model.load_state_dict(weights)
    return model.to(device).eval(), cfg, checkpoint.read_classes(files.meta)


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
