"""Configurations on disk: ``config.yaml`` of a run, every interpolation resolved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from stdetr.atomic import write_text

FILE_NAME = "config.yaml"
_MOST_BYTES, _MOST_NESTED = 1_000_000, 50


@dataclass(frozen=True)
class RunPaths:
    """The files of one run under ``output_dir`` (DESIGN: every verb writes the same names)."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / FILE_NAME

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best"

    @property
    def evaluation(self) -> Path:
        return self.root / "eval"

    @property
    def media(self) -> Path:
        return self.root / "media"


def save_config(cfg: DictConfig, path: Path | str) -> Path:
    """Write ``cfg`` as YAML with its interpolations resolved; ``path`` is the file, or a folder for ``config.yaml``.

    The file appears whole or not at all.  Returns the file's path.
    """
    path = Path(path)
    if path.suffix not in {".yaml", ".yml"}:
        path = path / FILE_NAME
    return write_text(path, OmegaConf.to_yaml(cfg, resolve=True))


def _refuse_bombs(path: Path) -> None:
    """Raise ValueError for YAML that a small file can blow up to any size, which no run writes."""
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path.stat().st_size} bytes are too many")
    depth = 0
    for event in yaml.parse(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has aliases (*{event.anchor})")  # noqa: TRY004
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_NESTED:
            raise ValueError(f"more than {_MOST_NESTED} levels are nested")


def load_config(path: Path | str) -> DictConfig:
    """Read what ``save_config`` wrote; ``path`` is the file, or the run's folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not YAML, or not a mapping.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration; a run writes {FILE_NAME} into its output_dir")
    try:
        _refuse_bombs(path)
        cfg = OmegaConf.load(path)
        if not isinstance(cfg, DictConfig):
            raise ValueError(f"a configuration is a mapping, got a {type(cfg).__name__}")  # noqa: TRY004
        OmegaConf.resolve(cfg)  # so that no key fails later
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    except (OmegaConfBaseException, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path}: not a configuration: {' '.join(str(error).split())[:300]}") from error
    OmegaConf.set_struct(cfg, True)
    return cfg
