"""Checks that files and checkpoints named by a command exist, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from stdetr.checkpoint import find_checkpoint, find_weights
from stdetr.names import nearest_file


def check_inputs(cfg: DictConfig, keys: Sequence[str]) -> None:
    """Look for what each of ``keys`` names; keys that are absent, null or ``auto``, and glob patterns, are left alone.

    Raises:
        FileNotFoundError: it does not exist, or is a folder without the files of a checkpoint.
        ValueError: ``checkpoint`` or ``init_from`` names a file that is not a checkpoint.
    """
    for key in keys:
        value = OmegaConf.select(cfg, key, throw_on_missing=False)
        if value in (None, "", "auto") or (key == "source" and any(sign in str(value) for sign in "*?[")):
            continue
        path = Path(str(value)).expanduser()
        if key == "checkpoint":
            find_checkpoint(path, key)
        elif key == "init_from":
            find_weights(path, key)
        elif not path.exists():
            raise FileNotFoundError(f"{key}={value} does not exist{nearest_file(path)}")
