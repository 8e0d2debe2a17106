"""Checkpoints: the one writer and the one reader.

A run folder holds ``config.yaml`` and ``checkpoints/{best,last}``: ``last`` to resume, ``best`` to use, and older
checkpoints ``last.<step>`` to fall back on.  A checkpoint folder holds ``model.safetensors`` (the averaged weights when
averaging is on), ``meta.json`` (classes, step, metrics, a checksum of every other file), the ``config.yaml`` that it
was trained with and, in ``last``, ``state/``: everything a run needs to resume bit for bit.  Only safetensors, JSON and
YAML of plain values are read: no checkpoint can run code.

A checkpoint is written as ``<name>.new``, and its ``meta.json`` comes last: a folder that has one is complete.  Only
then is the folder before it renamed to ``<name>.<step>`` and the new one to ``<name>``.  What is to be deleted is first
renamed to ``*.gone``.  So a complete checkpoint, never older than the last one, exists at every moment.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stdetr.atomic import flush, remove_drafts, write_text
from stdetr.names import nearest_file

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
    keep: int = 0,
    config: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write the checkpoint ``folder``; a kill or an error at any moment leaves a complete one for ``recover``.

    save_state: writes the state of the training into the folder that it is given
    keep: how many older checkpoints stay, as ``<folder>.<step>``; those of this step or a later one, which a run that
        went back to an older checkpoint has left behind, do not
    config: how it was trained, for ``config.yaml``; notes: further entries of ``meta.json``
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    recover(folder)
    fresh = _fresh(folder)
    fresh.mkdir(parents=True)
    try:
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
        save_file(tensors, fresh / WEIGHTS)
        if save_state is not None:
            save_state(fresh / STATE)
        if config is not None:
            from omegaconf import OmegaConf

            write_text(fresh / CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(config))))
        written = sorted(fresh.rglob("*"))
        meta: dict[str, Any] = {"class_ids": list(classes.ids), "class_names": list(classes.names), "step": step}
        meta |= {"metrics": dict(metrics), **(notes or {})}
        meta["sha256"] = {file.relative_to(fresh).as_posix(): sha256(file) for file in written if file.is_file()}
        for path in written:
            flush(path)
        _write_meta(fresh, meta)
    except (OSError, RuntimeError, SafetensorError) as error:
        # What was written of an incomplete checkpoint would keep a full disk full.
        if not (fresh / META).exists():
            shutil.rmtree(fresh, ignore_errors=True)
        if "os error 28" in str(error):  # safetensors' own exception
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        if isinstance(error, OSError) and error.filename is None and error.errno:
            raise OSError(error.errno, os.strerror(error.errno), str(folder)) from error
        raise
    recover(folder, keep)


def recover(folder: Path, keep: int | None = None) -> None:
    """Finish the saving of ``folder``, also where a kill interrupted it, and remove what was left unfinished.

    keep: see ``save``; None leaves all older checkpoints
    """
    fresh = _fresh(folder)
    if (fresh / META).is_file():
        flush(folder.parent)
        if folder.exists():
            step = _step(folder)
            older = folder.with_name(f"{folder.name}.{step}")
            if older.exists():
                _remove(older)
            if step is None:
                _remove(folder)
            else:
                folder.rename(older)
        fresh.rename(folder)
        flush(folder.parent)
    elif fresh.exists():
        shutil.rmtree(fresh)
    step = _step(folder)
    if keep is not None and step is not None:
        every = _older(folder)
        kept = [path for number, path in every if number < step][:keep]
        for _, path in every:
            if path not in kept:
                _remove(path)
    for gone in folder.parent.glob(f"{folder.name}*.gone"):
        shutil.rmtree(gone, ignore_errors=True)
    remove_drafts(folder)


def amend(folder: Path, **values: Any) -> None:
    """Set ``values`` in the ``meta.json`` of a checkpoint."""
    _write_meta(folder, read_meta(folder) | values)


def find_resume(folder: Path) -> Path | None:
    """The checkpoint to resume from, after ``recover``; None where the run has saved nothing yet.

    Raises ValueError as ``check_state`` does, also where ``folder`` alone is missing.
    """
    if not folder.exists() and not any(path.is_dir() for path in folder.parent.glob("*")):
        return None
    return check_state(folder)


def check_state(folder: Path) -> Path:
    """``folder``, a checkpoint that a run can resume from.

    Raises ValueError where it is damaged: one line that says how, and which complete checkpoint there is instead.
    """
    damage = _damage(folder)
    if damage is None:
        return folder
    last = folder.with_name(folder.name.split(".")[0])
    others = (path for path in (last, *(path for _, path in _older(last))) if path != folder)
    good = next((path for path in others if _damage(path) is None), None)
    offer = "no other complete checkpoint is beside it; choose another output_dir"
    if good is not None:
        offer = f"resume={good} goes on from step {_step(good)}"
    elif (best := folder.with_name("best")).is_dir():
        offer += f", and init_from={best} for its weights"
    raise ValueError(f"{folder} cannot be resumed: {damage}; {offer}")


def _damage(folder: Path) -> str | None:
    """Why a run cannot resume from ``folder``; None where it can."""
    if not folder.is_dir():
        return "the folder is missing"
    if not (folder / META).is_file():
        return f"{META} is missing"
    if not (folder / STATE).is_dir():
        return f"{STATE}/ is missing"
    if _step(folder) is None:
        return f"{META} is damaged"
    # Checkpoints of earlier versions have no checksums.
    for name, expected in read_meta(folder).get("sha256", {}).items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"{META} is damaged (it names {name!r})"
        try:
            missing = not (folder / name).is_file()
        except OSError:  # no name of a file
            missing = True
        if missing:
            return f"{name} is missing"
        if sha256(folder / name) != expected:
            return f"{name} is damaged (its checksum differs from the one in {META})"
    return None


def settled(folder: Path) -> Path:
    """Where the checkpoint ``folder`` is: there, or still beside it if a kill came just before the last renaming."""
    fresh = _fresh(folder)
    return fresh if not folder.exists() and (fresh / META).is_file() else folder


def _fresh(folder: Path) -> Path:
    return folder.with_name(folder.name + ".new")


def _older(folder: Path) -> list[tuple[int, Path]]:
    """The older checkpoints ``<folder>.<step>``, the newest first."""
    found = [path for path in folder.parent.glob(f"{folder.name}.*") if path.suffix[1:].isdecimal()]
    return sorted(((int(path.suffix[1:]), path) for path in found), reverse=True)


def _remove(folder: Path) -> None:
    """Remove a folder; a kill leaves all of it, or what ``recover`` knows to remove."""
    gone = folder.with_name(folder.name + ".gone")
    if gone.exists():
        shutil.rmtree(gone)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def sha256(file: Path) -> str:
    """The checksum of a file, hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    write_text(folder / META, json.dumps(meta, indent=1) + "\n")


def read_meta(folder: Path) -> dict[str, Any]:
    """The ``meta.json`` of a checkpoint folder; ValueError where it is damaged."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / META} is damaged: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(meta, dict):
        raise ValueError(f"{folder / META} is damaged: not a mapping")  # noqa: TRY004
    return meta


def _step(folder: Path) -> int | None:
    """The step of a checkpoint; None where its ``meta.json`` is missing or damaged."""
    try:
        meta = read_meta(folder)
        return int(meta["step"]) if isinstance(meta.get("sha256", {}), dict) else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, OverflowError):
        return None


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
    inside = (settled(where / "checkpoints" / name) for name in ("best", "last"))
    for candidate in (where, *inside):
        if (candidate / WEIGHTS).is_file():
            return candidate / WEIGHTS
    raise FileNotFoundError(f"{key}={path} holds no {WEIGHTS}, neither do its checkpoints/best and checkpoints/last")


def load_weights(model: nn.Module, path: str | Path, key: str = "init_from", classes: ClassNames | None = None) -> str:
    """Load the weights of a run or checkpoint into ``model`` where name and shape agree; returns one line to print.

    For starting a training run from another one.  The class heads are matched by the names of ``classes``: those that
    the checkpoint does not know are left as they are.  Raises ValueError when nothing agrees.
    """
    file = find_weights(path, key)
    weights, current = read_weights(file), model.state_dict()
    said = ""
    if classes is not None and file.with_name(META).is_file():
        known = read_classes(file.with_name(META)).names
        if known != classes.names:
            said = _by_name(weights, current, class_tensors(model), known, classes.names)
    fitting = {name: value for name, value in weights.items() if name in current and current[name].shape == value.shape}
    difference = Difference.between(current, weights)
    if not fitting:
        raise ValueError(f"{key}={path}: no tensor of {file} fits the model: {difference}")
    model.load_state_dict(fitting, strict=False)
    rest = f"; left as they were: {difference}" if difference else ""
    return f"{key}={path}: {len(fitting)} of {len(current)} tensors taken over{said}{rest}"


def _by_name(
    weights: dict[str, Tensor], current: dict[str, Tensor], tensors: set[str], before: Sequence[str], now: Sequence[str]
) -> str:
    """Sort the rows of class tensors by the classes of the model; returns what became of them."""
    common = [name for name in now if before.count(name) == 1]
    to, of = [now.index(name) for name in common], [before.index(name) for name in common]
    for name in tensors & weights.keys():
        mine, theirs = current[name].cpu().clone(), weights[name]
        if len(theirs) == len(before) and mine.shape[1:] == theirs.shape[1:]:
            mine[to] = theirs[of].to(mine.dtype)
            weights[name] = mine
    new = [name for name in now if name not in common]
    gone = [name for name in before if name not in common]
    parts = (("by name", common), ("new", new), ("not taken over", gone))
    return "; classes: " + "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in parts if names)


def class_tensors(model: nn.Module) -> set[str]:
    """The names of the tensors with one row per class."""
    from stdetr.models.denoising import TubeDenoising
    from stdetr.models.heads import ClassHead

    owners = [name for name, module in model.named_modules() if isinstance(module, ClassHead)]
    owners += [f"{name}.labels" for name, module in model.named_modules() if isinstance(module, TubeDenoising)]
    return {name for name in model.state_dict() if name.startswith(tuple(f"{owner}." for owner in owners))}


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file ({error}); was writing it interrupted?") from error


def refuse_nan(weights: Mapping[str, Tensor], file: Path) -> None:
    """Raise ValueError where weights are NaN or infinite: a model with those detects nothing."""
    wrong = [name for name, x in weights.items() if x.is_floating_point() and not bool(x.isfinite().all())]
    if wrong:
        raise ValueError(
            f"{file}: {len(wrong)} of {len(weights)} tensors are not finite ({_some(wrong)}): its training diverged; "
            "use an earlier checkpoint"
        )


def read_classes(file: Path) -> ClassNames:
    """The classes of a checkpoint's ``meta.json``; ValueError where it is damaged."""
    from stdetr.structures import ClassNames

    meta = read_meta(file.parent)
    try:
        return ClassNames(tuple(int(i) for i in meta["class_ids"]), tuple(str(name) for name in meta["class_names"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{file} does not name the classes (class_ids, class_names): {error!r}") from error


@dataclass(frozen=True)
class Difference:
    """How the tensors of a file differ from a model's; falsy where they do not."""

    missing: Sequence[str]
    unknown: Sequence[str]
    shapes: Sequence[str]

    @classmethod
    def between(cls, current: dict[str, Tensor], weights: dict[str, Tensor]) -> Difference:
        both = current.keys() & weights.keys()
        return cls(
            sorted(current.keys() - both),
            sorted(weights.keys() - both),
            [
                f"{name} {tuple(weights[name].shape)}, model {tuple(current[name].shape)}"
                for name in sorted(both)
                if weights[name].shape != current[name].shape
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
