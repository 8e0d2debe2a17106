"""Two processes on the CPU: the clips, losses, gradients and predictions of one, and the end of both when one fails."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import distributed

from stdetr import checkpoint
from stdetr.config import compose
from stdetr.data.loader import ClipLoader, EpochBatches
from stdetr.engine import evaluate, processes, train
from stdetr.engine.optim import Optimisation
from stdetr.losses.normaliser import reduce_count

# Clips of two sizes, three in a batch: the processes pad differently and hold unequally many.  Everything that draws
# or depends on the whole batch is on: dropout, denoising, batch normalisation.
SETTINGS = (
    "data.loader.batch_size=3",
    "data.train_transforms=[{_target_:torchvision.transforms.v2.RandomHorizontalFlip},"
    "{_target_:stdetr.data.transforms.ResizeShortSide,sizes:[40,64],longest:64}]",
    "model.dropout=0.1",
    "model.encoder_layers=1",
    "optim.schedule=constant",
    "optim.warmup=0",
    "optim.clip_norm=0",
    "trainer.single_frame=1",
    "trainer.log_every=1",
    "trainer.ema_decay=null",
    "trainer.threads=1",
)


def start(function: Callable, *arguments: object, errors: Path | None = None) -> list:
    """Two processes that run ``function(*arguments)`` with the environment that torchrun sets; ``errors``: the folder
    for what each says there.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stdetr.engine.train"])
    started = []
    for rank in range(2):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2,
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        one = context.Process(target=_begin, args=(variables, errors, function, arguments))
        one.start()
        started.append(one)
    return started


def _begin(variables: dict[str, object], errors: Path | None, function: Callable, arguments: tuple) -> None:
    if errors is not None:
        os.dup2(os.open(errors / str(variables["RANK"]), os.O_WRONLY | os.O_CREAT), 2)
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(1)
    function(*arguments)


def finish(started: list, seconds: float = 240) -> list[int]:
    """Exit codes; both processes must end in time."""
    until = time.monotonic() + seconds
    for one in started:
        one.join(max(0.0, until - time.monotonic()))
    codes = [one.exitcode for one in started]
    for one in started:
        if one.exitcode is None:
            one.kill()
    return codes


def fit(cfg: DictConfig, steps: int, seen: Path | None = None) -> None:
    """Train up to step ``steps`` with plain gradient descent, so that weights differ as gradients do.

    ReLU becomes SiLU: of a million inputs one or another is 0 to the last digit, and on which side it is rounded would
    show in the gradient.
    """
    cfg.trainer.max_steps, cfg.resume_with = steps, ["trainer.max_steps"]
    original = ClipLoader.__iter__

    def recorded(self: ClipLoader):
        for batch in original(self):
            if seen is not None and isinstance(self.batch_sampler, EpochBatches):
                lines = [[i.video_id, list(i.frame_index), i.seed] for i in batch.infos]
                with seen.with_suffix(f".{processes.rank()}").open("a") as stream:
                    stream.write(json.dumps(lines) + "\n")
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Optimisation, "optimizer", lambda self, model: torch.optim.SGD(self.groups(model), lr=0.05))
        patch.setattr(ClipLoader, "__iter__", recorded)
        patch.setattr(torch, "relu", torch.nn.functional.silu)
        patch.setattr(torch.Tensor, "relu", torch.nn.functional.silu)
        train.run(cfg)


def work_of_two(root: Path, configs: dict[str, DictConfig], evaluation: DictConfig) -> None:
    fit(configs["two"], 2)
    if os.environ["RANK"] == "0":
        shutil.copytree(root / "two", root / "two_then_one")
    fit(configs["two"], 4)
    fit(configs["whole"], 4, root / "clips_of_two")
    fit(configs["one_then_two"], 4)
    evaluate.run(evaluation)


@pytest.fixture(scope="module")
def runs(toy_root: Path, tmp_path_factory: pytest.TempPathFactory, compose_tiny) -> Path:
    """A folder with the same training in one process, in two, begun in one and ended in two, and the reverse."""
    root = tmp_path_factory.mktemp("runs")
    names = ("one", "two", "whole", "one_then_two", "two_then_one")
    configs = {name: compose_tiny(root / name, *SETTINGS) for name in names}
    fit(configs["one"], 2, root / "clips_of_one")
    shutil.copytree(root / "one", root / "one_then_two")
    fit(configs["one"], 4, root / "clips_of_one")
    evaluations = [
        compose(
            "eval",
            [
                f"checkpoint={root / 'one'}",
                f"output_dir={root / name}",
                "device=cpu",
                "evaluation.stitch.score_threshold=0.0",
            ],
        )
        for name in ("eval_one", "eval_two")
    ]
    evaluate.run(evaluations[0])
    codes = finish(start(work_of_two, root, configs, evaluations[1]))
    assert codes == [0, 0]
    fit(configs["two_then_one"], 4)
    return root


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "last" / "model.safetensors")


def losses(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    other = ("split", "frames_per_second", "clips_per_second", "data_wait")
    return [{k: v for k, v in line.items() if k not in other} for line in lines if line["split"] == "train"]


def test_the_clips_of_two_processes_are_those_of_one(runs: Path) -> None:
    def clips(name: str) -> list[list]:
        return [json.loads(line) for line in (runs / name).read_text().splitlines()]

    alone, first, second = (clips(name) for name in ("clips_of_one.0", "clips_of_two.0", "clips_of_two.1"))
    assert len(alone) == len(first) == len(second) == 4
    for whole, a, b in zip(alone, first, second, strict=True):
        assert a + b == whole
        assert len(a) - len(b) in (0, 1)
    assert len(alone[0]) == 9, "three times as many clips of one frame"
    epoch = [tuple(map(str, clip)) for batch in alone[1:] for clip in batch]
    assert len(set(epoch)) == len(epoch)


@pytest.mark.parametrize("name", ["two", "whole", "one_then_two", "two_then_one"])
def test_gradients_and_losses_are_those_of_one_process(runs: Path, name: str) -> None:
    expected, found = weights(runs / "one"), weights(runs / name)
    assert expected.keys() == found.keys()
    for key, want in expected.items():
        torch.testing.assert_close(found[key], want, atol=1e-5, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    for want, have in zip(losses(runs / "one"), losses(runs / name), strict=True):
        assert have == pytest.approx(want, rel=2e-5, abs=1e-5)
    assert {"dn_class", "frame_class", "dense_class", "presence"} <= losses(runs / name)[0].keys()


def test_two_processes_go_on_bit_for_bit(runs: Path) -> None:
    stopped, whole = weights(runs / "two"), weights(runs / "whole")
    assert all(torch.equal(stopped[key], whole[key]) for key in whole)
    assert losses(runs / "two") == losses(runs / "whole")


@pytest.mark.parametrize("file", ["predictions.json", "tubes.json", "eval/metrics.json"])
def test_an_evaluation_is_the_same_to_the_last_digit(runs: Path, file: str) -> None:
    alone, shared = ((runs / name / file).read_bytes() for name in ("eval_one", "eval_two"))
    assert len(alone) > 100
    assert alone == shared


def one_fails(failing: int, reducing: bool) -> None:
    """Process ``failing`` raises while the other one waits for it, in a reduction or for its result."""
    with processes.together(cpu=True):
        processes.barrier()
        if processes.rank() == failing:
            raise ValueError("the disk is full")
        if reducing:
            distributed.all_reduce(torch.ones(3))
        else:
            processes.on_main(lambda: None)


@pytest.mark.parametrize(("failing", "reducing"), [(0, False), (1, True)], ids=["main", "other"])
def test_a_process_that_fails_ends_all(failing: int, reducing: bool, tmp_path: Path) -> None:
    assert finish(start(one_fails, failing, reducing, errors=tmp_path), seconds=60) == [1, 1]
    failed, other = ((tmp_path / str(rank)).read_text().splitlines() for rank in (failing, 1 - failing))
    assert failed[-1] == "ValueError: the disk is full"
    # Only the first process of a machine repeats it.
    line = f"process 0 ends because process {failing} failed: ValueError: the disk is full"
    assert [text for text in other if "process" in text] == ([line] if failing == 1 else [])


def counts(folder: Path) -> None:
    with processes.together(cpu=True):
        tracks = [(8, 0), (0, 0)][processes.rank()]
        result = {
            "counts": [reduce_count(torch.tensor(number)).item() for number in tracks],
            "largest": processes.largest((processes.rank(), 5 - processes.rank())),
            "shared": processes.on_main(lambda: os.environ["RANK"]),
            "gathered": processes.gather([processes.rank()] * (processes.rank() + 1)),
            "total": processes.total(torch.tensor([1.0, processes.rank()])).tolist(),
        }
        order = processes.one_by_one(lambda: len(list(folder.glob("*.json"))))
        (folder / f"{processes.rank()}.json").write_text(json.dumps({**result, "order": order}))


def test_what_processes_share(tmp_path: Path) -> None:
    assert finish(start(counts, tmp_path)) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    # 8 and 0 tracks: each divides by half of 8.  None at all: by half of 1.
    assert first["counts"] == second["counts"] == [4.0, 0.5]
    assert first["largest"] == second["largest"] == [1, 5]
    assert first["shared"] == second["shared"] == "0"
    assert (first["gathered"], second["gathered"]) == ([0, 1, 1], [])
    assert first["total"] == [2.0, 1.0]


HOLDER = """
import os, sys, time
from pathlib import Path
from stdetr.engine import processes
with processes.sole_run(Path(sys.argv[1])):
    if os.fork() == 0:
        time.sleep(120)
    print(flush=True)
    time.sleep(120)
"""


def test_one_run_a_folder(tmp_path: Path) -> None:
    with processes.sole_run(tmp_path / "run"):
        who = f"process {os.getpid()} on {socket.gethostname()}"
        with (
            pytest.raises(ValueError, match=f"output_dir=.*run is in use by {who}"),
            processes.sole_run(tmp_path / "run"),
        ):
            pass
        with processes.sole_run(tmp_path / "other"):
            pass
    assert list((tmp_path / "run").iterdir()) == []
    # A run that is killed lets go at once, though a process that it had forked, as a loader does, lives on.
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as holder:
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            with (
                pytest.raises(ValueError, match=f"in use by process {holder.pid} on"),
                processes.sole_run(tmp_path / "run"),
            ):
                pass
            holder.kill()
            holder.wait()
            with processes.sole_run(tmp_path / "run"):
                pass
        finally:
            os.killpg(holder.pid, signal.SIGKILL)


def stopped_alone(configs: dict[str, DictConfig]) -> None:
    """A signal reaches process 1 alone, while batch 3 (the second of the clips) is on its way."""
    original = ClipLoader.__iter__

    def batches(self: ClipLoader):
        for number, batch in enumerate(original(self)):
            if number == 1 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipLoader, "__iter__", batches)
        train.run(configs["stopped"])


def test_all_processes_stop_after_the_same_step(compose_tiny, tmp_path: Path) -> None:
    configs = {"stopped": compose_tiny(tmp_path / "run", *SETTINGS)}
    assert finish(start(stopped_alone, configs, errors=tmp_path), seconds=120) == [75, 75]
    assert checkpoint.read_meta(tmp_path / "run" / "checkpoints" / "last")["step"] == 3
    said = "".join((tmp_path / str(rank)).read_text() for rank in range(2))
    assert "SIGTERM: stopping after this step" in said
    assert "Traceback" not in said
    assert "ends because" not in said


def test_torchrun(toy_root: Path, tmp_path: Path, compose_tiny) -> None:
    """The command of the README, with two processes."""
    words = compose_tiny.words(tmp_path / "run", *SETTINGS, "trainer.max_steps=2", "trainer.save_every=1")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "stdetr", "train"]
    done = subprocess.run([*launcher, *words], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("2 x cpu") == done.stdout.count("step 2/2") == done.stdout.count("run: ") == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["split"], line["step"]) for line in lines if line["split"] in ("train", "val")] == [
        ("train", 1), ("train", 2), ("val", 2)
    ]  # fmt: skip
