"""Configurations on disk: ``config.yaml`` of a run, every interpolation resolved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from stdetr.atomic import write_text

FILE_NAME = "config.yaml"


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
        cfg = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(cfg, DictConfig):
        raise ValueError(f"{path}: a configuration is a mapping, got a {type(cfg).__name__}")  # noqa: TRY004
    OmegaConf.set_struct(cfg, True)
    return cfg
