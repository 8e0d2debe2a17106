"""Injected trouble: one line, the right exit code, nothing that was saved is lost, and the same command goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from stdetr import checkpoint
from stdetr.cli import main
from stdetr.cli.errors import user_line
from stdetr.data.loader import ClipLoader, EpochBatches
from stdetr.engine.divergence import SkippedSteps
from stdetr.inference.detector import Detector
from stdetr.losses.criterion import TubeCriterion
from stdetr.models.detector import ClipDetector
from stdetr.structures import ClipInfo

SHORT = ("trainer.max_steps=4", "trainer.log_every=1", "trainer.threads=1")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "last" / "model.safetensors")


def step_of(folder: Path) -> int:
    return checkpoint.read_meta(folder / "checkpoints" / "last")["step"]


def records(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


@pytest.fixture(scope="module")
def whole(compose_tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", *compose_tiny.words(folder, *SHORT)]) == 0
    return folder


def equal(a: Path, b: Path) -> bool:
    return all(torch.equal(x, weights(b)[name]) for name, x in weights(a).items())


def not_finite(patch: pytest.MonkeyPatch, steps: tuple[int, ...]) -> None:
    """The class loss is NaN at these steps, counted from 1."""
    original, seen = TubeCriterion.__call__, iter(range(1, 100))

    def forward(self: TubeCriterion, *arguments: Any, **named: Any) -> Any:
        total, terms = original(self, *arguments, **named)
        if next(seen) in steps:
            return total * float("nan"), {**terms, "class": terms["class"] * float("nan")}
        return total, terms

    patch.setattr(TubeCriterion, "__call__", forward)


def test_a_loss_that_is_not_finite_skips_the_step(
    compose_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    not_finite(monkeypatch, (2,))
    words = ["train", *compose_tiny.words(tmp_path / "run", *SHORT, "trainer.save_every=1", "trainer.keep=9")]
    assert main(words) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert line.startswith(
        "step 2 skipped (1 in a row, 1 in all; trainer.max_skips=10): loss not finite (loss, class) on "
    )
    assert line.count(" frames ") == 2 * 3, "two clips of three frames as six single ones"
    lines = records(tmp_path / "run")
    assert [line.get("skipped", 0) for line in lines] == [0, 1, 1, 1]
    assert [line["loss"] is None for line in lines] == [False, True, False, False]
    assert lines[1]["box"] > 0
    folder = tmp_path / "run" / "checkpoints"
    states = [load_file(folder / name / "state" / "state.safetensors") for name in ("last.1", "last.2", "last.3")]
    learned = [name for name in states[0] if name.startswith(("model.", "optimizer."))]
    assert all(torch.equal(states[0][name], states[1][name]) for name in learned), "running statistics included"
    assert not all(torch.equal(states[1][name], states[2][name]) for name in learned)
    assert all(bool(x.isfinite().all()) for x in weights(tmp_path / "run").values())


def test_training_that_has_diverged_ends(
    compose_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    not_finite(monkeypatch, (1, 3, 4, 5, 6, 7, 8))
    words = compose_tiny.words(tmp_path / "run", *SHORT, "trainer.max_steps=9", "trainer.max_skips=2")
    assert main(["train", *words]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: training has diverged: 3 steps in a row were skipped, the last with loss not finite")
    assert " frames " in last
    assert step_of(tmp_path / "run") == 5
    assert all(bool(x.isfinite().all()) for x in weights(tmp_path / "run").values())


def test_a_skip_restores_the_statistics(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.LayerNorm(2))
    skips = SkippedSteps(model, limit=1)
    clip = ClipInfo(1, (4, 5, 6), (1, 2, 3), (8, 8), "a.mp4")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    for number in (1, 2):
        skips.begin()
        model(torch.full((3, 2), float("nan")))
        assert torch.isnan(model.state_dict()["0.running_mean"]).all()
        skips.saw({"loss": torch.tensor(1.0)}, [clip])
        skips.skip(step=7)
        assert all(torch.equal(x, model.state_dict()[name]) for name, x in before.items())
        if number == 1:
            skips.check()
    assert "step 8 skipped (1 in a row, 1 in all; trainer.max_skips=1): gradient not finite on a.mp4 frames 4-6" in (
        capsys.readouterr().err
    )
    with pytest.raises(FloatingPointError, match=r"diverged: 2 steps in a row .*a\.mp4 frames 4-6"):
        skips.check()
    skips.passed()
    skips.check()
    assert (skips.in_row, skips.total) == (0, 2)


def full(*arguments: object, **named: object) -> None:
    raise OSError(28, "No space left on device")


def full_rust(*arguments: object, **named: object) -> None:
    raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("what", ["weights", "meta", "metrics"])
def test_a_full_disk(what: str, compose_tiny, tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    words = ["train", *compose_tiny.words(folder, *SHORT, "trainer.save_every=2")]
    assert main([*words, "trainer.stop_at=2"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        if what == "weights":
            patch.setattr(safetensors.torch, "save_file", full_rust)
        elif what == "meta":
            patch.setattr(checkpoint, "_write_meta", full)
        else:
            (folder / "metrics.jsonl").rename(tmp_path / "kept.jsonl")
            (folder / "metrics.jsonl").symlink_to("/dev/full")
            patch.setattr("stdetr.logger.jsonl.JsonlLogger.start", lambda *arguments, **named: None)
        assert main(words) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ")
    assert "no space left on device; what was saved stays" in told
    assert str(folder) in told
    assert step_of(folder) == 2
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last"]
    if what == "metrics":
        (folder / "metrics.jsonl").unlink()
        (tmp_path / "kept.jsonl").rename(folder / "metrics.jsonl")
    assert main(words) == 0
    assert equal(whole, folder)
    assert [line["step"] for line in records(folder)] == [1, 2, 3, 4]


def test_a_folder_that_cannot_be_written(compose_tiny, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/sys").is_dir() or (os.access("/sys/kernel", os.W_OK) and os.geteuid() != 0):
        pytest.skip("needs /sys, a file system without folders of one's own")
    assert main(["train", *compose_tiny.words(Path("/sys/stdetr"))]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: /sys/stdetr: ")
    line = user_line(OSError(30, "Read-only file system", "/mnt/run"))
    assert line == "/mnt/run: read-only file system; choose another output_dir"


def test_memory_that_is_full(
    compose_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls, original = iter(range(100)), ClipDetector.forward

    def forward(self: ClipDetector, *arguments: Any, **named: Any) -> Any:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
        return original(self, *arguments, **named)

    monkeypatch.setattr(ClipDetector, "forward", forward)
    words = compose_tiny.words(tmp_path / "run", *SHORT, "trainer.save_every=1")
    assert main(["train", *words]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: the GPU has no memory left (CUDA out of memory); lower batch_size")
    assert step_of(tmp_path / "run") == 2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError("Unable to allocate 7.45 GiB for an array"), "the machine has no memory left (Unable to "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "the machine has no memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "a worker of the data loader died"),
        (RuntimeError("DataLoader timed out after 300 seconds"), "no batch came in time (DataLoader timed"),
        (OSError(122, "Disk quota exceeded", "/a/b"), "/a/b: disk quota exceeded; what was saved stays"),
    ],
)  # fmt: skip
def test_lines_of_the_machines_troubles(error: Exception, told: str) -> None:
    line = user_line(error)
    assert line is not None
    assert line.startswith(told)
    assert "\n" not in line
    assert user_line(RuntimeError("shape mismatch")) is None, "a bug"


@pytest.mark.slow
def test_a_worker_that_dies(compose_tiny, tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = ClipLoader.__iter__

    def batches(self: ClipLoader):
        for number, batch in enumerate(original(self)):
            if number == 2 and isinstance(self.batch_sampler, EpochBatches):
                for worker in multiprocessing.active_children():
                    if worker.pid is not None:
                        os.kill(worker.pid, signal.SIGKILL)
            yield batch

    words = ["train", *compose_tiny.words(tmp_path / "run", *SHORT, "data.loader.num_workers=1",
                                          "trainer.max_steps=20")]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipLoader, "__iter__", batches)
        assert main(words) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: a worker of the data loader died (DataLoader worker")
    assert "lower data.loader.num_workers" in told
    done = step_of(tmp_path / "run")
    assert 2 < done < 20, "saved although no saving was due"
    assert [line["step"] for line in records(tmp_path / "run")] == list(range(1, done + 1))
    assert main([*words[:-1], "trainer.max_steps=20", f"trainer.stop_at={done + 1}"]) == 0


def test_weights_that_are_not_finite_are_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    for name in ("best", "last"):
        file = run / "checkpoints" / name / "model.safetensors"
        if file.exists():
            tensors = load_file(file)
            tensors["class_heads.0.linear.bias"][1] = float("nan")
            save_file(tensors, file)
    with pytest.raises(ValueError, match=r"1 of \d+ tensors are not finite \(class_heads\.0\.linear\.bias\)"):
        Detector.from_checkpoint(run, device="cpu")
    assert main(["eval", f"checkpoint={run}", f"output_dir={tmp_path / 'eval'}", "device=cpu"]) == 2
    assert (
        main(["predict", f"checkpoint={run}", f"source={run / 'config.yaml'}", f"output_dir={tmp_path / 'out'}"]) == 2
    )
    told = capsys.readouterr().err.splitlines()
    assert sum("tensors are not finite" in line for line in told) == 2
    assert not (tmp_path / "out").exists()


def test_output_that_is_nan_is_refused(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = ClipDetector.detect

    def detect(self: ClipDetector, *arguments: Any, **named: Any) -> Any:
        output = original(self, *arguments, **named)
        output.logits[0, 0, 0] = float("nan")
        return output

    monkeypatch.setattr(ClipDetector, "detect", detect)
    assert main(["eval", f"checkpoint={whole}", f"output_dir={tmp_path / 'eval'}", "device=cpu"]) == 2
    assert "frames 0-2: the output is NaN: are its weights finite" in capsys.readouterr().err
