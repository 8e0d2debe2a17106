"""Saving survives an error or a kill at every operation on files, twice in a row; damaged checkpoints are refused."""

from __future__ import annotations

import builtins
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from stdetr import checkpoint
from stdetr.structures import ClassNames

CLASSES = ClassNames((3, 7), ("cat", "dog"))
OPERATIONS = [
    (os, "open"), (os, "fsync"), (os, "mkdir"), (os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"),
    (io, "open"), (builtins, "open"), (safetensors.torch, "save_file"), (torch, "save"),
]  # fmt: skip


class Killed(BaseException):
    """The process is gone: nothing after it happens, no clean-up either."""


class Failing:
    """Counts operations on files and lets the ``at``-th fail: with an error, or as a kill, after which all fail."""

    def __init__(self, at: int, kill: bool) -> None:
        self.at, self.kill, self.count = at, kill, 0

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.at and not self.kill:
            raise OSError(28, "No space left on device")
        if self.kill and self.count >= self.at:
            raise Killed

    @contextmanager
    def applied(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for module, name in OPERATIONS:
                patch.setattr(module, name, self._before(getattr(module, name)))
            yield

    def _before(self, original: Any) -> Any:
        def operation(*arguments: Any, **named: Any) -> Any:
            self()
            return original(*arguments, **named)

        return operation


def save(folder: Path, step: int, keep: int = 1, *, state: bool = True) -> None:
    model = nn.Linear(1, 1)
    nn.init.constant_(model.weight, step)

    def write_state(target: Path) -> None:
        target.mkdir()
        torch.save({"step": step}, target / "optimizer.bin")

    checkpoint.save(
        folder, model, CLASSES, step=step, metrics={"coco/AP": step / 100},
        save_state=write_state if state else None, keep=keep,
    )  # fmt: skip


def found(folder: Path) -> int:
    """The step that a start goes on from, after looking into every file; 0 where it would start anew."""
    checkpoint.recover(folder)
    path = checkpoint.find_resume(folder)
    if path is None:
        return 0
    step = checkpoint.read_meta(path)["step"]
    assert torch.load(path / "state" / "optimizer.bin")["step"] == step
    assert checkpoint.read_weights(path / "model.safetensors")["weight"].item() == step
    return step


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def attempt(folder: Path, step: int, failing: Failing) -> bool:
    """Whether saving came to its end."""
    try:
        with failing.applied():
            save(folder, step)
    except (OSError, Killed):
        return False
    return True


def operations(tmp_path: Path) -> int:
    folder = tmp_path / "counted" / "last"
    save(folder, 1)
    save(folder, 2)
    counter = Failing(0, kill=False)
    with counter.applied():
        save(folder, 3)
    return counter.count


@pytest.mark.parametrize("kill", [False, True], ids=["error", "kill"])
def test_a_failure_at_every_operation_and_another_in_the_next_save(tmp_path: Path, kill: bool, monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # counted all the same; disks are slow
    count = operations(tmp_path)
    assert count > 20
    reached = set()
    for first in range(1, count + 1):
        # Every operation of the second save comes up, each after some of the first failures.
        for second in range(1 + first % 7, count + 12, 7):
            folder = tmp_path / f"{first}_{second}" / "last"
            save(folder, 1)
            save(folder, 2)
            done = attempt(folder, 3, Failing(first, kill))
            complete = 3 if done else 2
            # No start in between: the second save meets what the first has left.
            if attempt(folder, 4, Failing(second, kill)):
                complete = 4
            step = found(folder)
            assert step >= complete, (first, second)
            reached.add((done, step))
            save(folder, 5)
            assert found(folder) == 5
            assert names(folder.parent) == ["last", f"last.{step}"], (first, second)
    assert {(False, 2), (False, 3), (False, 4)} <= reached


@pytest.mark.parametrize("kill", [False, True], ids=["error", "kill"])
def test_a_failure_while_the_start_cleans_up(tmp_path: Path, kill: bool) -> None:
    for at in range(1, 100):
        folder = tmp_path / str(at) / "last"
        save(folder, 1)
        folder.rename(folder.with_name("last.new"))  # complete, and killed before the renaming
        save(folder.with_name("other"), 0)
        folder.with_name("other").rename(folder)
        (folder.parent / "last.7.gone").mkdir()
        (folder.parent / "last.7.gone" / "model.safetensors").touch()
        failing = Failing(at, kill)
        try:
            with failing.applied():
                checkpoint.recover(folder)
        except (OSError, Killed):
            assert found(folder) == 1
            assert names(folder.parent) == ["last", "last.0"]
        if failing.count < at:
            break
    assert 5 < at < 99


def test_the_first_save_that_fails_leaves_a_fresh_start(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "last"
    assert found(folder) == 0
    assert not attempt(folder, 1, Failing(5, kill=True))
    assert names(folder.parent) == ["last.new"]
    assert found(folder) == 0
    assert names(folder.parent) == []


def test_a_disk_that_is_full_keeps_nothing_of_the_new_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    save(folder, 3)

    def fails(target: Path) -> None:
        target.mkdir()
        (target / "half").write_bytes(b"1")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(folder, nn.Linear(1, 1), CLASSES, step=4, metrics={}, save_state=fails)
    assert names(tmp_path) == ["last"]
    assert found(folder) == 3


@pytest.mark.parametrize(("keep", "expected"), [(0, []), (1, ["last.4"]), (3, ["last.2", "last.3", "last.4"])])
def test_older_checkpoints_are_kept(tmp_path: Path, keep: int, expected: list[str]) -> None:
    for step in range(1, 6):
        save(tmp_path / "last", step, keep)
    assert names(tmp_path) == ["last", *expected]


def test_steps_that_a_run_went_back_from_are_dropped(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        save(tmp_path / "last", step, keep=5)
    assert checkpoint.check_state(tmp_path / "last.2") == tmp_path / "last.2"
    save(tmp_path / "last", 4, keep=5)  # went on from 2
    assert names(tmp_path) == ["last", "last.2"]
    assert found(tmp_path / "last") == 4


def test_meta_names_classes_step_metrics_and_checksums(tmp_path: Path) -> None:
    save(tmp_path / "last", 3)
    meta = checkpoint.read_meta(tmp_path / "last")
    sums = meta.pop("sha256")
    assert meta == {"class_ids": [3, 7], "class_names": ["cat", "dog"], "step": 3, "metrics": {"coco/AP": 0.03}}
    assert sums.keys() == {"model.safetensors", "state/optimizer.bin"}
    checkpoint.amend(tmp_path / "last", metrics={"coco/AP": 0.5}, evaluated=3)
    assert checkpoint.read_meta(tmp_path / "last") == {
        **meta, "metrics": {"coco/AP": 0.5}, "evaluated": 3, "sha256": sums,
    }  # fmt: skip


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def turn_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def without_step(path: Path) -> None:
    path.write_text(json.dumps({"sha256": {}}))


@pytest.mark.parametrize(
    ("file", "harm", "told"),
    [
        ("meta.json", Path.unlink, "meta.json is missing"),
        ("meta.json", cut, "meta.json is damaged"),
        ("meta.json", without_step, "meta.json is damaged"),
        ("state/optimizer.bin", Path.unlink, "state/optimizer.bin is missing"),
        ("state/optimizer.bin", cut, "state/optimizer.bin is damaged"),
        ("model.safetensors", turn_a_bit, "model.safetensors is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_a_good_one_offered(
    tmp_path: Path, file: str, harm: Any, told: str
) -> None:
    folder = tmp_path / "last"
    save(folder, 1)
    save(folder, 2)
    before = names(tmp_path)
    harm(folder / file)
    with pytest.raises(ValueError, match=f"{told}.*resume={tmp_path / 'last.1'} goes on from step 1"):
        found(folder)
    assert names(tmp_path) == before
    harm(tmp_path / "last.1" / file)
    with pytest.raises(ValueError, match=f"{told}.*no other complete checkpoint is beside it.*output_dir"):
        found(folder)


def test_a_missing_state_or_folder_is_no_fresh_start(tmp_path: Path) -> None:
    save(tmp_path / "last", 1, state=False)
    with pytest.raises(ValueError, match=r"last cannot be resumed: state/ is missing; no other"):
        found(tmp_path / "last")
    (tmp_path / "last").rename(tmp_path / "best")
    with pytest.raises(ValueError, match=rf"the folder is missing; no other.*init_from={tmp_path / 'best'}"):
        found(tmp_path / "last")


def test_a_reader_finds_best_just_before_its_last_renaming(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    for name in ("best", "last"):
        save(checkpoints / name, 1)
    (checkpoints / "best").rename(checkpoints / "best.new")
    assert checkpoint.find_weights(tmp_path) == checkpoints / "best.new" / "model.safetensors"
    (checkpoints / "best.new" / "meta.json").unlink()
    assert checkpoint.find_weights(tmp_path) == checkpoints / "last" / "model.safetensors"


def test_checkpoints_without_checksums_are_accepted(tmp_path: Path) -> None:
    save(tmp_path / "last", 1)
    meta = checkpoint.read_meta(tmp_path / "last")
    del meta["sha256"]
    (tmp_path / "last" / "meta.json").write_text(json.dumps(meta))
    assert found(tmp_path / "last") == 1
