"""``stdetr eval``: score a checkpoint on a data set or any predictions, or compare two runs."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from stdetr import config as configs
from stdetr.class_names import ClassNames
from stdetr.config import RunPaths
from stdetr.engine.evaluation_log import log_evaluation, logged_run
from stdetr.evaluation import offline
from stdetr.lock import locked
from stdetr.logger import Logger
from stdetr.names import key_paths, within

USED = {
    "compare": (
        "compare", "annotations", "evaluators", "bootstrap_draws", "rescore", "evaluation.group", "evaluation.by",
    ),
    "predictions": (
        "annotations", "predictions", "tubes", "evaluators", "causal", "seeds", "timestamps", "latency_ms",
        "frame_rate", "rescore", "evaluation.by", "evaluation.stitch", "logger",
    ),
    "checkpoint": ("checkpoint", "trust", "device", "rescore", "frames", "data", "evaluation", "logger"),
}  # fmt: skip
"""Keys and sections that each way of evaluating reads, beside those of ``ALWAYS``."""
ALWAYS = ("output_dir", "paths", "seed", "hydra")


def run(cfg: DictConfig) -> None:
    """With ``annotations`` and ``predictions`` (or ``compare``), no model runs.  With ``checkpoint``, it runs over
    ``evaluation.split`` of the data set it was trained on, or of ``data`` if the command line names one.
    """
    _refuse_unused(cfg)
    if cfg.get("compare") or cfg.get("annotations") or cfg.get("predictions"):
        # One process scores files, and without torch: importing that takes longer.
        if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0:
            _score_files(cfg)
        return
    if cfg.checkpoint is None:
        raise ValueError(
            "checkpoint is not given: stdetr eval checkpoint=RUN, or annotations=FILE predictions=FILE to score files"
        )
    from stdetr.engine import processes

    with (
        processes.together(cpu=cfg.device == "cpu"),
        processes.sole_run(Path(cfg.output_dir)),
        configs.trusting(cfg.trust),
    ):
        _evaluate_checkpoint(cfg)


def _refuse_unused(cfg: DictConfig) -> None:
    """ValueError for a key that was given and that this way of evaluating does not read."""
    files = cfg.get("annotations") or cfg.get("predictions")
    way = "compare" if cfg.get("compare") else "predictions" if files else "checkpoint"
    default, plain = configs.compose("eval"), OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    for key in key_paths(plain):
        value = OmegaConf.select(cfg, key)
        if within(key, ALWAYS) or isinstance(value, DictConfig) or value == OmegaConf.select(default, key):
            continue
        readers = " and ".join(f"{name}=..." for name in USED if within(key, USED[name]))
        told = f"; it belongs to {readers}"
        if way == "checkpoint" and key == "evaluation.group":
            told = "; it belongs to compare=..."
        elif way == "checkpoint" and key == "evaluators":
            told = "; give evaluation.evaluators"
        elif way == "predictions" and within(key, ["evaluation.stitch"]) and not cfg.get("rescore"):
            told = " without rescore=tracks"
        elif within(key, USED[way]):
            continue
        raise ValueError(f"{key}={value}: eval with {way}={cfg.get(way)} does not use it{told}")


def _score_files(cfg: DictConfig) -> None:
    if cfg.get("compare"):
        offline.run(cfg)
        return
    with locked(Path(cfg.output_dir)) if cfg.get("output_dir") else nullcontext():
        _score_and_log(cfg)


def _score_and_log(cfg: DictConfig) -> None:
    logger: Logger = configs.instantiate(cfg.logger)
    evaluation, figures = offline.score_files(cfg)
    with logged_run(logger, cfg, RunPaths(Path(cfg.output_dir))):
        logger.log(0, "files", evaluation.flat())
        log_evaluation(logger, 0, "files", evaluation, figures)


def _evaluate_checkpoint(cfg: DictConfig) -> None:
    from stdetr import checkpoint
    from stdetr.data.module import DataModule
    from stdetr.engine import processes
    from stdetr.engine.evaluation_loop import SplitEvaluator
    from stdetr.inference.journal import fingerprint
    from stdetr.inference.load import load_model

    paths, rescore = RunPaths(Path(cfg.output_dir)), offline.check_rescore(cfg.rescore)
    logger: Logger = configs.instantiate(cfg.logger)
    device = processes.device(cfg.device)
    model, trained, classes = load_model(cfg.checkpoint, device)
    for key in ("stride", "last"):  # of older runs
        if "eval_sampler" in trained.data:
            OmegaConf.set_struct(trained, False)
            trained.data.eval_sampler.pop(key, None)
    data: DataModule = configs.instantiate(_data(cfg, trained))
    if cfg.data.get("_target_") is None and not data.is_there():
        raise ValueError(f"checkpoint={cfg.checkpoint}: its data set is not on this machine; generate it: data=toy")
    evaluation = cfg.evaluation
    known = processes.one_by_one(lambda: data.read(evaluation.split))
    settings = OmegaConf.masked_copy(
        cfg, [str(key) for key in cfg if key not in ("output_dir", "paths", "logger", "device", "trust")]
    )
    evaluator = SplitEvaluator(
        data=data,
        settings=evaluation,
        paths=paths,
        device=device,
        frames=cfg.frames,
        # Whole tracks, so later frames, decide the scores that rescoring gives.
        causal=bool(trained.model.causal) and rescore is None,
        logger=logger,
        key=fingerprint(settings, checkpoint.find_weights(cfg.checkpoint), data.annotations(evaluation.split)),
        classes=classes,
        rescore=rescore is not None,
    )
    if tuple(known.names) != tuple(classes.names):
        _tell(known, classes)
    step = int(checkpoint.read_meta(checkpoint.find_weights(cfg.checkpoint).parent).get("step") or 0)
    with logged_run(logger, cfg, paths) if processes.rank() == 0 else nullcontext():
        metrics = evaluator(model, step)
        if processes.rank() == 0:
            logger.log(step, evaluation.split, metrics)
    processes.say(f"wrote {paths.evaluation / 'metrics.json'} and {paths.root / 'predictions.json'}")


def _data(cfg: DictConfig, trained: DictConfig) -> DictConfig:
    """The data of the training run, unless the command line names another data set (``data``) or folder."""
    if cfg.data.get("_target_") is not None:
        return cfg.data
    given = {key: value for key, value in cfg.data.items() if value is not None}
    if OmegaConf.select(trained, "data.cache_dir") is not None:
        # A checkpoint may come from anywhere: it does not say where to write.
        given = {"cache_dir": str(Path(cfg.paths.data) / "cache")} | given
    if "root" in given:
        # Another folder need not have the other splits, nor is it the benchmark that can generate itself.
        split = cfg.evaluation.split
        others = {"train": None, "val": None, "test": None, "benchmark": None}
        given = {**others, split: trained.data.get(split) or f"{split}.json"} | given
    merged = OmegaConf.merge(trained.data, given)
    assert isinstance(merged, DictConfig)
    return merged


def _tell(known: ClassNames, classes: ClassNames) -> None:
    from stdetr.engine import processes

    names = {name.casefold() for name in known.names}, {name.casefold() for name in classes.names}
    shared = [name for name in known.names if name.casefold() in names[1]]
    here = [name for name in known.names if name.casefold() not in names[1]]
    there = [name for name in classes.names if name.casefold() not in names[0]]
    processes.say(
        f"classes matched by name: {', '.join(shared)}; left out of the data set: {', '.join(here) or 'none'}; of the "
        f"checkpoint: {', '.join(there) or 'none'}"
    )
