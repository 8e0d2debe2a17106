"""Weights & Biases: online with an account, offline without one, never prompting on the terminal.

Three traps of the service shape this file.  Offline runs ignore ``resume`` (wandb issue 2423), so ``metrics.jsonl``
is always written beside it.  Its own step counter drops records that arrive late, so every record carries
``trainer/step`` and ``define_metric`` makes that the x axis.  Videos go in as the path of an encoded mp4, which needs
neither moviepy nor a copy in memory.
"""

from __future__ import annotations

import hashlib
import json
import netrc
import os
import secrets
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlparse

from omegaconf import DictConfig, OmegaConf

from stdetr.atomic import write_text
from stdetr.logger.jsonl import read_metrics
from stdetr.logger.logger import Logger, Scalar, Table, to_scalar
from stdetr.logger.wandb_file import read_history

if TYPE_CHECKING:
    from torch import Tensor

MODES = ("auto", "online", "offline", "disabled")
Mode = Literal["auto", "online", "offline", "disabled"]
STEP = "trainer/step"
FINISH_SECONDS = 60.0
"""For uploading what is left at the end; later, ``wandb sync`` does."""


@dataclass(eq=False)
class WandbLogger(Logger):
    """One W&B run in ``<output_dir>/wandb``.

    mode     ``auto`` (online if an account is configured, else offline), ``online``, ``offline`` or ``disabled``; the
             environment variable ``WANDB_MODE`` decides where the mode is ``auto``
    group    runs of one sweep share it; by default the sweep's folder where ``output_dir`` is one of its jobs
    splits   the first part of the metric names, so that each gets ``trainer/step`` as its x axis

    The run's id, its folder and its page are kept in ``<output_dir>/wandb_run.json``.  A resumed run
    continues it: what W&B's files have is not sent again though it is computed again, what they lack comes from
    ``metrics.jsonl``.  Where W&B cannot be reached, ``auto`` says
    so and records offline; where it fails later, that is said and the run goes on without it.

    Raises ValueError for an unknown mode, where W&B is not installed, and for ``online`` without an account or a
    connection.
    """

    output_dir: str | Path
    project: str = "stdetr"
    _: KW_ONLY
    mode: Mode = "auto"
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    tags: Sequence[str] = ()
    notes: str | None = None
    splits: Sequence[str] = ("train", "val", "test", "files", "media", "table")

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"logger.wandb.mode={self.mode!r} is not one of {', '.join(MODES)}")
        self.root = Path(self.output_dir)
        self._run: Any = None
        self._known: set[tuple[int, str]] = set()

    @property
    def run_file(self) -> Path:
        return self.root / "wandb_run.json"

    @property
    def run_id(self) -> str | None:
        """The id of this folder's run, None before its first start."""
        return self._recorded().get("id")

    def _recorded(self) -> dict[str, Any]:
        if not self.run_file.is_file():
            return {}
        try:
            return dict(json.loads(self.run_file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{self.run_file} is damaged ({error}); remove it to begin another W&B run") from error

    def start(self, config: Mapping[str, Any], *, step: int | None = None, evaluated: bool = True) -> None:
        mode = resolve_mode(self.mode)
        if mode == "disabled":
            return
        try:
            import wandb
        except ImportError as error:
            raise ValueError(f"logger=wandb needs W&B ({error}): pip install wandb, or logger=jsonl") from error

        self.root.mkdir(parents=True, exist_ok=True)
        before = self._recorded() if step is not None else {}
        resumed = before.get("id")
        run_id = resumed or secrets.token_hex(4)
        if isinstance(config, DictConfig):
            content: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        else:
            content = dict(config)
        limits: dict[str, Any] = (
            {"finish_timeout": FINISH_SECONDS} if "finish_timeout" in wandb.Settings.model_fields else {}
        )
        settings = wandb.Settings(
            quiet=True, silent=True, console="off", show_info=False, show_warnings=False, **limits
        )  # fmt: skip
        arguments: dict[str, Any] = {
            "project": self.project,
            "entity": self.entity,
            "name": self.name or self.root.name or None,
            "group": self.group if self.group is not None else sweep_of(self.root),
            "tags": list(self.tags),
            "notes": self.notes,
            "dir": str(self.root),
            "id": run_id,
            # Offline, resume is ignored with a warning; both parts join on the server when they are synchronised.
            "config": {**content, "commit": git_revision()},
            "settings": settings,
        }
        try:
            self._run = wandb.init(**arguments, mode=mode, resume="allow" if resumed and mode == "online" else None)
        except wandb.errors.Error as error:  # pyright: ignore[reportAttributeAccessIssue]
            reason = str(error).strip().splitlines()[0]
            if self.mode == "online" or mode == "offline":
                raise ValueError(
                    f"logger.wandb.mode={self.mode}: W&B does not start ({reason}); use mode=offline or logger=jsonl"
                ) from error
            mode = "offline"
            print(f"W&B cannot be used ({reason}): this run is recorded offline, for 'wandb sync'", file=sys.stderr)
            wandb.teardown()  # its service still holds the id
            self._run = wandb.init(**arguments, mode=mode)
        self._run.define_metric(STEP, hidden=True)
        for split in self.splits:
            self._run.define_metric(f"{split}/*", step_metric=STEP)
        url = self._run.url if mode == "online" else None
        # `dir` of a run is its files folder; the run's own folder, which `wandb sync` takes, is the parent.
        folder = Path(os.path.relpath(Path(self._run.dir).parent, self.root)).as_posix()
        record = {"id": run_id, "mode": mode, "project": self.project, "folder": folder, "url": url}
        # Another configuration computes other values.
        digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
        write_text(self.run_file, json.dumps({**record, "config": digest}, indent=1) + "\n")
        if resumed and step is not None:
            self._known = self._recorded_history(run_id, None if before.get("config") == digest else step)
            self._catch_up(step)

    def _recorded_history(self, run_id: str, until: int | None) -> set[tuple[int, str]]:
        """The (step, name) of the values in the files of the run's earlier parts, up to step ``until`` or all."""
        files = self.root.glob(f"wandb/*run-*/run-{run_id}.wandb")
        rows = ((int(row.get(STEP, -1)), row) for file in files for row in read_history(file))
        return {(step, name) for step, row in rows if until is None or step <= until for name in row}

    def _catch_up(self, step: int) -> None:
        """Send what a kill kept W&B from writing, from ``metrics.jsonl``."""
        path = self.root / "metrics.jsonl"
        for record in read_metrics(path) if path.is_file() else ():
            at, split = int(record.pop("step")), str(record.pop("split"))
            if at > step:
                continue
            if split == "media":
                for key, name in record.items():
                    if (self.root / name).is_file():
                        self.log_media(at, key, self.root / name)
            elif split == "table":
                for key, content in record.items():
                    self.log_table(at, key, Table(tuple(content["columns"]), tuple(map(tuple, content["rows"]))))
            else:
                self.log(at, split, record)

    def log(self, step: int, split: str, values: Mapping[str, Tensor | Scalar]) -> None:
        scalars = {f"{split}/{name}": to_scalar(name, value) for name, value in values.items()}
        self._log(step, {name: value for name, value in scalars.items() if value is not None})

    def log_media(self, step: int, key: str, path: Path) -> None:
        if self._run is None or (step, f"media/{key}") in self._known:
            return
        import wandb

        file = str(path)
        media = wandb.Video(file, format="mp4") if path.suffix == ".mp4" else wandb.Image(file)
        self._log(step, {f"media/{key}": media})

    def log_table(self, step: int, key: str, table: Table) -> None:
        if self._run is None or (step, f"table/{key}") in self._known:
            return
        import wandb

        self._log(step, {f"table/{key}": wandb.Table(columns=list(table.columns), data=[list(r) for r in table.rows])})

    def log_artifact(self, name: str, path: Path, *, kind: str = "model", aliases: Sequence[str] = ()) -> None:
        if self._run is None:
            return
        import wandb

        artifact = wandb.Artifact(f"{name}-{self.run_id}", type=kind)
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
        self._send(lambda: self._run.log_artifact(artifact, aliases=list(aliases)))

    def finish(self, exit_code: int = 0) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            run.finish(exit_code=exit_code)

    def _log(self, step: int, values: dict[str, Any]) -> None:
        """Send what is not known from before a kill."""
        values = {name: value for name, value in values.items() if (step, name) not in self._known}
        if values:
            self._send(lambda: self._run.log({STEP: int(step), **values}))

    def _send(self, call: Callable[[], object]) -> None:
        """A failure of W&B does not end the run."""
        if self._run is None:
            return
        try:
            call()
        except Exception as error:  # whatever W&B raises
            self._run = None
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"W&B failed ({reason}): the run goes on with metrics.jsonl alone", file=sys.stderr, flush=True)


def resolve_mode(mode: Mode) -> Literal["online", "offline", "disabled"]:
    """Resolves ``auto`` for this machine; other modes are unchanged."""
    if mode == "auto":
        asked = os.environ.get("WANDB_MODE", "").lower()
        if asked in ("online", "offline", "disabled"):
            mode = asked  # pyright: ignore[reportAssignmentType]
        else:
            return "online" if has_account() else "offline"
    if mode == "online" and not has_account():
        raise ValueError(
            "logger.wandb.mode=online needs a W&B account: run `wandb login`, set WANDB_API_KEY, or use mode=offline"
        )
    return mode  # pyright: ignore[reportReturnType]


def has_account() -> bool:
    """Whether W&B could sign in without prompting: a key or token in the environment, or an entry in the netrc file.

    Only presence is checked, in the files and variables that W&B documents; nothing is read out or stored.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    named = os.environ.get("NETRC")
    candidates = [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for file in candidates:
        if not file.is_file():
            continue
        try:
            if netrc.netrc(str(file)).hosts.get(host):
                return True
        except (netrc.NetrcParseError, OSError) as error:
            warnings.warn(f"{file} cannot be read ({error}); W&B counts as having no account", stacklevel=2)
    return False


def sweep_of(output_dir: Path) -> str | None:
    """The sweep that a job folder belongs to: Hydra writes ``multirun.yaml`` beside the folders of its jobs."""
    for folder in (output_dir.parent, output_dir.parent.parent):
        if (folder / "multirun.yaml").is_file():
            return folder.name
    return None


def git_revision(folder: Path | None = None) -> str | None:
    """The commit that ``folder`` (default: this package) is checked out at, with ``-dirty`` after local changes.

    None where there is no git, or where ``folder`` is not under version control (an installed wheel).
    """
    git = shutil.which("git")

    def ask(*arguments: str) -> str | None:
        command, where = [git, *arguments], folder or Path(__file__).parent
        answer = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False) if git else None
        return answer.stdout.strip() if answer is not None and answer.returncode == 0 else None

    # An environment inside another project's checkout is ignored there; that commit says nothing about this code.
    known = ask("ls-files", "--error-unmatch", ".") is not None
    return ask("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") if known else None
