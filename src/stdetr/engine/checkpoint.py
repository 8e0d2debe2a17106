"""Checkpoints of a run: ``checkpoints/last`` to go on, ``checkpoints/best`` to use.

A checkpoint folder holds ``model.safetensors`` (the averaged weights when averaging is on), ``meta.json`` (classes,
step, metrics) and, in ``last``, ``state/``: everything accelerate needs to go on bit for bit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from stdetr.structures import ClassNames

WEIGHTS, META, STATE = "model.safetensors", "meta.json", "state"


def save(
    folder: Path,
    model: nn.Module,
    classes: ClassNames,
    *,
    step: int,
    metrics: Mapping[str, float | None],
    save_state: Callable[[Path], None] | None = None,
) -> None:
    """Write the folder beside its final place and swap it in: a kill at any moment leaves a whole checkpoint."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    save_file(tensors, fresh / WEIGHTS)
    meta = {"class_ids": list(classes.ids), "class_names": list(classes.names), "step": step, "metrics": dict(metrics)}
    (fresh / META).write_text(json.dumps(meta, indent=1) + "\n")
    if save_state is not None:
        save_state(fresh / STATE)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def find_resume(folder: Path) -> Path | None:
    """The state to go on from, or None; also when a kill fell between the two renames of ``save``."""
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / STATE).is_dir() and (candidate / META).is_file():
            return candidate
    return None


def read_meta(folder: Path) -> dict:
    return json.loads((folder / META).read_text())
