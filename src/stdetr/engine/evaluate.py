"""``stdetr eval``: score a checkpoint on a data set or any predictions, or compare two runs."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from stdetr import config as configs
from stdetr.config import RunPaths
from stdetr.engine.evaluation_log import log_evaluation, logged_run
from stdetr.evaluation import offline
from stdetr.lock import locked
from stdetr.logger import Logger


def run(cfg: DictConfig) -> None:
    """With ``annotations`` and ``predictions`` (or ``compare``), no model runs.  With ``checkpoint``, it runs over
    ``evaluation.split`` of the data set it was trained on, or of ``data`` if the command line names one.
    """
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

    paths = RunPaths(Path(cfg.output_dir))
    logger: Logger = configs.instantiate(cfg.logger)
    device = processes.device(cfg.device)
    model, trained, classes = load_model(cfg.checkpoint, device)
    for key in ("stride", "last"):  # of older runs
        if "eval_sampler" in trained.data:
            OmegaConf.set_struct(trained, False)
            trained.data.eval_sampler.pop(key, None)
    data: DataModule
    if cfg.get("data") is not None:
        data = configs.instantiate(cfg.data)
    else:
        # The data of the training run.  A checkpoint may come from anywhere: it does not say where to write.
        if OmegaConf.select(trained, "data.cache_dir") is not None:
            trained.data.cache_dir = str(Path(cfg.paths.data) / "cache")
        data = configs.instantiate(trained.data)
        if not data.is_there():
            raise ValueError(f"checkpoint={cfg.checkpoint}: its data set is not on this machine; generate it: data=toy")
    evaluation = cfg.evaluation
    known = processes.one_by_one(lambda: data.read(evaluation.split))
    if tuple(known.names) != tuple(classes.names):
        raise ValueError(
            f"checkpoint={cfg.checkpoint} knows the classes {', '.join(classes.names)}, but the data set has "
            f"{', '.join(known.names)}"
        )
    settings = OmegaConf.masked_copy(
        cfg, [str(key) for key in cfg if key not in ("output_dir", "paths", "logger", "device", "trust")]
    )
    evaluator = SplitEvaluator(
        data=data,
        settings=evaluation,
        paths=paths,
        device=device,
        frames=cfg.frames,
        causal=bool(trained.model.causal),
        logger=logger,
        key=fingerprint(settings, checkpoint.find_weights(cfg.checkpoint), data.annotations(evaluation.split)),
    )
    step = int(checkpoint.read_meta(checkpoint.find_weights(cfg.checkpoint).parent).get("step") or 0)
    with logged_run(logger, cfg, paths) if processes.rank() == 0 else nullcontext():
        metrics = evaluator(model, step)
        if processes.rank() == 0:
            logger.log(step, evaluation.split, metrics)
    processes.say(f"wrote {paths.evaluation / 'metrics.json'} and {paths.root / 'predictions.json'}")
