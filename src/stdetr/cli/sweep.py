"""Sweeps: Hydra's own multirun, with one folder a job and a summary at the end."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf

from stdetr.cli.arguments import Arguments
from stdetr.cli.single import exit_code, place
from stdetr.cli.summary import JOB_FILE, read_jobs, summarise
from stdetr.cli.verbs import VERBS, Verb
from stdetr.config import compose, config_dir
from stdetr.config.folder import list_groups
from stdetr.config.mistakes import explain, wrong_option
from stdetr.config.raw import VERSION_OPTIONS
from stdetr.config.values import check_values, first_choice


def is_sweep(verb: str, arguments: Arguments) -> bool:
    """True with ``-m``, or where the configuration itself asks for it (``hydra.mode: MULTIRUN`` in an option)."""
    if arguments.multirun:
        return True
    if not any(text.lstrip("+").startswith(("hydra", "hparams_search=")) for text in arguments.overrides):
        return False
    mode = OmegaConf.select(compose(verb, arguments.overrides, with_hydra=True), "hydra.mode")
    return mode is not None and mode.name == "MULTIRUN"


def run_sweep(verb: Verb, overrides: Sequence[str]) -> int:
    """Run every combination of the sweep through Hydra's sweeper and launcher, then print and write the summary.

    Returns 1 where a job ended with an exit code of its own; a job that raised raises here.
    ``output_dir=...`` is the folder of the sweep; job ``n`` writes into ``<folder>/<n>``.

    Raises:
        ValueError: a mistake in the overrides, found before the first job starts.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "-m starts the jobs itself and cannot run under torchrun: for jobs of N processes use "
            "launcher=submitit_slurm (or submitit_local) hydra.launcher.tasks_per_node=N"
        )
    own = [text for text in overrides if not text.startswith("output_dir=")]
    given = [text.partition("=")[2] for text in overrides if text.startswith("output_dir=")]
    default = _prepare(verb.name, own)
    folder = Path(given[-1].strip("'\"")) if given else default
    quoted = str(folder).replace("\\", "\\\\").replace('"', '\\"')
    words = ["-m", *own, f'hydra.sweep.dir="{quoted}"', f"hydra.job.name={verb.name}", "hydra.job.chdir=false"]
    before = time.time()
    try:
        with _as_command_line(words):
            hydra.main(config_path=str(config_dir()), config_name=verb.name, **VERSION_OPTIONS)(job)()
    finally:
        rows = read_jobs(folder, since=before)
        if rows:
            print(summarise(folder, rows))
    return int(any(row["status"].startswith("exit") for row in rows))


def job(cfg: DictConfig) -> float | None:
    """One job of a sweep, in whichever process the launcher runs it; returns the objective for the sweeper.

    Writes ``job.json`` into the job's folder: its overrides, status, objective, seconds.
    """
    context = HydraConfig.get()
    verb, folder = str(context.job.config_name), Path(context.runtime.output_dir)
    place(cfg, verb, folder)
    record: dict[str, Any] = {
        "job": context.job.num,
        "overrides": list(context.overrides.task),
        "status": "running",
        "objective": None,
        "seconds": None,
        "error": None,
    }
    _write(folder, record)
    started = time.perf_counter()
    try:
        result = VERBS[verb].load()(cfg)
        code = exit_code(result)
        record["status"] = "done" if code == 0 else f"exit {code}"
        record["objective"] = float(result) if isinstance(result, float) else None
    except BaseException as error:
        record["status"] = "failed"
        record["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        record["seconds"] = round(time.perf_counter() - started, 1)
        _write(folder, record)
    return record["objective"]


def _write(folder: Path, record: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JOB_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _prepare(verb: str, overrides: Sequence[str]) -> Path:
    """Judge every value of the sweep before any job runs, and return the sweep's default folder."""
    folder = config_dir()
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise ValueError(explain(error, verb, overrides, folder)) from error
    groups = list_groups(folder)
    for item in parsed:
        if item.key_or_group in groups and (line := wrong_option(item, folder)) is not None:
            raise ValueError(line)
    cfg = compose(verb, [first_choice(item) for item in parsed], with_hydra=True)
    check_values(verb, overrides, folder)
    return Path(str(OmegaConf.select(cfg, "hydra.sweep.dir")))


@contextmanager
def _as_command_line(words: Sequence[str]) -> Iterator[None]:
    """Hydra reads the process's command line, and hides exceptions unless told not to: both for this call only."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["stdetr", *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full
