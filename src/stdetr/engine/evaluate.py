"""``stdetr eval``: score a checkpoint on a data set, anybody's predictions, or compare two runs."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig

from stdetr import config as configs
from stdetr.data.module import DataModule
from stdetr.engine import checkpoint
from stdetr.engine.evaluation_log import log_evaluation, tracked
from stdetr.engine.evaluation_loop import SplitEvaluator, prediction_settings
from stdetr.evaluation import offline
from stdetr.inference.checkpoint import find_weights, load_model
from stdetr.logger import Logger
from stdetr.structures import RunPaths


def run(cfg: DictConfig) -> None:
    """With ``annotations`` and ``predictions`` (or ``compare``): no model is run.  With ``checkpoint``: it is run over
    ``evaluation.split`` of the data set it was trained on, or of ``data`` where the command line names one.
    """
    if cfg.get("compare"):
        offline.run(cfg)
        return
    paths = RunPaths(Path(cfg.output_dir))
    logger: Logger = configs.instantiate(cfg.logger)
    if cfg.get("annotations") or cfg.get("predictions"):
        found, figures = offline.score_files(cfg)
        with tracked(logger, cfg, paths):
            logger.log(0, "files", found.flat())
            log_evaluation(logger, 0, "files", found, figures)
        return
    if cfg.checkpoint is None:
        raise ValueError(
            "checkpoint is not given: stdetr eval checkpoint=RUN, or annotations=FILE predictions=FILE to score files"
        )
    device = torch.device(_device(cfg.device))
    model, trained, classes = load_model(cfg.checkpoint, device)
    # The data of the training run, unless the command line says otherwise.
    data: DataModule = configs.instantiate(cfg.data if cfg.get("data") is not None else trained.data)
    evaluation = cfg.evaluation
    data.prepare()
    if tuple(data.classes.names) != tuple(classes.names):
        raise ValueError(
            f"checkpoint={cfg.checkpoint} knows the classes {', '.join(classes.names)}, but the data set has "
            f"{', '.join(data.classes.names)}"
        )
    evaluator = SplitEvaluator(
        data=data,
        split=evaluation.split,
        paths=paths,
        device=device,
        evaluators=list(evaluation.evaluators),
        predict=prediction_settings(evaluation),
        frames=cfg.frames,
        causal=bool(trained.model.causal),
        logger=logger,
    )
    step = int(checkpoint.read_meta(find_weights(cfg.checkpoint).parent)["step"])
    with tracked(logger, cfg, paths):
        logger.log(step, evaluation.split, evaluator(model, step))
    print(f"wrote {paths.evaluation / 'metrics.json'} and {paths.root / 'predictions.json'}", flush=True)


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
