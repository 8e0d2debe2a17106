"""Checkpoints: the one writer and the one reader.

A run folder holds ``config.yaml`` and ``checkpoints/{best,last}``: ``last`` to resume, ``best`` to use.  A checkpoint
folder holds ``model.safetensors`` (the averaged weights when averaging is on), ``meta.json`` (classes, step, metrics)
and, in ``last``, ``state/``: everything accelerate needs to resume bit for bit.  Only safetensors and JSON are read
here: no checkpoint can run code.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stdetr.config.names import nearest_file

if TYPE_CHECKING:  # errors in a path are reported before torch is imported
    from torch import Tensor, nn

    from stdetr.structures import ClassNames

WEIGHTS, META, STATE, CONFIG = "model.safetensors", "meta.json", "state", "config.yaml"
_SHOWN = 4
# Unused tensors of older checkpoints.
UNUSED_TENSORS = ("neck.level_embed", "queries.embedding.weight", "queries.norm.weight", "queries.norm.bias")


def save(
    folder: Path,
    model: nn.Module,
    classes: ClassNames,
    *,
    step: int,
    metrics: Mapping[str, float | None],
    save_state: Callable[[Path], object] | None = None,
) -> None:
    """Write the folder next to its final place and swap it in: a kill at any moment leaves a complete checkpoint."""
    from safetensors.torch import save_file

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
    """The state to resume from, or None; also finds it after a kill between the two renames of ``save``."""
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / STATE).is_dir() and (candidate / META).is_file():
            return candidate
    return None


def read_meta(folder: Path) -> dict[str, Any]:
    """The ``meta.json`` of a checkpoint folder."""
    return json.loads((folder / META).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class CheckpointFiles:
    """The three files a checkpoint consists of."""

    weights: Path
    meta: Path
    config: Path


def find_checkpoint(path: str | Path, key: str = "checkpoint") -> CheckpointFiles:
    """The files behind ``path``: a run folder (``best`` before ``last``), a checkpoint folder or a weights file.

    Raises FileNotFoundError with one line that says what is missing and, for a misspelt path, the nearest one.
    """
    weights = find_weights(path, key)
    meta = weights.with_name(META)
    if not meta.is_file():
        raise FileNotFoundError(f"{key}={path}: {meta} is missing; it names the classes of the model")
    above = [weights.parent, *weights.parent.parents][:3]
    config = next((folder / CONFIG for folder in above if (folder / CONFIG).is_file()), None)
    if config is None:
        where = ", ".join(str(folder) for folder in above)
        raise FileNotFoundError(f"{key}={path}: no {CONFIG} in {where}; it says how to build the model")
    return CheckpointFiles(weights, meta, config)


def find_weights(path: str | Path, key: str = "checkpoint") -> Path:
    """The weights file behind ``path``, as in ``find_checkpoint``; the other files may be missing."""
    where = Path(path).expanduser()
    if not where.exists():
        raise FileNotFoundError(f"{key}={path} does not exist{nearest_file(where)}")
    if where.is_file():
        if where.suffix != ".safetensors":
            raise ValueError(f"{key}={path} is not a .safetensors file; give a run folder or a checkpoint folder")
        return where
    for candidate in (where, where / "checkpoints" / "best", where / "checkpoints" / "last"):
        if (candidate / WEIGHTS).is_file():
            return candidate / WEIGHTS
    raise FileNotFoundError(f"{key}={path} holds no {WEIGHTS}, neither do its checkpoints/best and checkpoints/last")


def load_weights(model: nn.Module, path: str | Path, key: str = "init_from") -> str:
    """Load the weights of a run or checkpoint into ``model`` where name and shape agree; returns one line to print.

    For starting a training run from another one: with other classes, the class heads are left as they are.  Raises
    ValueError when nothing agrees.
    """
    file = find_weights(path, key)
    weights, own = read_weights(file), model.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    difference = Difference.between(own, weights)
    if not fitting:
        raise ValueError(f"{key}={path}: no tensor of {file} fits the model: {difference}")
    model.load_state_dict(fitting, strict=False)
    rest = f"; left as they were: {difference}" if difference else ""
    return f"{key}={path}: {len(fitting)} of {len(own)} tensors taken over{rest}"


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file ({error}); was writing it interrupted?") from error


def read_classes(file: Path) -> ClassNames:
    """The classes of a checkpoint's ``meta.json``; ValueError where it is damaged."""
    from stdetr.structures import ClassNames

    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        return ClassNames(tuple(int(i) for i in meta["class_ids"]), tuple(str(name) for name in meta["class_names"]))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} does not name the classes (class_ids, class_names): {error!r}") from error


@dataclass(frozen=True)
class Difference:
    """How the tensors of a file differ from a model's; falsy where they do not."""

    missing: Sequence[str]
    unknown: Sequence[str]
    shapes: Sequence[str]

    @classmethod
    def between(cls, own: dict[str, Tensor], weights: dict[str, Tensor]) -> Difference:
        both = own.keys() & weights.keys()
        return cls(
            sorted(own.keys() - both),
            sorted(weights.keys() - both),
            [
                f"{name} {tuple(weights[name].shape)}, model {tuple(own[name].shape)}"
                for name in sorted(both)
                if weights[name].shape != own[name].shape
            ],
        )

    def __bool__(self) -> bool:
        return bool(self.missing or self.unknown or self.shapes)

    def __str__(self) -> str:
        parts = (("missing", self.missing), ("unknown", self.unknown), ("other shape", self.shapes))
        return "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in parts if names)


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
