"""``stdetr train``: build everything from the config, train, evaluate, record."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from stdetr import checkpoint
from stdetr import config as configs
from stdetr.config import RunPaths
from stdetr.data.loader import ClipLoader
from stdetr.data.module import DataModule
from stdetr.engine import processes, resume
from stdetr.engine.evaluation_loop import SplitEvaluator
from stdetr.engine.state import RunRecord
from stdetr.engine.stop import Stopped, StopRequest, stop_signals
from stdetr.engine.trainer import Trainer
from stdetr.structures import ClipBatch


def run(cfg: DictConfig) -> float:
    """Train as ``cfg`` says, together with the other processes of the run; returns the monitored metric, for
    sweepers.
    """
    _refuse_idle_window(cfg)
    with (
        stop_signals() as stop,
        processes.together(cpu=bool(cfg.trainer.cpu)),
        processes.sole_run(Path(cfg.output_dir)),
        configs.trusting(cfg.trust),
    ):
        return _train(cfg, stop)


def _train(cfg: DictConfig, stop: StopRequest) -> float:
    paths = RunPaths(Path(cfg.output_dir))
    start = processes.on_main(lambda: resume.find(cfg, paths))
    if cfg.trainer.get("threads"):
        torch.set_num_threads(int(cfg.trainer.threads))
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it reports every file of every checkpoint

    data: DataModule = configs.instantiate(cfg.data)
    classes = processes.one_by_one(lambda: data.read("train", cfg.evaluation.split))
    annotations = processes.on_main(lambda: checkpoint.sha256(data.annotations("train")))
    order = None
    if start is not None:
        start, order = start.with_annotations(annotations), start.class_order(classes)
    with open_dict(cfg):
        cfg.model.classes = len(classes)

    trainer: Trainer = configs.instantiate(cfg.trainer)
    seed_everything(int(cfg.seed))
    model: nn.Module = configs.instantiate(cfg.model.detector)
    if cfg.init_from is not None and start is None:
        processes.say(checkpoint.load_weights(model, Path(cfg.init_from), classes=classes))
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    processes.say(
        f"model {parameters / 1e6:.2f} M parameters ({trained / 1e6:.2f} M trained), {len(classes)} classes, "
        f"{processes.count()} x {trainer.device.type}, {torch.get_num_threads()} CPU threads"
    )
    if start is not None:
        _say_resumed(start)

    logger = configs.instantiate(cfg.logger)
    evaluator = SplitEvaluator.from_config(cfg, data, paths, trainer.device, logger)
    processes.on_main(lambda: trainer.check_monitor(evaluator.metric_names()))
    if start is None or start.step < trainer.max_steps:
        processes.on_main(lambda: resume.keep_config(cfg, paths, start))
    notes = {"annotations": annotations, "history": [] if start is None else start.history(paths)}
    exit_code = 1
    try:
        metrics = trainer.fit(
            model=model,
            criterion=configs.instantiate(cfg.criterion),
            loader=_loader(cfg, data),
            optim=configs.instantiate(cfg.optim),
            evaluate=evaluator,
            logger=logger,
            record=RunRecord(paths, classes, _plain(cfg), notes),
            resume=start,
            class_order=order,
            stop=stop,
        )
        # A kill after the last save may have left more older checkpoints than are kept, and nothing is saved after it.
        processes.on_main(lambda: checkpoint.recover(paths.last, trainer.keep))
        exit_code = 0
    except Stopped as stopped:
        exit_code = int(stopped.code or 0)
        raise
    finally:
        logger.finish(exit_code)
    value = metrics.get(trainer.monitor)
    processes.say(f"run: {paths.root}")
    return float("nan") if value is None else float(value)


def _say_resumed(start: resume.Resume) -> None:
    unchecked = "" if "sha256" in start.meta else " (from an earlier version, without checksums: not verified)"
    processes.say(f"resuming {start.folder} at step {start.step}{unchecked}")
    if start.changes:
        processes.say(f"from here on: {resume.described(start.changes)}")


def _refuse_idle_window(cfg: DictConfig) -> None:
    window, layers = (OmegaConf.select(cfg, f"model.{key}") for key in ("window", "encoder_layers"))
    if window is not None and layers == 0:
        raise ValueError(
            f"model.window={window} is the window of the encoder, which has no layers (model.encoder_layers=0): "
            "set model.window=null, or model.decoder_window for the decoder's"
        )


def _loader(cfg: DictConfig, data: DataModule) -> Callable[[int, int, bool], Iterable[ClipBatch]]:
    """The loader for ``Trainer.fit``: this process's share of the batches of an epoch.  Each phase has one loader,
    whose workers live as long as the phase.
    """
    share = processes.share()
    if cfg.overfit is not None:
        if cfg.overfit < 1:
            raise ValueError(f"overfit={cfg.overfit} must be at least 1 clip, or null")
        batch = next(iter(data.train_loader(batch_size=int(cfg.overfit), share=share)))
        return lambda epoch, start, single: [batch.split_frames() if single else batch]
    current: list[tuple[bool, ClipLoader]] = []

    def batches(epoch: int, start: int, single: bool) -> ClipLoader:
        if not current or current[0][0] != single:
            current.clear()  # ends the workers of the other phase
            current.append((single, data.train_loader(frames=1 if single else None, share=share)))
        loader = current[0][1]
        loader.start_at(epoch, start)
        return loader

    return batches


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that draw from the global generator
    torch.manual_seed(seed)


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}
