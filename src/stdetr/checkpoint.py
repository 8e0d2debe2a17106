"""Checkpoints: the one writer and the one reader.

A run folder holds ``config.yaml`` and ``checkpoints/{best,last}``: ``last`` to resume, ``best`` to use, and older
checkpoints ``last.<step>`` to fall back on.  A checkpoint folder holds ``model.safetensors`` (the averaged weights when
averaging is on), ``meta.json`` (classes, step, metrics, a checksum of every other file) and, in ``last``, ``state/``:
everything accelerate needs to resume bit for bit.  Only safetensors and JSON are read here: no checkpoint can run code.

A checkpoint is written as ``<name>.new``, and its ``meta.json`` comes last: a folder that has one is complete.  Only
then is the folder before it renamed to ``<name>.<step>`` and the new one to ``<name>``.  What is to be deleted is first
renamed to ``*.gone``.  So a complete checkpoint, never older than the last one, exists at every moment.
"""

from __future__ import annotations

import hashlib
import json
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
) -> None:
    """Write the checkpoint ``folder``; a kill or an error at any moment leaves a complete one for ``recover``.

    save_state: writes the state of the training into the folder that it is given
    keep: how many older checkpoints stay, as ``<folder>.<step>``; those of this step or a later one, which a run that
        went back to an older checkpoint has left behind, do not
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
        written = sorted(fresh.rglob("*"))
        meta: dict[str, Any] = {"class_ids": list(classes.ids), "class_names": list(classes.names), "step": step}
        meta |= {"metrics": dict(metrics)}
        meta["sha256"] = {file.relative_to(fresh).as_posix(): _sha256(file) for file in written if file.is_file()}
        for path in written:
            flush(path)
        _write_meta(fresh, meta)
    except (OSError, RuntimeError, SafetensorError):
        # What was written of an incomplete checkpoint would keep a full disk full.
        if not (fresh / META).exists():
            shutil.rmtree(fresh, ignore_errors=True)
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
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _sha256(folder / name) != expected:
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


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    write_text(folder / META, json.dumps(meta, indent=1) + "\n")


def read_meta(folder: Path) -> dict[str, Any]:
    """The ``meta.json`` of a checkpoint folder."""
    return json.loads((folder / META).read_text(encoding="utf-8"))


def _step(folder: Path) -> int | None:
    """The step of a checkpoint; None where its ``meta.json`` is missing or damaged."""
    try:
        meta = read_meta(folder)
        return int(meta["step"]) if isinstance(meta.get("sha256", {}), dict) else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
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


def load_weights(model: nn.Module, path: str | Path, key: str = "init_from") -> str:
    """Load the weights of a run or checkpoint into ``model`` where name and shape agree; returns one line to print.

    For starting a training run from another one: with other classes, the class heads are left as they are.  Raises
    ValueError when nothing agrees.
    """
    file = find_weights(path, key)
    weights, current = read_weights(file), model.state_dict()
    fitting = {name: value for name, value in weights.items() if name in current and current[name].shape == value.shape}
    difference = Difference.between(current, weights)
    if not fitting:
        raise ValueError(f"{key}={path}: no tensor of {file} fits the model: {difference}")
    model.load_state_dict(fitting, strict=False)
    rest = f"; left as they were: {difference}" if difference else ""
    return f"{key}={path}: {len(fitting)} of {len(current)} tensors taken over{rest}"


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
