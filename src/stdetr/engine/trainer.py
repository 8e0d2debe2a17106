"""The training loop.

Accelerate handles devices, processes, mixed precision and resumable state; the loop itself is written out here.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn
from tqdm import tqdm

from stdetr import checkpoint
from stdetr.data.collate import pad_batch
from stdetr.engine import processes
from stdetr.engine.average import WeightAverage
from stdetr.engine.batch_norm import share_statistics
from stdetr.engine.divergence import SkippedSteps
from stdetr.engine.meter import Meter
from stdetr.engine.optim import Optimisation
from stdetr.engine.resume import Resume
from stdetr.engine.state import RunRecord, RunState
from stdetr.engine.stop import Stopped, StopRequest
from stdetr.logger import Logger, Table
from stdetr.losses.criterion import TubeCriterion
from stdetr.models.denoising import TubeDenoising
from stdetr.models.draws import mix, seed_clips
from stdetr.names import did_you_mean
from stdetr.structures import ClipBatch

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
    max_skips: steps whose loss or gradient is not finite are skipped; more than this many in a row end the run
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
        max_skips: int = 10,
        threads: int | None = None,
        cpu: bool = False,
        deterministic: bool = False,
    ) -> None:
        for name, value in (("max_steps", max_steps), ("accumulate", accumulate), ("log_every", log_every)):
            if value < 1:
                raise ValueError(f"trainer.{name}={value} must be at least 1")
        for name, value in (("keep", keep), ("max_skips", max_skips)):
            if value < 0:
                raise ValueError(f"trainer.{name}={value} must be at least 0")
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
        self.max_skips = max_skips
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
        record: RunRecord,
        resume: Resume | None = None,
        class_order: Sequence[int] | None = None,
        stop: StopRequest | None = None,
    ) -> dict[str, float | None]:
        """
        loader: (epoch, first batch, single frames?) -> this process's share of the batches of that epoch from there on,
            in an order that depends only on the epoch
        resume: where to go on from; class_order: for each class its place in that checkpoint
        stop: asked after each step
        returns the metrics of the last evaluation
        """
        self._set_process_flags()
        self.stop, self._stops, self._begins = stop or StopRequest(), 0, True
        accelerator = self.accelerator
        if processes.count() > 1:
            share_statistics(model)
        optimizer = optim.optimizer(model)
        model, optimizer = accelerator.prepare(model, optimizer)
        bare = accelerator.unwrap_model(model)
        average = WeightAverage(bare, self.ema_decay) if self.ema_decay is not None else None
        meter = Meter()
        state = RunState(bare, optimizer, average, meter, accelerator.scaler)
        progress = state.progress
        if resume is not None:
            state.read(resume.folder)
            self._apply(resume, state, class_order)
        optim.set_rates(optimizer, progress.step, self.max_steps)
        skips = SkippedSteps(bare, self.max_skips)
        skips.total, self._saved = progress.skipped, progress.step
        # The run may have been stopped between saving and evaluating.
        unevaluated = resume is not None and self._evaluates(progress.step) and progress.evaluated < progress.step
        if accelerator.is_main_process:
            logger.start(record.config, step=progress.step if resume is not None else None, evaluated=not unevaluated)
            if resume is not None and resume.changes:
                rows = tuple((key, str(old), str(new)) for key, (old, new) in resume.changes.items())
                logger.log_table(progress.step, "config_changes", Table(("key", "before", "now"), rows))
        model.train()
        if unevaluated:
            if resume is not None and resume.folder.resolve() != record.paths.last.resolve():
                self._save(state, record)
            self._evaluate(evaluate, state, logger, record)
            meter.restart()
        started, first_step = time.perf_counter(), progress.step
        bar = tqdm(
            total=self.max_steps, initial=first_step, desc="train", unit="step", dynamic_ncols=True,
            disable=not (accelerator.is_main_process and sys.stderr.isatty()),
        )  # fmt: skip
        self.stop.deferred = True
        while progress.step < self.last_step:
            single = progress.single = self._is_single(progress.step)
            phase_end = self.single_frame_steps if single else self.max_steps
            for batch in self._saving(meter.waiting(loader(progress.epoch, progress.batch, single)), state, record):
                progress.batch += 1
                with accelerator.accumulate(model):
                    terms, norm = self._step(model, criterion, optimizer, batch, progress.step, optim, skips)
                meter.add(terms, norm, batch)
                if not accelerator.sync_gradients:
                    continue
                if average is not None:
                    average.update(bare)
                progress.step, progress.skipped = progress.step + 1, skips.total
                bar.update()
                step = progress.step
                if single and step == phase_end:
                    # Clips begin with a new epoch; set before the state is saved, for a run that resumes.
                    progress.epoch, progress.batch, progress.single = progress.epoch + 1, 0, False
                if step % self.log_every == 0 or step == self.max_steps:
                    self._log(logger, step, meter, optimizer, bar, started, first_step, skips.total)
                evaluates, stops = self._evaluates(step), step == self.last_step
                stopped_by = self._stops if processes.count() > 1 else self.stop.number
                due = bool(self.save_every and step % self.save_every == 0)
                if evaluates or stops or stopped_by or due or skips.in_row > self.max_skips:
                    self._save(state, record)
                skips.check()
                if stopped_by:
                    bar.close()
                    processes.say(f"stopped at step {step}, saved in {record.paths.last}: the same command goes on")
                    raise Stopped(stopped_by, agreed=True)
                if evaluates:
                    self._evaluate(evaluate, state, logger, record)
                    meter.restart()
                if stops or step >= phase_end:
                    break
            else:
                progress.epoch, progress.batch = progress.epoch + 1, 0
        bar.close()
        self.stop.deferred = False
        return progress.metrics

    def _saving(self, batches: Iterator[ClipBatch], state: RunState, record: RunRecord) -> Iterator[ClipBatch]:
        """The batches; where the next one cannot be had, the steps so far are saved first."""
        try:
            yield from batches
        except Exception:  # of the data set, a worker or a transform of the user; raised again
            if self._begins and state.progress.step > self._saved and processes.rank() == 0:
                self._write(state, record, state.meter.state(alone=True))
            raise

    def _is_single(self, step: int) -> bool:
        """Whether the step after ``step`` trains on single frames."""
        return step < self.single_frame_steps

    def _apply(self, resume: Resume, state: RunState, class_order: Sequence[int] | None) -> None:
        """What follows from the values that the user changes."""
        progress = state.progress
        if class_order is not None and list(class_order) != sorted(class_order):
            state.permute_classes(list(class_order))
        if resume.changed("trainer.monitor", "evaluation", "data.val", "data.test", "data.eval_sampler",
                          "data.eval_transforms"):  # fmt: skip
            progress.best = None  # measured otherwise
        other_phase = bool(resume.changes) and progress.single != self._is_single(progress.step)
        if (other_phase or resume.changed("data", "seed", "overfit")) and progress.batch:
            # The number of a batch means nothing among other clips: they begin with an epoch.
            progress.epoch, progress.batch = progress.epoch + 1, 0

    def _evaluates(self, step: int) -> bool:
        """Whether an evaluation follows this step."""
        return step in (self.max_steps, self.eval_start) or bool(self.eval_every and step % self.eval_every == 0)

    def _step(
        self,
        model: nn.Module,
        criterion: TubeCriterion,
        optimizer: torch.optim.Optimizer,
        batch: ClipBatch,
        step: int,
        optim: Optimisation,
        skips: SkippedSteps,
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        accelerator = self.accelerator
        if self._begins:
            skips.begin()
        self._begins = accelerator.sync_gradients
        batch = self._prepare(accelerator.unwrap_model(model), batch, step)
        with accelerator.autocast():
            output = model(batch.frames, batch.sizes, batch.frame_mask, batch.frame_index, targets=batch.targets)
        total, terms = criterion(output, batch.targets)
        told = {"loss": total.detach(), **{k: v.detach() for k, v in terms.items()}}
        skips.saw(told, batch.infos)
        # A loss that is not finite makes every gradient NaN, also where the reduction over processes hides it.
        accelerator.backward(total * torch.where(total.isfinite(), 1.0, float("nan")))
        if not accelerator.sync_gradients:
            return told, None
        # The gradient is the same on every process, so all make or skip the step.
        norm = accelerator.clip_grad_norm_(model.parameters(), optim.clip_norm or float("inf"))
        finite = bool(torch.isfinite(torch.as_tensor(norm)))
        if finite or accelerator.scaler is not None:
            optimizer.step()  # the scaler of fp16 skips by itself, and lowers its scale
        if finite or (accelerator.scaler is not None and all(bool(x.isfinite()) for x in told.values())):
            skips.passed()
        else:
            skips.skip(step)
        optim.set_rates(optimizer, step + 1, self.max_steps)
        optimizer.zero_grad(set_to_none=True)
        return told, norm if optim.clip_norm > 0 else None

    def _prepare(self, model: nn.Module, batch: ClipBatch, step: int) -> ClipBatch:
        """The batch on the device, padded like the clips of other processes; seeds ``model`` by clip."""
        _, frames, _, height, width = batch.frames.shape
        tracks = max(int(target.valid.any(1).sum()) for target in batch.targets)
        # A signal may reach one process alone: all hear of it here, before the step.
        sizes = (frames, height, width, tracks, self.stop.number)
        frames, height, width, tracks, self._stops = processes.largest(sizes)
        seed_clips(model, [mix(info.seed, step) for info in batch.infos])
        for module in model.modules():
            if isinstance(module, TubeDenoising):
                module.most = tracks
        return pad_batch(batch, frames, height, width).to(self.device, non_blocking=True).normalised()

    def _log(
        self,
        logger: Logger,
        step: int,
        meter: Meter,
        optimizer: torch.optim.Optimizer,
        bar: tqdm,
        started: float,
        first_step: int,
        skipped: int,
    ) -> None:
        values = meter.read()
        if skipped:
            values["skipped"] = skipped
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

    def _evaluate(self, evaluate: Evaluate, state: RunState, logger: Logger, record: RunRecord) -> None:
        """Evaluate, and record that in the checkpoint of this step."""
        progress, step = state.progress, state.progress.step
        # A run that resumes from the checkpoint has the same random state, whether it evaluates again or not.
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), self.stop.at_once():
            metrics = dict(evaluate(state.shown, step))
        self.check_monitor(metrics)
        value = metrics[self.monitor]
        better = value is not None and (progress.best is None or value > progress.best)
        best = value if better else progress.best

        def write() -> None:
            logger.log(step, "val", metrics)
            if better:
                record.save(record.paths.best, state.shown, step, metrics)
                logger.log_artifact("model", record.paths.best, aliases=("best",))
            checkpoint.amend(record.paths.last, metrics=metrics, best=best, evaluated=step)

        processes.on_main(write)
        progress.metrics, progress.best, progress.evaluated = metrics, best, step

    def _save(self, state: RunState, record: RunRecord) -> None:
        """Everything a run needs to resume with any number of processes: it is the same on all of them."""
        meter = state.meter.state()
        processes.on_main(lambda: self._write(state, record, meter))
        self._saved = state.progress.step

    def _write(self, state: RunState, record: RunRecord, meter: dict[str, Tensor]) -> None:
        progress = state.progress
        record.save(
            record.paths.last, state.shown, progress.step, progress.metrics, keep=self.keep,
            notes={"best": progress.best, "evaluated": progress.evaluated},
            save_state=lambda folder: state.write(folder, meter),
        )  # fmt: skip
