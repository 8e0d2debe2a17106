"""Signals: the step is finished, the state saved, the exit code says that the same command goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stdetr import checkpoint
from stdetr.cli import main
from stdetr.data.loader import ClipLoader, EpochBatches
from stdetr.data.module import DataModule
from stdetr.engine import train
from stdetr.engine.evaluation_loop import SplitEvaluator
from stdetr.engine.stop import Stopped, StopRequest, stop_signals

SHORT = ("trainer.max_steps=4", "trainer.log_every=2", "trainer.threads=1")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "last" / "model.safetensors")


def step_of(folder: Path) -> int:
    return checkpoint.read_meta(folder / "checkpoints" / "last")["step"]


def losses(folder: Path) -> list[dict[str, Any]]:
    timing = ("frames_per_second", "clips_per_second", "data_wait")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timing} for line in lines]


def at_batch(number: int, action: Callable[[], object]) -> Any:
    """A patch of the loader: ``action`` happens when that training batch has been drawn."""
    drawn, original = 0, ClipLoader.__iter__

    def batches(self: ClipLoader):
        nonlocal drawn
        for batch in original(self):
            if isinstance(self.batch_sampler, EpochBatches):
                drawn += 1
                if drawn == number:
                    action()
            yield batch

    patch = pytest.MonkeyPatch()
    patch.setattr(ClipLoader, "__iter__", batches)
    return patch


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Signals that whoever started the tests had ignored (``nohup``, a job in the background) would stay ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def whole(compose_tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train.run(compose_tiny(folder, *SHORT))
    return folder


@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGHUP", 75), ("SIGINT", 130)]
)  # fmt: skip
def test_a_signal_finishes_the_step_and_saves(
    name: str, code: int, compose_tiny, tmp_path: Path, capfd: pytest.CaptureFixture, whole: Path
) -> None:
    number, handlers = signal.Signals[name], {n: signal.getsignal(n) for n in signal.Signals}
    words = ["train", *compose_tiny.words(tmp_path / "run", *SHORT)]
    patch = at_batch(3, lambda: send(number))
    try:
        with pytest.raises(SystemExit) as raised:
            main(words)
    finally:
        patch.undo()
    assert raised.value.code == code
    assert step_of(tmp_path / "run") == 3, "between two lines of the log"
    said = capfd.readouterr()
    assert f"{name}: stopping after this step" in said.err
    assert "stopped at step 3, saved in" in said.out
    assert handlers == {n: signal.getsignal(n) for n in signal.Signals}
    if name in ("SIGTERM", "SIGINT"):
        assert main(words) == 0
        a, b = weights(whole), weights(tmp_path / "run")
        assert all(torch.equal(a[key], b[key]) for key in a)
        # The line of step 4 is the mean over steps 3 and 4, one of them before the stop.
        assert losses(tmp_path / "run") == losses(whole)


def test_a_signal_in_an_evaluation_ends_it_at_once(tiny, tmp_path: Path, whole: Path) -> None:
    def evaluate(self: SplitEvaluator, model: object, step: int) -> dict:
        send(signal.SIGTERM)
        raise AssertionError("went on")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SplitEvaluator, "__call__", evaluate)
        with pytest.raises(Stopped, match="stopped by SIGTERM"):
            train.run(tiny("run", *SHORT))
    assert step_of(tmp_path / "run") == 4
    train.run(tiny("run", *SHORT))
    assert losses(tmp_path / "run") == losses(whole)


def test_a_signal_before_the_first_step_leaves_nothing(tiny, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DataModule, "read", lambda self, *splits: send(signal.SIGTERM))
        with pytest.raises(Stopped):
            train.run(tiny("run", *SHORT))
    assert list((tmp_path / "run").iterdir()) == []


def test_a_second_ctrl_c_stops_at_once(tiny, tmp_path: Path) -> None:
    def twice() -> None:
        send(signal.SIGTERM)
        send(signal.SIGTERM)  # schedulers repeat theirs
        send(signal.SIGINT)

    patch = at_batch(2, twice)
    try:
        with pytest.raises(KeyboardInterrupt):
            train.run(tiny("run", *SHORT))
    finally:
        patch.undo()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_handlers_of_others() -> None:
    """One that was there gets the signal at the end; one that is ignored stays so; SIGUSR2 is not ours alone."""
    got: list[int] = []
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
        with stop_signals() as request:
            assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            send(signal.SIGHUP)
            request.deferred = True
        assert request.number == 0

        def later() -> None:
            with stop_signals() as request:
                request.deferred = True
                send(signal.SIGUSR1)
                assert (request.number, got) == (signal.SIGUSR1, [])
                with request.at_once():
                    raise AssertionError("an earlier signal counts as well")

        with pytest.raises(Stopped):
            later()
        assert got == [signal.SIGUSR1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    request = StopRequest()
    with pytest.raises(Stopped) as raised:
        request.receive(signal.SIGINT)
    assert raised.value.code == 130


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_with_workers_and_wandb(compose_tiny, tmp_path: Path) -> None:
    """The whole group of processes gets the signal; the workers go on until the run has saved."""
    folder = tmp_path / "run"
    words = compose_tiny.words(
        folder, "trainer.max_steps=400", "trainer.log_every=1", "data.loader.num_workers=1", "logger=wandb",
        "logger.wandb.mode=offline",
    )  # fmt: skip
    command = [sys.executable, "-m", "stdetr", "train", *words]
    with subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            until = time.monotonic() + 200
            while not (folder / "metrics.jsonl").is_file() or (folder / "metrics.jsonl").read_text().count("\n") < 3:
                assert run.poll() is None, run.communicate()
                assert time.monotonic() < until
                time.sleep(0.05)
            os.killpg(run.pid, signal.SIGINT)
            out, err = run.communicate(timeout=120)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 130, err[-2000:]
    assert "Traceback" not in err
    assert f"stopped at step {step_of(folder)}, saved in" in out
    assert step_of(folder) >= 3
    (record,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    assert record.stat().st_size > 1000


class Job:
    """What submitit's launcher runs and, as Hydra's does, submits again after a signal."""

    def __init__(self, words: list[str], marker: str) -> None:
        self.words, self.marker = words, marker

    def __call__(self) -> int:
        from stdetr.cli import main

        if not Path(self.marker).exists():
            Path(self.marker).touch()
            at_batch(2, lambda: send(signal.SIGUSR2))
        return main(self.words)

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@pytest.mark.slow
def test_submitit_requeues_the_job(compose_tiny, tmp_path: Path, whole: Path) -> None:
    submitit = pytest.importorskip("submitit", reason="extra sweep")
    cloudpickle = pytest.importorskip("cloudpickle")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    executor.update_parameters(timeout_min=5)
    words = ["train", *compose_tiny.words(tmp_path / "run", *SHORT)]
    job = executor.submit(Job(words, str(tmp_path / "marker")))
    assert job.result() == 0, job.stderr()
    log = job.stdout() + job.stderr()
    assert "SIGUSR2: stopping after this step" in log
    assert "stopped at step 2, saved in" in log
    assert "Requeued job" in log
    assert "resuming" in log
    a, b = weights(whole), weights(tmp_path / "run")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_finished_run_keeps_no_more_checkpoints_than_it_should(compose_tiny, tmp_path: Path) -> None:
    """A kill between the last save and the removal of the checkpoint that is one too old."""
    cfg = compose_tiny(tmp_path / "run", *SHORT, "trainer.save_every=2")
    train.run(cfg)
    folder = tmp_path / "run" / "checkpoints"
    assert {path.name for path in folder.glob("last*")} == {"last", "last.2"}
    shutil.copytree(folder / "last.2", folder / "last.1")
    meta = json.loads((folder / "last.1" / "meta.json").read_text())
    (folder / "last.1" / "meta.json").write_text(json.dumps(meta | {"step": 1}))
    train.run(compose_tiny(tmp_path / "run", *SHORT, "trainer.save_every=2"))
    assert {path.name for path in folder.glob("last*")} == {"last", "last.2"}
