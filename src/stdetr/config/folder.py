"""The folder of configurations: where it is, its groups and their options."""

from __future__ import annotations

import os
from pathlib import Path

CONFIG_DIR_VARIABLE = "STDETR_CONF"


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
