"""Hydra's compose call, with Hydra's and OmegaConf's own exceptions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig

# Hydra 1.3 asks whose defaults to follow; from 1.4 on asking is deprecated.
VERSION_OPTIONS: dict[str, str] = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}


def compose_raw(verb: str, overrides: Sequence[str], folder: Path, *, with_hydra: bool = False) -> DictConfig:
    """Compose ``<folder>/<verb>.yaml``; mistakes are explained by ``stdetr.config.mistakes``."""
    with initialize_config_dir(config_dir=str(folder), job_name=verb, **VERSION_OPTIONS):
        return hydra_compose(config_name=verb, overrides=list(overrides), return_hydra_config=with_hydra)
