"""One run of one verb."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from stdetr.cli.inputs import check_inputs
from stdetr.cli.verbs import Verb
from stdetr.config import compose

OUTPUTS_VARIABLE = "STDETR_OUTPUTS"


def run_once(verb: Verb, overrides: Sequence[str]) -> int:
    """Compose ``verb`` with ``overrides``, run it, and return the exit code.

    Raises:
        ValueError: a mistake in the overrides.
    """
    for text in overrides:
        if text.startswith(("hydra.run.", "hydra.sweep.")):
            raise ValueError(f"{text}: one run writes where output_dir=... says; hydra.sweep.* needs -m")
    cfg = compose(verb.name, overrides)
    check_inputs(cfg, verb.inputs)
    place(cfg, verb.name)
    return exit_code(verb.load()(cfg))


def exit_code(result: object) -> int:
    """A verb returns an exit code, or None; a float is the objective of a sweep, which is no failure."""
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def place(cfg: DictConfig, verb: str, folder: Path | None = None) -> None:
    """Say where the run writes: ``folder``, else ``output_dir`` as it stands, else ``outputs/<verb>/<timestamp>``.

    A configuration without the key ``output_dir`` writes into no folder of its own.

    Raises:
        ValueError: several processes run together, and each would take a time stamp of its own.
    """
    if "output_dir" not in cfg:
        return
    given = OmegaConf.select(cfg, "output_dir")
    if folder is None and given is not None:
        return
    if folder is None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("output_dir must be given when several processes run together: output_dir=runs/<name>")
        root = OmegaConf.select(cfg, "paths.outputs") or os.environ.get(OUTPUTS_VARIABLE, "outputs")
        folder = Path(root) / verb / time.strftime("%Y-%m-%d_%H-%M-%S")
    with open_dict(cfg):
        cfg.output_dir = str(folder)
        if "paths" in cfg:
            cfg.paths.run = str(folder)
