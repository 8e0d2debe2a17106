"""Kill training again and again (SIGKILL), and compare what it gives in the end with an undisturbed run.

    python scripts/kill_test.py kills=200 in_saves=40 output=benchmarks/kills.json

Keys: kills (all of them), in_saves (those among them that come at an operation on files while a checkpoint is saved, in
pairs: in two starts running), seed, workers (of the data loader), folder, output.  A run is killed a few times and then
left to end; every run is compared with the undisturbed one: weights of ``last`` and ``best`` bit by bit, the records of
``metrics.jsonl`` and those of W&B (offline).  Exit code 1 where one differs.

Runs are forked from a process that has loaded torch, so that a start takes a second.  Killed is the training process
alone, as by ``kill -9``; W&B's own process writes what it was given.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import wandb  # noqa: F401 - loaded before the forks
from omegaconf import OmegaConf
from safetensors.torch import load_file

from stdetr import checkpoint
from stdetr.bench.report import finish
from stdetr.config import compose
from stdetr.engine import train
from stdetr.logger.wandb_file import read_history

WORDS = (
    "experiment=toy", "data.benchmark.frame_size=64", "data.benchmark.frames=8",
    "data.benchmark.splits.train.videos=6", "data.benchmark.splits.val.videos=2", "data.benchmark.splits.test.videos=2",
    "data.frames=3", "data.loader.batch_size=2", "model.width=32", "model.queries=6", "model.feed_forward=32",
    "model.detector.neck.norm_groups=4", "trainer.max_steps=8", "trainer.single_frame=3", "trainer.log_every=2",
    "trainer.save_every=3", "trainer.eval_every=4", "trainer.threads=1", "logger=wandb", "logger.wandb.mode=offline",
    "viz.samples=0",
)  # fmt: skip
TIMING = ("frames_per_second", "clips_per_second", "data_wait")
OPERATIONS = [
    (os, "open"), (os, "fsync"), (os, "mkdir"), (os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"),
    (io, "open"), (builtins, "open"), (safetensors.torch, "save_file"),
]  # fmt: skip


class KillInSave:
    """Kills this process at the ``at``-th operation on files within the saving of checkpoints."""

    def __init__(self, at: int, counted: Path | None = None) -> None:
        self.left, self.inside, self.counted, self.count = at, False, counted, 0

    def install(self) -> None:
        for module, name in OPERATIONS:
            setattr(module, name, self._before(getattr(module, name)))
        for name in ("save", "recover", "amend"):
            setattr(checkpoint, name, self._within(getattr(checkpoint, name)))

    def _within(self, original: Callable) -> Callable:
        def function(*arguments: Any, **named: Any) -> Any:
            before, self.inside = self.inside, True
            try:
                return original(*arguments, **named)
            finally:
                self.inside = before
                if self.counted is not None:
                    self.inside, inside = False, self.inside
                    self.counted.write_text(str(self.count))
                    self.inside = inside

        return function

    def _before(self, original: Callable) -> Callable:
        def operation(*arguments: Any, **named: Any) -> Any:
            if self.inside:
                self.count += 1
                self.left -= 1
                if self.left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **named)

        return operation


def begin(words: list[str], folder: Path, log: Path, hook: KillInSave | None = None) -> int:
    """Start a run in a process of its own; returns its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        os.setpgid(0, 0)
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        if hook is not None:
            hook.install()
        train.run(compose("train", [*words, f"output_dir={folder}"]))
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(number: int, seconds: float | None = None) -> int | None:
    """The exit code, negative for a signal; None where the process runs on after ``seconds``."""
    until = time.monotonic() + (600 if seconds is None else seconds)
    while time.monotonic() < until:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def outcome(folder: Path) -> dict[str, Any]:
    """What a run has learned and recorded."""
    weights = {name: load_file(folder / "checkpoints" / name / "model.safetensors") for name in ("last", "best")}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = [json.dumps({k: v for k, v in line.items() if k not in TIMING}, sort_keys=True) for line in lines]
    sent: Counter[tuple[int, str]] = Counter()
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for row in read_history(file):
            step = int(row.get("trainer/step", -1))
            sent.update((step, name) for name in row if name.partition("/")[0] in ("train", "val", "media", "table"))
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    return {"weights": weights, "metrics": metrics, "sent": sent, "left": left}


def settled(folder: Path) -> None:
    """Wait until W&B's own processes have written what they were given."""
    size, since = -1, time.monotonic()
    while time.monotonic() - since < 30:
        now = sum(file.stat().st_size for file in folder.glob("wandb/offline-run-*/run-*.wandb"))
        if now == size:
            return
        size = now
        time.sleep(1.0)


def same(a: dict[str, dict[str, torch.Tensor]], b: dict[str, dict[str, torch.Tensor]]) -> bool:
    return all(
        a[which].keys() == b[which].keys() and all(torch.equal(x, b[which][name]) for name, x in a[which].items())
        for which in a
    )


def main() -> int:
    keys: dict[str, Any] = {"kills": 6, "in_saves": 4, "seed": 0, "workers": 0, "folder": None, "output": None}
    given = OmegaConf.to_container(OmegaConf.from_dotlist(sys.argv[1:]))
    assert isinstance(given, dict)
    if unknown := [key for key in given if key not in keys]:
        raise SystemExit(f"error: {unknown[0]}: no such key; there are {', '.join(keys)}")
    keys |= {str(key): value for key, value in given.items()}
    root = Path(keys["folder"] or tempfile.mkdtemp(prefix="kills-"))
    root.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    words = [*WORDS, f"paths.data={root / 'data'}", f"data.loader.num_workers={keys['workers']}"]
    log, draw = root / "log.txt", random.Random(int(keys["seed"]))

    assert wait(begin(words, root / "first", log)) == 0, log.read_text()[-3000:]  # makes the data
    began = time.monotonic()
    counted = root / "operations"
    assert wait(begin(words, root / "whole", log, KillInSave(0, counted))) == 0, log.read_text()[-3000:]
    seconds, operations = time.monotonic() - began, int(counted.read_text())
    settled(root)
    whole = outcome(root / "whole")
    assert same(whole["weights"], outcome(root / "first")["weights"]), "not deterministic without kills"
    print(f"undisturbed: {seconds:.1f} s, {operations} operations on files in saves", flush=True)

    in_saves = ["save", "save"] * (int(keys["in_saves"]) // 2)
    at_random = ["random"] * (int(keys["kills"]) - len(in_saves))
    result: dict[str, Any] = {"keys": keys, "runs": 0, "kills": 0, "kills_in_saves": 0, "ended_before": 0}
    result |= dict.fromkeys(("other_weights", "other_metrics", "left_over", "wandb_missing", "wandb_double"), 0)
    failures: list[str] = []
    while in_saves or at_random:
        folder = root / f"run{result['runs']}"
        plan = [in_saves.pop(), in_saves.pop()] if in_saves else []
        plan += [at_random.pop() for _ in range(min(len(at_random), draw.randint(1, 4)))]
        if draw.random() < 0.5:
            plan.reverse()  # the pair of saves stays together
        for kind in plan:
            if kind == "save":
                number = begin(words, folder, log, KillInSave(draw.randint(1, operations)))
                code = wait(number)
            else:
                number = begin(words, folder, log)
                code = wait(number, draw.uniform(0.0, seconds))
                if code is None:
                    os.kill(number, signal.SIGKILL)
                    code = wait(number)
            if code == -signal.SIGKILL:
                result["kills"] += 1
                result["kills_in_saves"] += kind == "save"
            else:
                result["ended_before"] += 1
                (in_saves if kind == "save" else at_random).append(kind)  # another run gets it
                if code != 0:
                    failures.append(f"{folder.name}: a start after a kill ended with {code}")
                    break
        if len(in_saves) % 2:
            in_saves.append("save")
        code = wait(begin(words, folder, log))
        settled(folder)
        result["runs"] += 1
        if code != 0:
            failures.append(f"{folder.name}: the last start ended with {code}")
            continue
        found = outcome(folder)
        missing, double = whole["sent"] - found["sent"], found["sent"] - whole["sent"]
        result["wandb_missing"] += sum(missing.values())
        result["wandb_double"] += sum(double.values())
        for name, wrong in (
            ("other_weights", not same(whole["weights"], found["weights"])),
            ("other_metrics", whole["metrics"] != found["metrics"]),
            ("left_over", whole["left"] != found["left"]),
            ("wandb", bool(missing or double)),
        ):
            if wrong:
                detail = f" missing {list(missing)[:3]} double {list(double)[:3]}" if name == "wandb" else ""
                failures.append(f"{folder.name}: {name}{detail} after {plan}")
                if name in result:
                    result[name] += 1
        if not any(text.startswith(f"{folder.name}:") for text in failures):
            shutil.rmtree(folder)
        print(f"{result['kills']} kills, {result['runs']} runs, {len(failures)} failures", flush=True)
    result["failures"] = failures
    finish(result, table=None, output=keys["output"])
    if not failures and keys["folder"] is None:
        shutil.rmtree(root)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
