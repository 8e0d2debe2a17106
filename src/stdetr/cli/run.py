"""One run of a verb, or a sweep: Hydra's own multirun, with one folder per job and a summary at the end."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from stdetr.atomic import write_text
from stdetr.cli.arguments import quote
from stdetr.cli.inputs import check_inputs
from stdetr.cli.summary import JOB_FILE, read_jobs, summarise
from stdetr.cli.verbs import VERBS, Verb
from stdetr.config import compose, config_dir
from stdetr.config.composition import compose_sweep
from stdetr.config.folder import VERSION_OPTIONS

OUTPUTS_VARIABLE = "STDETR_OUTPUTS"


def run(verb: Verb, flags: Namespace, overrides: Sequence[str]) -> int:
    """Do what the command line of ``verb`` asks for, and return the exit code.

    Raises:
        ValueError: a mistake in the overrides, told before anything runs.
        FileNotFoundError: a file or checkpoint that the overrides name does not exist.
    """
    given = [text.partition("=")[2] for text in overrides if text.startswith("output_dir=")]
    if flags.multirun:
        overrides = [text for text in overrides if not text.startswith("output_dir=")]
        cfg = compose_sweep(verb.name, overrides)
    else:
        cfg = compose(verb.name, overrides, with_hydra=True)
    if flags.cfg or flags.info:
        section = [f"--package={flags.package}"] if flags.package else []
        if section and not isinstance(OmegaConf.select(cfg, flags.package), DictConfig | ListConfig):
            raise ValueError(f"--package {flags.package}: no such section")
        shown = [f"--cfg={flags.cfg}", *section] if flags.cfg else [f"--info={flags.info}"]
        through_hydra(verb.name, job, [*shown, *(["--resolve"] if flags.resolve else []), *overrides])
        return 0
    check_inputs(cfg, verb.inputs)
    if flags.multirun or (cfg.hydra.mode is not None and cfg.hydra.mode.name == "MULTIRUN"):
        own = [text for text in overrides if not text.startswith("output_dir=")]
        return _sweep(verb, own, Path(given[-1].strip("'\"") if given else str(cfg.hydra.sweep.dir)))
    for text in overrides:
        if text.startswith(("hydra.run.", "hydra.sweep.")):
            raise ValueError(f"{text}: one run writes where output_dir=... says; hydra.sweep.* needs -m")
    with open_dict(cfg):
        del cfg["hydra"]
    place(cfg, verb.name)
    return _exit_code(verb.load()(cfg))


def place(cfg: DictConfig, verb: str, folder: Path | None = None) -> None:
    """Say where the run writes: ``folder``, else ``output_dir`` as it stands, else ``outputs/<verb>/<timestamp>``.

    A configuration without the key ``output_dir`` writes into no folder of its own.

    Raises:
        ValueError: several processes run together, and each would take a time stamp of its own.
    """
    if "output_dir" not in cfg or (folder is None and OmegaConf.select(cfg, "output_dir") is not None):
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


def _sweep(verb: Verb, overrides: Sequence[str], folder: Path) -> int:
    """Run every combination through Hydra's sweeper and launcher, then print and write the summary.

    Job ``n`` writes into ``<folder>/<n>``.  Returns 1 where a job ended with an exit code of its own; a job that
    raised raises here.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "-m starts the jobs itself and cannot run under torchrun: for jobs of N processes use "
            "launcher=submitit_slurm (or submitit_local) hydra.launcher.tasks_per_node=N"
        )
    own = [f"hydra.sweep.dir={quote(str(folder))}", f"hydra.job.name={verb.name}", "hydra.job.chdir=false"]
    before = time.time()
    try:
        through_hydra(verb.name, job, ["--multirun", *overrides, *own])
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
    record: dict[str, Any] = {"job": context.job.num, "overrides": list(context.overrides.task), "status": "running"}
    record |= dict.fromkeys(("objective", "seconds", "error"))
    file = folder / JOB_FILE
    write_text(file, json.dumps(record, indent=2) + "\n")
    started = time.perf_counter()
    try:
        result = VERBS[verb].load()(cfg)
        code = _exit_code(result)
        record["status"] = "done" if code == 0 else f"exit {code}"
        record["objective"] = float(result) if isinstance(result, float) else None
    except SystemExit as error:
        record["status"] = f"exit {error.code}"
        raise
    except BaseException as error:
        record["status"] = "failed"
        record["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        record["seconds"] = round(time.perf_counter() - started, 1)
        write_text(file, json.dumps(record, indent=2) + "\n")
    return record["objective"]


def through_hydra(verb: str, task: Callable[[DictConfig], Any], words: Sequence[str]) -> None:
    """Hydra's command line: it reads the process's own, hides exceptions unless told not to, and leaves its logging."""
    argv, variables = sys.argv, os.environ.copy()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    sys.argv = ["stdetr", *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(config_path=str(config_dir()), config_name=verb, **VERSION_OPTIONS)(task)()
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        os.environ.update({name: value for name, value in variables.items() if name == "HYDRA_FULL_ERROR"})


def _exit_code(result: object) -> int:
    """A verb returns an exit code or None; a float is the objective of a sweep, not a failure."""
    return result if isinstance(result, int) and not isinstance(result, bool) else 0
