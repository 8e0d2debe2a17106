"""The training loop.

Accelerate handles devices, processes, mixed precision and resumable state; the loop itself is written out here.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn
from tqdm import tqdm

from stdetr import checkpoint
from stdetr.config import RunPaths
from stdetr.data.collate import pad_batch
from stdetr.engine import processes
from stdetr.engine.average import WeightAverage
from stdetr.engine.batch_norm import share_statistics
from stdetr.engine.optim import Optimisation
from stdetr.logger import Logger
from stdetr.losses.criterion import TubeCriterion
from stdetr.models.denoising import TubeDenoising
from stdetr.models.draws import mix, seed_clips
from stdetr.names import did_you_mean
from stdetr.structures import ClassNames, ClipBatch

Metrics = Mapping[str, float | None]
# Called on every process with the (averaged) model and the step; all get the same metrics.  Its files go below the
# run's folder.
Evaluate = Callable[[nn.Module, int], Metrics]


class Trainer:
    """Trains for ``max_steps`` optimiser steps.

    max_steps: optimiser steps of the whole run, however often it is stopped and resumed
    stop_at: save and stop after this step; the schedule stays that of ``max_steps``, so that runs which resume from
        there into folders of their own share everything before; null = train to the end
    single_frame: the first steps (a fraction of the run if below 1, else a number) train on single frames drawn
        independently, as many per step as the clips have: more varied objects and more matched queries per step
    accumulate: batches per optimiser step; precision: ``no | bf16 | fp16 | auto`` (bf16 on GPUs that have it)
    ema_decay: decay of the averaged weights that are evaluated and saved; null = none
    eval_every, save_every, log_every: in steps; 0 = only at the end; eval_start: one evaluation after that many steps,
        so that a mistake shows early (0 = none); the state is also saved before every evaluation
    thin_final: the last evaluation is thinned by ``evaluation.thin`` like the others, instead of taking every frame
    keep: number of checkpoints before ``checkpoints/last`` that are kept as ``checkpoints/last.<step>``
    monitor: the metric whose best value picks ``checkpoints/best``
    threads: CPU threads of PyTorch; null = its default
    deterministic: one seed gives bitwise equal weights, also with several threads or on a GPU; somewhat slower
    """

    def __init__(
        self,
        *,
        max_steps: int,
        stop_at: int | None = None,
        single_frame: float = 0.0,
        accumulate: int = 1,
        precision: str = "auto",
        ema_decay: float | None = 0.999,
        log_every: int = 20,
        eval_every: int = 0,
        eval_start: int = 0,
        thin_final: bool = False,
        save_every: int = 0,
        keep: int = 1,
        monitor: str = "coco/AP",
        threads: int | None = None,
        cpu: bool = False,
        deterministic: bool = False,
    ) -> None:
        for name, value in (("max_steps", max_steps), ("accumulate", accumulate), ("log_every", log_every)):
            if value < 1:
                raise ValueError(f"trainer.{name}={value} must be at least 1")
        if keep < 0:
            raise ValueError(f"trainer.keep={keep} must be at least 0")
        if precision not in ("no", "bf16", "fp16", "auto"):
            raise ValueError(f"trainer.precision={precision!r}; known: no, bf16, fp16, auto")
        if stop_at is not None and not 1 <= stop_at < max_steps:
            raise ValueError(f"trainer.stop_at={stop_at} must lie between 1 and trainer.max_steps={max_steps} - 1")
        self.max_steps, self.accumulate = max_steps, accumulate
        self.last_step = max_steps if stop_at is None else stop_at
        self.single_frame_steps = round(single_frame * max_steps if single_frame < 1 else single_frame)
        self.ema_decay, self.monitor, self.keep = ema_decay, monitor, keep
        self.log_every, self.eval_every, self.eval_start, self.save_every = (
            log_every,
            eval_every,
            eval_start,
            save_every,
        )
        self.threads, self.deterministic, self.thin_final = threads, deterministic, thin_final
        if precision == "auto":
            usable = torch.cuda.is_available() and not cpu and torch.cuda.is_bf16_supported()
            precision = "bf16" if usable else "no"
        if precision == "fp16" and (cpu or not torch.accelerator.is_available()):
            raise ValueError("trainer.precision=fp16 needs a GPU; on the CPU choose no or bf16")
        # One process may train several times with different precisions, as in a sweep.
        AcceleratorState._reset_state()
        parallel = DistributedDataParallelKwargs(
            # Some parameters get no gradient: the temporal ones from single frames, the labels' embedding from a batch
            # without a track.  As frames and tracks are counted over all processes, they are the same on each.
            find_unused_parameters=True,
            # Statistics of batch normalisation are those of the whole batch: equal everywhere already.
            broadcast_buffers=False,
        )
        self.accelerator = Accelerator(
            mixed_precision=precision,
            # A number could be overridden by the environment that `accelerate launch` sets.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulate),
            cpu=cpu,
            kwargs_handlers=[parallel],
        )

    def _set_process_flags(self) -> None:
        """Settings of PyTorch that apply to the whole process, and are therefore made only when training starts."""
        if self.threads:
            torch.set_num_threads(self.threads)
        # Weights that decay towards zero turn into denormals, which CPUs multiply many times slower.
        torch.set_flush_denormal(True)
        # Gathers are differentiated into sums whose order would otherwise depend on the threads.
        torch.use_deterministic_algorithms(self.deterministic, warn_only=True)
        if self.deterministic:
            torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def check_monitor(self, names: Collection[str]) -> None:
        """Raise ValueError where ``monitor`` is none of ``names``, the metrics of an evaluation."""
        if self.monitor not in names:
            near = did_you_mean(self.monitor, names) or f"; there are: {', '.join(sorted(names)[:8])}"
            raise ValueError(f"trainer.monitor={self.monitor!r} is not a metric of this evaluation{near}")

    def fit(
        self,
        *,
        model: nn.Module,
        criterion: TubeCriterion,
        loader: Callable[[int, int, bool], Any],
        optim: Optimisation,
        evaluate: Evaluate,
        logger: Logger,
        paths: RunPaths,
        classes: ClassNames,
        config: dict[str, Any],
        resume: Path | None = None,
    ) -> dict[str, float | None]:
        """
        loader: (epoch, first batch, single frames?) -> this process's share of the batches of that epoch from there on,
            in an order that depends only on the epoch
        resume: a checkpoint folder with state to resume from
        returns the metrics of the last evaluation
        """
        self._set_process_flags()
        accelerator = self.accelerator
        if processes.count() > 1:
            share_statistics(model)
        optimizer = optim.optimizer(model)
        scheduler = optim.scheduler(optimizer, self.max_steps)
        model, optimizer = accelerator.prepare(model, optimizer)
        bare = accelerator.unwrap_model(model)
        average = WeightAverage(bare, self.ema_decay) if self.ema_decay is not None else None
        progress = _Progress()
        accelerator.register_for_checkpointing(scheduler, progress, *([average] if average else []))
        if resume is not None:
            accelerator.load_state(str(resume / checkpoint.STATE))
            accelerator.step = 0  # no batches since the last step, however many processes or batches a step had
            meta = checkpoint.read_meta(resume)
            progress.load_state_dict({key: meta[key] for key in ("metrics", "best", "evaluated") if key in meta})
        # The run may have been stopped between saving and evaluating.
        unevaluated = resume is not None and self._evaluates(progress.step) and progress.evaluated < progress.step
        if accelerator.is_main_process:
            logger.start(config, step=progress.step if resume is not None else None, evaluated=not unevaluated)
        shown = average.model if average is not None else bare
        model.train()
        if unevaluated:
            if resume is not None and resume.resolve() != paths.last.resolve():
                self._save(shown, paths, classes, progress)
            self._evaluate(evaluate, shown, logger, paths, classes, progress)
        meter, started, first_step = _Meter(), time.perf_counter(), progress.step
        bar = tqdm(
            total=self.max_steps, initial=first_step, desc="train", unit="step", dynamic_ncols=True,
            disable=not (accelerator.is_main_process and sys.stderr.isatty()),
        )  # fmt: skip
        while progress.step < self.last_step:
            single = progress.step < self.single_frame_steps
            phase_end = self.single_frame_steps if single else self.max_steps
            for batch in meter.waiting(loader(progress.epoch, progress.batch, single)):
                progress.batch += 1
                with accelerator.accumulate(model):
                    terms, norm = self._step(model, criterion, optimizer, scheduler, batch, progress.step, optim)
                meter.add(terms, norm, batch)
                if not accelerator.sync_gradients:
                    continue
                if average is not None:
                    average.update(bare)
                progress.step += 1
                bar.update()
                step = progress.step
                if single and step == phase_end:
                    # Clips begin with a new epoch; set before the state is saved, for a run that resumes.
                    progress.epoch, progress.batch = progress.epoch + 1, 0
                stops = step == self.last_step
                if step % self.log_every == 0 or stops:
                    self._log(logger, step, meter, optimizer, bar, started, first_step)
                evaluates = self._evaluates(step)
                if evaluates or stops or (self.save_every and step % self.save_every == 0):
                    self._save(shown, paths, classes, progress)
                if evaluates:
                    self._evaluate(evaluate, shown, logger, paths, classes, progress)
                    meter.restart()
                if stops or step >= phase_end:
                    break
            else:
                progress.epoch, progress.batch = progress.epoch + 1, 0
        bar.close()
        return progress.metrics

    def _evaluates(self, step: int) -> bool:
        """Whether an evaluation follows this step."""
        return step in (self.max_steps, self.eval_start) or bool(self.eval_every and step % self.eval_every == 0)

    def _step(
        self,
        model: nn.Module,
        criterion: TubeCriterion,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LambdaLR,
        batch: ClipBatch,
        step: int,
        optim: Optimisation,
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        accelerator, norm = self.accelerator, None
        batch = self._prepare(accelerator.unwrap_model(model), batch, step)
        with accelerator.autocast():
            output = model(batch.frames, batch.sizes, batch.frame_mask, batch.frame_index, targets=batch.targets)
        total, terms = criterion(output, batch.targets)
        if not torch.isfinite(total):
            wrong = [name for name, value in terms.items() if not torch.isfinite(value)]
            raise FloatingPointError(f"loss terms not finite at step {step}: {', '.join(wrong)}; lower optim.lr")
        accelerator.backward(total)
        if accelerator.sync_gradients and optim.clip_norm > 0:
            norm = accelerator.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        if accelerator.sync_gradients:
            scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": total.detach(), **{k: v.detach() for k, v in terms.items()}}, norm

    def _prepare(self, model: nn.Module, batch: ClipBatch, step: int) -> ClipBatch:
        """The batch on the device, padded like the clips of other processes; seeds ``model`` by clip."""
        _, frames, _, height, width = batch.frames.shape
        tracks = max(int(target.valid.any(1).sum()) for target in batch.targets)
        frames, height, width, tracks = processes.largest((frames, height, width, tracks))
        seed_clips(model, [mix(info.seed, step) for info in batch.infos])
        for module in model.modules():
            if isinstance(module, TubeDenoising):
                module.most = tracks
        return pad_batch(batch, frames, height, width).to(self.device, non_blocking=True).normalised()

    def _log(
        self,
        logger: Logger,
        step: int,
        meter: _Meter,
        optimizer: torch.optim.Optimizer,
        bar: tqdm,
        started: float,
        first_step: int,
    ) -> None:
        values = meter.read()
        for group in optimizer.param_groups:
            if "no_decay" not in group.get("name", ""):
                values[f"lr_{group.get('name', 'main')}"] = group["lr"]
        if torch.cuda.is_available() and self.device.type == "cuda":
            values["memory_gb"] = torch.cuda.max_memory_allocated() / 2**30
        if not self.accelerator.is_main_process:
            return
        logger.log(step, "train", values)
        bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
        if bar.disable:
            spent = time.perf_counter() - started
            left = spent / max(1, step - first_step) * (self.max_steps - step)
            speed = values.get("frames_per_second", 0.0)
            print(
                f"step {step}/{self.max_steps}  loss {values['loss']:.3f}  {speed:.0f} frames/s  "
                f"elapsed {spent:.0f} s  left {left:.0f} s",
                flush=True,
            )

    def _evaluate(
        self,
        evaluate: Evaluate,
        model: nn.Module,
        logger: Logger,
        paths: RunPaths,
        classes: ClassNames,
        progress: _Progress,
    ) -> None:
        """Evaluate, and record that in the checkpoint of this step."""
        step = progress.step
        # A run that resumes from the checkpoint has the same random state, whether it evaluates again or not.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            metrics = dict(evaluate(model, step))
        self.check_monitor(metrics)
        value = metrics[self.monitor]
        better = value is not None and (progress.best is None or value > progress.best)
        best = value if better else progress.best

        def record() -> None:
            logger.log(step, "val", metrics)
            if better:
                checkpoint.save(paths.best, model, classes, step=step, metrics=metrics)
                logger.log_artifact("model", paths.best, aliases=("best",))
            checkpoint.amend(paths.last, metrics=metrics, best=best, evaluated=step)

        processes.on_main(record)
        progress.metrics, progress.best, progress.evaluated = metrics, best, step

    def _save(self, model: nn.Module, paths: RunPaths, classes: ClassNames, progress: _Progress) -> None:
        """Everything a run needs to resume with any number of processes: it is the same on all of them."""

        def write() -> None:
            checkpoint.save(
                paths.last, model, classes, step=progress.step, metrics=progress.metrics, keep=self.keep,
                save_state=lambda target: self.accelerator.save_state(str(target), safe_serialization=True),
            )  # fmt: skip

        processes.on_main(write)


class _Progress:
    """Where the run is; saved with accelerate's state."""

    def __init__(self) -> None:
        self.step, self.epoch, self.batch = 0, 0, 0
        self.evaluated = 0  # the step of the last evaluation
        self.best: float | None = None
        self.metrics: dict[str, float | None] = {}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class _Meter:
    """Means since the last log line, over all processes; tensors stay on their device until then."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.terms: dict[str, list[Tensor]] = {}
        self.frames, self.clips, self.waited, self.since = 0, 0, 0.0, time.perf_counter()

    def waiting(self, batches: Iterable[ClipBatch]) -> Iterator[ClipBatch]:
        """The batches; measures the time spent waiting for each."""
        source = iter(batches)
        while True:
            began = time.perf_counter()
            batch = next(source, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def add(self, terms: Mapping[str, Tensor], norm: Tensor | None, batch: ClipBatch) -> None:
        for name, value in terms.items():
            self.terms.setdefault(name, []).append(value)
        if norm is not None:
            self.terms.setdefault("grad_norm", []).append(norm)
        self.frames += batch.frames.shape[0] * batch.frames.shape[1]
        self.clips += batch.frames.shape[0]

    def read(self) -> dict[str, Any]:
        # Normalisers count the clips of all processes: the mean over processes is the loss of the whole batch.
        means = [torch.stack(parts).mean().double().cpu() for parts in self.terms.values()]
        local = torch.tensor([*means, self.waited, self.frames, self.clips], dtype=torch.float64)
        *totals, frames, clips = processes.total(local).tolist()
        *means, waited = (value / processes.count() for value in totals)
        spent = max(time.perf_counter() - self.since, 1e-9)
        values: dict[str, Any] = dict(zip(self.terms, means, strict=True))
        values |= {"frames_per_second": frames / spent, "clips_per_second": clips / spent}
        values["data_wait"] = waited / spent  # share of the time; near 1, the loader is the bottleneck
        self.restart()
        return values
