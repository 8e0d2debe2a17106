"""Evaluate a model on a split: predictions, metrics, sample pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from stdetr import config as configs
from stdetr.atomic import write_text
from stdetr.config import RunPaths
from stdetr.data.module import DataModule
from stdetr.data.subsets import keep_classes
from stdetr.engine import processes
from stdetr.engine.evaluation_log import log_evaluation
from stdetr.engine.predictions import SeenVideo, SplitPredictions, join_videos, predict_videos
from stdetr.evaluation.evaluate import evaluate
from stdetr.evaluation.ground_truth import GroundTruth
from stdetr.evaluation.offline import rescored
from stdetr.evaluation.report import write_reports
from stdetr.inference.detector import Detector
from stdetr.inference.journal import Journal
from stdetr.inference.samples import draw_samples
from stdetr.logger import Logger
from stdetr.stitch.association import StitchRules
from stdetr.structures import ClassNames


class SplitEvaluator:
    """Called with a model and a step: predicts the split, scores it, writes ``eval/metrics.json`` and
    ``predictions.json`` below the run, and returns the metrics.

    settings: the config node ``evaluation``
    frames: T at evaluation, None = the T of the data config
    logger: receives the tables and figures of the report
    key: what the predictions depend on; with it, a run that was interrupted goes on when it is started again
    rescore: average scores along tracks first
    classes: the model's, where they are not the data set's: those of equal name are scored, the others left out
    whole_step: the step whose evaluation takes every frame, whatever ``evaluation.thin`` says
    """

    def __init__(
        self,
        *,
        data: DataModule,
        settings: DictConfig,
        paths: RunPaths,
        device: torch.device,
        frames: int | None = None,
        causal: bool = False,
        draw: Callable[[nn.Module, int], None] | None = None,
        logger: Logger | None = None,
        whole_step: int | None = None,
        key: str | None = None,
        rescore: bool = False,
        classes: ClassNames | None = None,
    ) -> None:
        self.data, self.settings, self.paths, self.device = data, settings, paths, device
        self.split, self.evaluators, self.causal = str(settings.split), list(settings.evaluators), causal
        self.frames = int(frames or data.frames)
        self.draw, self.logger, self.key = draw, logger, key
        self.metrics: dict[str, float | None] = {}
        self.whole_step, self.rescore = whole_step, rescore
        self._thin = thin_settings(settings.thin, self.frames, int(settings.overlap))
        known = data.classes
        self.classes = known if classes is None or classes.names == known.names else classes.matched(known)

    @classmethod
    def from_config(
        cls, cfg: DictConfig, data: DataModule, paths: RunPaths, device: torch.device, logger: Logger | None
    ) -> SplitEvaluator:
        """From the keys ``evaluation``, ``viz`` and ``model.causal`` of a config; samples are drawn where a logger
        takes them.
        """
        evaluator = cls(
            data=data,
            settings=cfg.evaluation,
            paths=paths,
            device=device,
            frames=cfg.evaluation.get("frames"),
            causal=bool(cfg.model.causal),
            logger=logger,
            whole_step=None if cfg.trainer.thin_final else int(cfg.trainer.max_steps),
        )
        if logger is not None and int(cfg.viz.samples) > 0:
            evaluator.draw = SampleDrawer(cfg.viz, evaluator, logger)
        return evaluator

    def __call__(self, model: nn.Module, step: int) -> dict[str, float | None]:
        """Called on every process: each predicts its share of the videos; the main process does the rest."""
        started, split = time.perf_counter(), self.split
        if self._thin is not None and step != self.whole_step:
            windows, frames = self._thin
            split = processes.one_by_one(lambda: self.data.thinned(self.split, windows, frames, self.paths.evaluation))
        predictions = self._predictions(model, split)
        self.metrics = processes.on_main(lambda: self._report(model, step, split, predictions, started))
        return self.metrics

    def metric_names(self) -> list[str]:
        """The metrics that an evaluation gives, from one without predictions.

        Raises ValueError where the split cannot be scored.
        """
        annotations, evaluators = self._scored(self.split), tuple(self.evaluators)
        scored = evaluate(
            annotations, [], [], evaluators=evaluators, causal=self.causal, seeds=1, by=list(self.settings.by)
        )
        return list(scored.flat())

    def _report(
        self, model: nn.Module, step: int, split: str, predictions: SplitPredictions, started: float
    ) -> dict[str, float | None]:
        annotations, frames = self._scored(split), predictions.frames
        if self.rescore:
            frames = rescored(frames, GroundTruth.from_coco(annotations), self.settings)
        scored = evaluate(
            annotations,
            frames,
            predictions.tubes,
            evaluators=tuple(self.evaluators),
            causal=self.causal,
            seeds=1,
            by=list(self.settings.by),
        )
        if self.rescore:
            scored = replace(scored, sources=scored.sources | {"rescored": "tracks"})
        metrics = scored.flat()
        figures = write_reports(scored, self.paths.root)
        frames.write_results(self.paths.root / "predictions.json")
        write_text(self.paths.root / "tubes.json", json.dumps(predictions.tubes))
        for path in self.paths.evaluation.glob(self._progress("*").name):
            path.unlink()
        print(f"step {step}: {split} evaluated in {time.perf_counter() - started:.0f} s", flush=True)
        print(summary(metrics), flush=True)
        if self.logger is not None:
            log_evaluation(self.logger, step, self.split, scored, figures)
        if self.draw is not None:
            self.draw(model, step)
        return metrics

    def detector(self, model: nn.Module) -> Detector:
        """The model as it is evaluated."""
        settings = self.settings
        return Detector(
            model,
            self.classes,
            self.data.eval_transform,
            clip_length=self.frames,
            overlap=settings.overlap,
            top_k=settings.top_k,
            presence_threshold=settings.presence_threshold,
            rules=StitchRules(**configs.instantiate(settings.stitch)),
            batch_size=self.data.loader.eval_batch_size,
            pad_to=self.data.loader.pad_to,
            device=self.device,
        )

    def _scored(self, split: str) -> Path:
        """The annotation file of ``split``, without the classes that the model does not know."""
        annotations, known = self.data.annotations(split), self.data.classes
        if set(known.ids) <= set(self.classes.ids):
            return annotations
        return keep_classes(annotations, (self.paths.evaluation / f"{split}-shared.json").resolve(), self.classes.ids)

    def _predictions(self, model: nn.Module, split: str) -> SplitPredictions:
        """The predictions of ``model`` on ``split``; empty on processes other than the main one."""
        index, was_training = self.data.index(split), model.training
        lengths = dict(zip(index.video_ids.tolist(), index.video_lengths.tolist(), strict=True))
        done = processes.on_main(self._seen_before)
        batches = self.data.eval_loader(
            split, frames=self.frames, share=processes.share(), without=[seen.video for seen in done]
        )
        keys = {name: self.settings[name] for name in ("score_threshold", "fill_gap", "prior_frames")}
        journal = None if self.key is None else Journal(self._progress(processes.rank()), self.key)
        videos = []
        for seen in predict_videos(self.detector(model), batches, lengths, **keys):
            videos.append(seen)
            if journal is not None:
                journal.append(seen.record())
        model.train(was_training)
        gathered = processes.gather(videos)
        joined = join_videos([*done, *gathered] if processes.rank() == 0 else [], lengths)
        if min(self.classes.ids, default=0) >= 0:
            return joined
        tubes = [tube for tube in joined.tubes if tube["category_id"] >= 0]
        return SplitPredictions(joined.frames.take(joined.frames.category_ids >= 0), tubes)

    def _progress(self, process: int | str) -> Path:
        """Where a process takes down the videos that it has predicted; they go when the evaluation is written."""
        return self.paths.evaluation / f".progress.{process}.jsonl"

    def _seen_before(self) -> list[SeenVideo]:
        """The videos that an interrupted run of the same command has predicted, on however many processes."""
        if self.key is None:
            return []
        found: list[SeenVideo] = []
        for path in sorted(self.paths.evaluation.glob(self._progress("*").name)):
            journal = Journal(path, self.key)
            found += map(SeenVideo.from_record, journal)
            journal.close()
        if found:
            print(f"goes on after {len(found)} videos of the run before", flush=True)
        return found


def thin_settings(thin: Sequence[int] | None, frames: int, overlap: int) -> tuple[int, int] | None:
    """The key ``evaluation.thin`` for clips of ``frames`` frames; ValueError where those do not fit."""
    if thin is None:
        return None
    if len(thin) != 2 or not all(isinstance(value, int) and value >= 1 for value in thin):
        raise ValueError(f"evaluation.thin={list(thin)} must be [windows,frames], two whole numbers of at least 1")
    windows, length = thin
    if length % frames:
        raise ValueError(
            f"evaluation.thin={list(thin)}: windows of {length} frames cannot be cut into clips of {frames} "
            f"(data.frames, or frames of eval); give a multiple of {frames}"
        )
    if overlap:
        raise ValueError(
            f"evaluation.overlap={overlap} would join the windows of evaluation.thin={list(thin)}: set one"
        )
    return windows, length


class SampleDrawer:
    """Draws the predictions on some videos of the evaluated split, below ``media/``, and logs them: a video of
    detections next to annotations, and a figure of where the decoder sampled.
    """

    def __init__(self, viz: DictConfig, evaluator: SplitEvaluator, logger: Logger) -> None:
        self.viz, self.evaluator, self.logger = viz, evaluator, logger

    def __call__(self, model: nn.Module, step: int) -> None:
        evaluator = self.evaluator
        samples = draw_samples(
            evaluator.detector(model),
            evaluator.data.index(evaluator.split),
            evaluator.data.root,
            evaluator.paths.media / f"step{step}",
            count=int(self.viz.samples),
            score_threshold=float(self.viz.overlay.score_threshold),
            sampling=dict(self.viz.sampling),
            backend=evaluator.data.backend,
            on_corrupt=evaluator.data.on_corrupt,
        )
        for sample in samples:
            self.logger.log_media(step, f"samples/{sample.video}", sample.overlay)
            self.logger.log_media(step, f"sheets/{sample.video}", sample.sheet)
            if sample.sampling is not None:
                self.logger.log_media(step, f"sampling/{sample.video}", sample.sampling)


def summary(metrics: Mapping[str, float | None]) -> str:
    """A few lines: overall numbers first, then per class."""
    overall = {k: v for k, v in metrics.items() if k.count("/") == 1}
    classes = sorted({k.split("/")[2] for k in metrics if k.count("/") == 2})
    lines = []
    for prefix in dict.fromkeys(k.split("/")[0] for k in overall):
        values = [f"{k.split('/')[1]} {_number(v)}" for k, v in overall.items() if k.startswith(prefix + "/")]
        lines.append(f"  {prefix:8s} " + "  ".join(values))
    for name in classes:
        ap, ap50 = metrics.get(f"coco/AP/{name}"), metrics.get(f"coco/AP50/{name}")
        lines.append(f"  {name:24s} AP {_number(ap)}  AP50 {_number(ap50)}")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
