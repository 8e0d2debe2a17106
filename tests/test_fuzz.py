"""Damaged and hostile command lines, videos, states and configurations: each is accepted or refused in one line; none
gives a traceback, hangs or writes elsewhere.  (Annotations, predictions and MOT text: tests/data/test_fuzz.py.)

The inputs are the same at each run.  ``STDETR_FUZZ=4000`` sets how many each reader gets; ``make check`` takes fewer.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from stdetr.cli import main
from stdetr.cli.errors import user_line

pytestmark = pytest.mark.slow
COUNT = int(os.environ.get("STDETR_FUZZ", "150"))
SECONDS = 20.0

NASTY: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "x", "1", "../../etc/passwd", "/etc/passwd", "a\x00b", "a\nb", "\ud800", "é" * 300, "<script>", "${seed}", [], {},
    [[]], [None], {"id": 1}, [1, 2, 3, 4], ["a"] * 5, {"": ""},
]  # fmt: skip


class Hang(BaseException):
    pass


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def verdict(call: Callable[[], object], name: str | None = None) -> str | None:
    """None where ``call`` keeps the contract, else what it did instead.  ``name``: what a refusal must mention."""
    try:
        with limited(SECONDS):
            call()
    except Hang:
        return f"no answer within {SECONDS} s"
    except Exception as error:
        line = user_line(error)
        if line is None:
            return f"{type(error).__name__}: {str(error)[:200]!r}"
        if "\n" in line or len(line) > 2000:
            return f"not one line: {line[:300]!r}"
        if name is not None and name not in line:
            return f"names no file: {line[:300]!r}"
    return None


def every(name: str, one: Callable[[random.Random, int], str | None], count: int = COUNT) -> None:
    """Try ``count`` inputs; each failure tells the number that repeats it."""
    failures = {}
    for number in range(count):
        found = one(random.Random(f"{name} {number}"), number)
        if found is not None:
            failures.setdefault(found.partition(":")[0], f"input {number}: {found}")
    assert not failures, f"{len(failures)} kinds: {failures}"


def mutated(draw: random.Random, document: Any) -> Any:
    """A copy of a JSON document with one to three values replaced, removed or repeated."""
    document = copy.deepcopy(document)
    for _ in range(draw.randint(1, 3)):
        places: list[tuple[Any, Any]] = []
        pile = [document]
        while pile:
            node = pile.pop()
            items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
            for key, value in items:
                places.append((node, key))
                pile.append(value)
        if not places:
            return document
        node, key = draw.choice(places)
        action = draw.random()
        if action < 0.6:
            node[key] = copy.deepcopy(draw.choice(NASTY))
        elif action < 0.75:
            del node[key]
        elif isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        else:
            node[str(draw.choice(NASTY))] = copy.deepcopy(node[key])
    return document


def as_bytes(document: Any) -> bytes:
    return json.dumps(document).encode("utf-8", "surrogatepass")


def damaged(draw: random.Random, data: bytes) -> bytes:
    """Cut, overwritten, bits turned, a part repeated or removed, bytes put in."""
    out = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place, length = draw.randrange(len(out) + 1), draw.choice([1, 2, 4, 16, 200])
        action = draw.randrange(6)
        if action == 0:
            del out[place:]
        elif action == 1:
            out[place : place + length] = draw.randbytes(length)
        elif action == 2 and place < len(out):
            out[place] ^= 1 << draw.randrange(8)
        elif action == 3:
            out[place:place] = out[place : place + length]
        elif action == 4:
            del out[place : place + length]
        else:
            out[place:place] = draw.choice([b"\x00", b"\xff\xfe", b"[" * 2000, b"9" * 400, b'"', b"\n", b"NaN", b"-"])
    return bytes(out)


def either(draw: random.Random, document: Any) -> bytes:
    return as_bytes(mutated(draw, document)) if draw.random() < 0.7 else damaged(draw, as_bytes(document))


def test_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Composed, and explained where they do not compose; nothing runs."""
    monkeypatch.chdir(tmp_path)
    good = [
        "train", "experiment=toy", "trainer.max_steps=3", "model.width=32", "data.frames=3", "optim.lr=1e-3",
        "resume_with=[optim.lr]", "data.benchmark.splits.train.videos=6", "logger=jsonl", "+new.key=1", "~init_from",
        "trust=mylab.Model", "output_dir=run", "data.train_transforms=[]", "seed=1,2",
    ]  # fmt: skip

    def one(draw: random.Random, number: int) -> str | None:
        words = [good[0], *draw.sample(good[1:], draw.randint(1, 4))]
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(words))
            word = damaged(draw, words[place].encode()).decode("utf-8", "replace").replace("\x00", "")
            key, equals, _ = words[place].partition("=")
            nasty = f"{key}={draw.choice(NASTY)}".encode("utf-8", "replace").decode()
            words[place] = draw.choice([word, nasty, key, equals, f"{key}={words[place]}"])
        codes = []
        found = verdict(lambda: codes.append(main([*words, "--cfg"])))
        out = capsys.readouterr()
        if found is None and codes[0] == 2 and out.err.count("\n") != 1:
            found = f"not one line: {out.err[:300]!r}"
        elif found is None and codes[0] not in (0, 2):
            found = f"exit code {codes[0]}"
        return f"{found} {words}" if found else None

    every("commands", one, max(20, COUNT // 4))
    assert not (tmp_path / "run").exists()


def test_videos(tmp_path: Path, encode: Callable[..., Path]) -> None:
    from stdetr.video.open import open_source

    originals = [
        encode("fuzz.mp4", "-c:v", "libx264", "-g", "5", frames=12).read_bytes(),
        encode("fuzz.mkv", "-c:v", "libx264", "-g", "5", frames=12).read_bytes(),
        encode("fuzz.avi", "-c:v", "mpeg4", frames=12).read_bytes(),
    ]

    def one(draw: random.Random, number: int) -> str | None:
        data = draw.choice(originals)
        path = tmp_path / "video.mp4"
        path.write_bytes(damaged(draw, data))

        def read() -> None:
            source = open_source(path)
            try:
                for _ in source.iterate(0, min(len(source), 30), 1):
                    pass
            finally:
                source.close()

        return verdict(read, path.name)

    every("videos", one, max(30, COUNT // 2))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of a small model with state."""
    import torch
    from torch import nn

    from stdetr.class_names import ClassNames
    from stdetr.config import RunPaths
    from stdetr.engine.average import WeightAverage
    from stdetr.engine.meter import Meter
    from stdetr.engine.state import RunRecord, RunState

    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    state = RunState(model, torch.optim.AdamW(model.parameters()), WeightAverage(model, 0.9), Meter())
    model(torch.ones(3, 2)).sum().backward()
    state.optimizer.step()
    state.progress.step = 3
    paths = RunPaths(tmp_path / "run")
    config = {"optim": {"lr": 0.1}, "trainer": {"max_steps": 9}, "model": {"detector": None}, "data": {"frames": 3}}
    record = RunRecord(paths, ClassNames((1, 2), ("a", "b")), config, {"history": [], "annotations": "0"})
    record.save(paths.last, state.shown, 3, {"coco/AP": 0.5}, save_state=lambda folder: state.write(folder, {}),
                notes={"best": 0.5, "evaluated": 3})  # fmt: skip
    return paths.last


def test_states(saved: Path, tmp_path: Path) -> None:
    import torch
    from omegaconf import OmegaConf
    from torch import nn

    from stdetr import checkpoint
    from stdetr.class_names import ClassNames
    from stdetr.config import RunPaths
    from stdetr.engine import resume
    from stdetr.engine.average import WeightAverage
    from stdetr.engine.meter import Meter
    from stdetr.engine.state import RunState

    files = [path.relative_to(saved) for path in saved.rglob("*") if path.is_file()]
    folder = tmp_path / "fuzzed" / "checkpoints" / "last"
    cfg = OmegaConf.create(
        {"optim": {"lr": 0.1}, "trainer": {"max_steps": 9}, "model": {"detector": None}, "data": {"frames": 3},
         "resume": "auto", "resume_with": []}
    )  # fmt: skip

    def one(draw: random.Random, number: int) -> str | None:
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(saved, folder)
        target = folder / draw.choice(files)
        content = target.read_bytes()
        if target.suffix == ".json" and draw.random() < 0.7:
            content = as_bytes(mutated(draw, json.loads(content)))
        else:
            content = damaged(draw, content)
        target.write_bytes(content)
        if draw.random() < 0.8 and target.name != "meta.json":  # whoever changes a file can change its checksum
            meta = json.loads((folder / "meta.json").read_text())
            meta["sha256"][str(target.relative_to(folder))] = checkpoint.sha256(target)
            (folder / "meta.json").write_text(json.dumps(meta))

        def start() -> None:
            found = resume.find(cfg, RunPaths(folder.parents[1]))
            assert found is not None
            found.with_annotations("0")
            found.class_order(ClassNames((1, 2), ("a", "b")))
            found.history(RunPaths(folder.parents[1]))
            model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
            state = RunState(model, torch.optim.AdamW(model.parameters()), WeightAverage(model, 0.9), Meter())
            state.read(found.folder)
            state.optimizer.step()
            state.meter.read()

        return verdict(start, "last")

    every("states", one, 2 * COUNT)


def test_checkpoints_and_configurations(saved: Path, tmp_path: Path, compose_toy: Any) -> None:
    """What lies beside weights: the configuration builds the model, meta.json names the classes."""
    from omegaconf import OmegaConf

    from stdetr import checkpoint
    from stdetr.class_names import ClassNames
    from stdetr.config import instantiate
    from stdetr.inference.detector import Detector

    compose_toy.model.classes = 2
    folder = tmp_path / "good" / "last"
    config = OmegaConf.to_container(compose_toy, resolve=True)
    checkpoint.save(folder, instantiate(compose_toy.model.detector), ClassNames((1, 2), ("a", "b")), step=1, metrics={},
                    config=config)  # fmt: skip
    Detector.from_checkpoint(folder, device="cpu")
    text, target = (folder / "config.yaml").read_bytes(), tmp_path / "fuzzed" / "last"

    def one(draw: random.Random, number: int) -> str | None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
        kind = draw.random()
        if kind < 0.5:
            # Only what is read: the model and the transforms.
            part = mutated(draw, {"model": config["model"], "data": {key: config["data"][key] for key in PARTS}})
            if any(size in str(part) for size in ("2147483648", "9223372036854775808", "18446744073709551616")):
                return None  # a model of that size fills the machine's memory
            (target / "config.yaml").write_text(json.dumps(part).encode("utf-8", "replace").decode())
        elif kind < 0.75:
            (target / "config.yaml").write_bytes(damaged(draw, text))
        else:
            meta = json.loads((folder / "meta.json").read_text())
            (target / "meta.json").write_bytes(either(draw, meta))
        return verdict(lambda: Detector.from_checkpoint(target, device="cpu"))

    every("checkpoints", one, COUNT)


PARTS = ("frames", "mean", "std", "eval_transforms", "loader")


@pytest.fixture
def compose_toy() -> Any:
    from stdetr.config import compose

    return compose("train", ["experiment=toy", "model.width=32", "model.feed_forward=32", "model.queries=6",
                             "model.detector.neck.norm_groups=4"])  # fmt: skip
