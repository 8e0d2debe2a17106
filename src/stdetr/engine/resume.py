"""Which checkpoint a run goes on from, and whether the run is still what its configuration says.

A run resumes under the configuration that its checkpoint was trained with.  Other values are refused unless the user
names their keys (``resume_with``); keys of ``FREE``, which change nothing that is learned, are not compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stdetr import checkpoint
from stdetr import config as configs
from stdetr.atomic import remove_drafts
from stdetr.class_names import ClassNames
from stdetr.config import RunPaths
from stdetr.names import did_you_mean, key_paths, within

# Sections or keys.  Data are compared by the checksum of the annotations, not by their place; model.classes follows
# from them.
FREE = (
    "resume", "resume_with", "trust", "output_dir", "paths", "logger", "viz", "model.classes",
    "trainer.log_every", "trainer.eval_every", "trainer.eval_start", "trainer.save_every", "trainer.keep",
    "trainer.stop_at", "trainer.max_skips", "trainer.threads", "trainer.cpu", "trainer.deterministic",
    "data.root", "data.cache_dir", "data.cache_limit_gb", "data.probe_seconds",
    "data.loader.eval_batch_size", "data.loader.num_workers", "data.loader.prefetch", "data.loader.pin_memory",
    "data.loader.start_method", "data.loader.timeout",
)  # fmt: skip
_SHOWN, _LONGEST = 12, 60
_ABSENT = "(absent)"
ANNOTATIONS = "data.train"

Changes = dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Resume:
    """A checkpoint to go on from.

    meta: its ``meta.json``
    changes: the values that the user changes, ``{key: (before, now)}``
    named: the keys in ``resume_with``
    """

    folder: Path
    meta: dict[str, Any]
    changes: Changes
    named: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        return int(self.meta["step"])

    def changed(self, *sections: str) -> bool:
        """Whether the user changes a key in one of ``sections``."""
        return any(within(key, sections) for key in self.changes)

    def with_annotations(self, sha256: str) -> Resume:
        """Compares the training annotations with those of the checkpoint; ValueError where they are others."""
        before = self.meta.get("annotations", sha256)
        if before == sha256 or self.changed("data.train"):
            return self
        if not within(ANNOTATIONS, self.named):
            raise ValueError(
                f"{self.folder} was trained on other annotations than data.train has now (sha256 {before[:12]}..., now "
                f"{sha256[:12]}...); to go on with them add 'resume_with=[{ANNOTATIONS}]'"
            )
        changes = {**self.changes, ANNOTATIONS: (before, sha256)}
        return Resume(self.folder, self.meta, changes, self.named)

    def class_order(self, classes: ClassNames) -> list[int]:
        """For each of ``classes`` its place in the checkpoint; ValueError where the checkpoint has another set."""
        before = checkpoint.read_classes(self.folder / checkpoint.META).names
        if before == classes.names:
            return list(range(len(before)))
        if sorted(before) != sorted(classes.names) or len(set(before)) != len(before):
            raise ValueError(
                f"{self.folder} was trained for the classes {', '.join(before)}, but the data set has "
                f"{', '.join(classes.names)}: resume with the same set, or start with init_from={self.folder}"
            )
        return [before.index(name) for name in classes.names]

    def history(self, paths: RunPaths) -> list[dict[str, Any]]:
        """Where the run comes from: each checkpoint of another folder or configuration, and what was changed there."""
        before = self.meta.get("history", [])
        if not self.changes and self.folder.resolve().parent == paths.checkpoints.resolve():
            return before
        entry = {"checkpoint": str(self.folder.resolve()), "step": self.step, "changes": self.changes}
        return [*before, entry]


def find(cfg: DictConfig, paths: RunPaths) -> Resume | None:
    """The checkpoint that the run ``cfg`` resumes from; what a killed run left unfinished is settled first.

    Raises ValueError for a damaged checkpoint, for a configuration that differs in keys that are not named, and for
    changes to a run that has no step left.
    """
    checkpoint.recover(paths.last)
    checkpoint.recover(paths.best, keep=0)
    for folder in (paths.root, paths.evaluation):
        remove_drafts(folder)
    folder = _folder(cfg, paths)
    if folder is None:
        return None
    meta = checkpoint.read_meta(folder)
    _history(folder, meta)
    named = _named(cfg)
    changes = _changes(folder, cfg, named)
    forked = folder.resolve().parent != paths.checkpoints.resolve()
    if int(meta["step"]) >= cfg.trainer.max_steps and (changes or forked):
        raise ValueError(
            f"{folder} is at step {meta['step']} of trainer.max_steps={cfg.trainer.max_steps}: no step is left "
            f"{described(changes, 'with ')}; raise trainer.max_steps (and name it in resume_with)"
        )
    return Resume(folder, meta, changes, named)


def _folder(cfg: DictConfig, paths: RunPaths) -> Path | None:
    holds_run = paths.checkpoints.is_dir() and any(paths.checkpoints.iterdir())
    if cfg.resume is None:
        if holds_run:
            raise ValueError(
                f"output_dir={paths.root} already holds a run and resume=null; choose another output_dir or resume=auto"
            )
        return None
    if cfg.resume == "auto":
        return checkpoint.find_resume(paths.last)
    folder = Path(cfg.resume).expanduser()
    if (folder / "checkpoints").is_dir():
        folder = checkpoint.settled(folder / "checkpoints" / "last")
    if not folder.is_dir():
        raise FileNotFoundError(f"resume={folder} holds no state to resume from; give a run folder or checkpoints/last")
    if holds_run and folder.resolve().parent != paths.checkpoints.resolve():
        # The same command again, after a stop of the fork.
        own = checkpoint.find_resume(paths.last)
        assert own is not None
        history = _history(own, checkpoint.read_meta(own))
        if not any(entry.get("checkpoint") == str(folder.resolve()) for entry in history):
            raise ValueError(
                f"output_dir={paths.root} already holds a run, which does not come from resume={folder}; "
                "choose another output_dir or resume=auto"
            )
        return own
    return checkpoint.check_state(folder)


def _history(folder: Path, meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    history = meta.get("history", [])
    if not (isinstance(history, list) and all(isinstance(entry, dict) for entry in history)):
        raise ValueError(f"{folder / checkpoint.META} is damaged: history is no list of mappings")
    return history


def keep_config(cfg: DictConfig, paths: RunPaths, resume: Resume | None) -> None:
    """Write ``config.yaml``; a run that changes its configuration keeps the one before as ``config.<step>.yaml``."""
    if resume is not None and resume.changes and paths.config.is_file():
        earlier = paths.config.with_name(f"config.{resume.step}.yaml")
        if not earlier.exists():
            paths.config.rename(earlier)
    configs.save_config(cfg, paths.config)


def _named(cfg: DictConfig) -> tuple[str, ...]:
    named = tuple(str(key) for key in cfg.get("resume_with") or ())
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    known = list(key_paths(plain))
    for key in named:
        if key not in known:
            raise ValueError(f"resume_with={key}: no such key{did_you_mean(key, known)}")
    return named


def _changes(folder: Path, cfg: DictConfig, named: Sequence[str]) -> Changes:
    """The keys whose values differ from those that the checkpoint was trained with, all of them ``named``."""
    file = next((f for f in (folder / checkpoint.CONFIG, folder.parents[1] / checkpoint.CONFIG) if f.is_file()), None)
    if file is None:
        raise ValueError(f"{folder} cannot be resumed: no {checkpoint.CONFIG} beside it says how it was trained")
    before = OmegaConf.to_container(configs.load_config(file), resolve=True)
    now = OmegaConf.to_container(cfg, resolve=True)
    found = {key: (old, new) for key, old, new in _differences(before, now) if not within(key, FREE)}
    if "jpeg" not in found.get("data.cache", ()):
        found.pop("data.cache", None)  # the same pixels
    # A key that follows another one, data.seed: ${seed}, is not a change of its own.
    found = {key: values for key, values in found.items() if not _follows(cfg, key, found)}
    unnamed = [key for key in found if not within(key, named)]
    if unnamed:
        wanted = ",".join([*named, *unnamed])
        raise ValueError(
            f"{folder} was trained with {described({key: found[key] for key in unnamed})}; set the same values, or "
            f"change them with 'resume_with=[{wanted}]', in a new folder with resume={folder} output_dir=NEW"
        )
    return found


def _differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        if before != now or isinstance(before, bool) != isinstance(now, bool):
            yield path, before, now
        return
    for key in [*before, *(key for key in now if key not in before)]:
        if key != "_convert_":
            below = f"{path}.{key}" if path else str(key)
            yield from _differences(before.get(key, _ABSENT), now.get(key, _ABSENT), below)


def _follows(cfg: DictConfig, key: str, changed: Mapping[str, Any]) -> bool:
    section, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, section) if section else cfg
    if not isinstance(parent, DictConfig) or name not in parent or not OmegaConf.is_interpolation(parent, name):
        return False
    text = str(parent._get_node(name)._value())  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    return any(within(other, (*changed, *FREE)) for other in re.findall(r"\$\{([A-Za-z_][\w.]*)\}", text))


def described(changes: Changes, before: str = "") -> str:
    """The changes on one line, behind ``before``; nothing where there are none."""
    texts = [f"{key}={_short(old)} (now {_short(new)})" for key, (old, new) in changes.items()]
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return f"{before}{', '.join(texts[:_SHOWN])}{more}" if texts else ""


def _short(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
