"""The folder of configurations: where it is, its groups and options, and Hydra's compose call on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

CONFIG_DIR_VARIABLE = "STDETR_CONF"
# Hydra 1.3 asks whose defaults to follow; from 1.4 on asking is deprecated.
VERSION_OPTIONS: dict[str, str] = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}


def config_dir() -> Path:
    """``STDETR_CONF`` where set, else ``conf/`` of a checkout, else the copy in the installed package.

    The checkout comes before the installed copy because an editable installation leaves a copy that does not follow
    later edits.

    Raises:
        FileNotFoundError: ``STDETR_CONF`` is not a folder, or the installation has no configurations.
    """
    chosen = os.environ.get(CONFIG_DIR_VARIABLE)
    if chosen:
        folder = Path(chosen).expanduser().resolve()
        if not folder.is_dir():
            raise FileNotFoundError(f"{CONFIG_DIR_VARIABLE}={chosen}: no such folder")
        return folder
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1]
    if (checkout / "pyproject.toml").is_file() and (checkout / "conf").is_dir():
        return checkout / "conf"
    if (package / "conf").is_dir():
        return package / "conf"
    raise FileNotFoundError(f"no configurations in {checkout / 'conf'} nor {package / 'conf'}: reinstall stdetr")


def list_groups(folder: Path) -> list[str]:
    """Every group, ``model`` or nested ``data/transforms``: a folder below ``folder`` that holds YAML files."""
    return sorted({path.parent.relative_to(folder).as_posix() for path in folder.glob("*/**/*.yaml")})


def list_options(folder: Path, group: str) -> list[str]:
    """The options of ``group``: its files' names without extension."""
    return sorted(path.stem for path in (folder / group).glob("*.yaml"))


def compose_raw(verb: str, overrides: Sequence[str], folder: Path, *, with_hydra: bool = False) -> DictConfig:
    """``<folder>/<verb>.yaml`` composed by Hydra, with Hydra's and OmegaConf's own exceptions."""
    with hydra.initialize_config_dir(config_dir=str(folder), job_name=verb, **VERSION_OPTIONS):
        return hydra.compose(config_name=verb, overrides=list(overrides), return_hydra_config=with_hydra)
