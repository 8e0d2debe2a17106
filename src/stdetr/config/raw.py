"""Hydra's compose call, with Hydra's and OmegaConf's own exceptions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig

VERSION_BASE = "1.3"


def compose_raw(verb: str, overrides: Sequence[str], folder: Path, *, with_hydra: bool = False) -> DictConfig:
    """Compose ``<folder>/<verb>.yaml``; mistakes are explained by ``stdetr.config.mistakes``."""
    with initialize_config_dir(config_dir=str(folder), job_name=verb, version_base=VERSION_BASE):
        return hydra_compose(config_name=verb, overrides=list(overrides), return_hydra_config=with_hydra)
