"""``stdetr train``: build everything from the config, train, evaluate, record."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from stdetr import config as configs
from stdetr.data.module import DataModule
from stdetr.engine import checkpoint
from stdetr.engine.evaluation_loop import SplitEvaluator
from stdetr.engine.trainer import Trainer
from stdetr.inference.checkpoint import load_weights
from stdetr.structures import ClipBatch, RunPaths


def run(cfg: DictConfig) -> float:
    """Train as ``cfg`` says; returns the monitored metric, for sweepers."""
    paths = RunPaths(Path(cfg.output_dir))
    resume = _find_resume(cfg, paths)
    if cfg.trainer.get("threads"):
        torch.set_num_threads(int(cfg.trainer.threads))
    seed_everything(int(cfg.seed))
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it reports every file of every checkpoint

    data: DataModule = configs.instantiate(cfg.data)
    data.prepare()
    classes = data.classes
    with open_dict(cfg):
        cfg.model.classes = len(classes)
    paths.root.mkdir(parents=True, exist_ok=True)
    configs.save_config(cfg, paths.config)

    trainer: Trainer = configs.instantiate(cfg.trainer)
    seed_everything(int(cfg.seed))
    model: nn.Module = configs.instantiate(cfg.model.detector)
    if cfg.init_from is not None and resume is None:
        print(load_weights(model, Path(cfg.init_from)), flush=True)
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(
        f"model {parameters / 1e6:.2f} M parameters ({trained / 1e6:.2f} M trained), {len(classes)} classes, "
        f"device {trainer.device}, {torch.get_num_threads()} CPU threads",
        flush=True,
    )
    if resume is not None:
        print(f"resuming {resume} at step {checkpoint.read_meta(resume)['step']}", flush=True)

    overfitted = _first_clips(data, int(cfg.overfit)) if cfg.overfit is not None else []

    def loader(epoch: int, start_batch: int, single_frames: bool) -> Iterator[ClipBatch]:
        if cfg.overfit is not None:
            return iter([batch.split_frames() if single_frames else batch for batch in overfitted])
        return iter(data.train_loader(epoch, frames=1 if single_frames else None, start_batch=start_batch))

    logger = configs.instantiate(cfg.logger)
    evaluator = SplitEvaluator.from_config(cfg, data, paths, trainer.device, logger)
    exit_code = 1
    try:
        metrics = trainer.fit(
            model=model,
            criterion=configs.instantiate(cfg.criterion),
            loader=loader,
            optim=configs.instantiate(cfg.optim),
            evaluate=evaluator,
            logger=logger,
            paths=paths,
            classes=classes,
            config=_plain(cfg),
            resume=resume,
            seed=int(cfg.seed),
        )
        exit_code = 0
    finally:
        logger.finish(exit_code)
    value = metrics.get(trainer.monitor)
    print(f"run: {paths.root}", flush=True)
    return float("nan") if value is None else float(value)


def _first_clips(data: DataModule, clips: int) -> list[ClipBatch]:
    """One batch of the same ``clips`` clips, over and over."""
    if clips < 1:
        raise ValueError(f"overfit={clips} must be at least 1 clip, or null")
    return [next(iter(data.train_loader(0, batch_size=clips)))]


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that draw from the global generator
    torch.manual_seed(seed)


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def _find_resume(cfg: DictConfig, paths: RunPaths) -> Path | None:
    if cfg.resume is None:
        if paths.checkpoints.exists():
            raise ValueError(
                f"output_dir={paths.root} already holds a run and resume=null; choose another output_dir or resume=auto"
            )
        return None
    if cfg.resume == "auto":
        return checkpoint.find_resume(paths.last)
    folder = Path(cfg.resume)
    for candidate in (folder, folder / "checkpoints" / "last"):
        found = checkpoint.find_resume(candidate)
        if found is not None:
            return found
    raise FileNotFoundError(f"resume={folder} holds no state to go on from; give a run folder or checkpoints/last")
