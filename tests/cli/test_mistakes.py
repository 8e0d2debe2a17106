"""Each mistake gives one line that names the key, the value and the nearest name, and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

from stdetr.cli import main


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["predcit"], ["predcit", "'predict'"]),
        (["zzz"], ["zzz", "train, eval, predict"]),
        (["train", "experiment=toi"], ["experiment=toi", "'toy'", "mot_pets, toy"]),
        (["train", "experiment=/x"], ["experiment=/x", "mot_pets, toy"]),
        (["train", "model=5"], ["model=5", "large, small"]),
        (["train", "trainer.max_stpes=3"], ["trainer.max_stpes=3", "'trainer.max_steps'"]),
        (["train", "trainr.max_steps=3"], ["trainr.max_steps=3", "'trainer.max_steps'"]),
        (["train", "max_steps=3"], ["max_steps=3", "'trainer.max_steps'"]),
        (["train", "experment=toy"], ["experment=toy", "'experiment'"]),
        (["train", "model.colour=3"], ["model.colour=3", "'model' has width, points, stride"]),
        (["train", "qqqqqq=3"], ["qqqqqq=3", "stdetr train --help"]),
        (["train", "~trainer.lrr"], ["~trainer.lrr", "'trainer.lr'"]),
        (["train", "trainer.max_steps=abc"], ["trainer.max_steps=abc", "a number", "200"]),
        (["train", "trainer.max_steps=true"], ["trainer.max_steps=true", "a number"]),
        (["train", "trainer.ema=yes_please"], ["trainer.ema=yes_please", "true or false"]),
        (["train", "trainer.evaluators=coco"], ["trainer.evaluators=coco", "'trainer.evaluators=[coco]'"]),
        (["train", "trainer.precision=[a,b]"], ["trainer.precision", "text"]),
        (["train", "trainer=fast"], ["trainer=fast", "section", "max_steps"]),
        (["train", "trainer.max_steps=2,3"], ["trainer.max_steps=2,3", "-m"]),
        (["train", "-m", "trainer.max_steps=2,abc"], ["trainer.max_steps=abc", "a number"]),
        (["train", "-m", "trainer.max_stpes=2,3"], ["max_stpes", "'trainer.max_steps'"]),
        (["train", "-m", "experiment=toy,toi"], ["experiment=toi", "'toy'"]),
        (["train", "experiment", "toy"], ["'experiment'", "key=value"]),
        (["train", "=3"], ["'=3'", "key=value"]),
        (["train", "checkpoint=a(b).mp4"], ["checkpoint=a(b).mp4", "quotes", 'checkpoint="a(b).mp4"']),
        (["train", "experiment=null"], ["experiment=null", "~experiment"]),
        (["train", "--max-steps=3"], ["--max-steps=3", "max_steps=3"]),
        (["train", "--multrun"], ["--multrun", "'--multirun'"]),
        (["train", "--config-dir", "nowhere"], ["--config-dir nowhere", "no such folder"]),
        (["train", "--config-dir"], ["--config-dir", "expected one argument"]),
        (["train", "hydra.run.dir=x"], ["hydra.run.dir=x", "output_dir"]),
        (["train", "--cfg", "--package", "zzz"], ["--package zzz", "no such section"]),
        (["train", "--cfg=jop"], ["--cfg", "'jop'", "job", "hydra"]),
        (["train", "--package", "model"], ["--package", "--cfg"]),
        (["eval"], ["eval"]),
    ],
)
def test_one_line(
    conf: Path, recorder: object, capfd: pytest.CaptureFixture[str], words: list[str], parts: list[str]
) -> None:
    assert main(words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    for part in parts:
        assert part in err
    assert recorder.configs == []  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "words",
    [
        ["trainer.max_steps=null"],
        ["trainer.lr=1"],
        ["trainer.lr=1e-4"],
        ["trainer.note=abc"],
        ["trainer.note=[1,2]"],
        ["trainer.precision=false"],
        ["trainer.betas=[0.5,0.6]"],
        ["model.stride=[1,2,4]"],
        ["trainer.max_steps=${seed}"],
        ["++trainer.max_steps=abc"],
        ["+trainer.new=abc"],
        ["~trainer.lr"],
        ["experiment=toy", "trainer.max_steps=7"],
        ["~model"],
        ['checkpoint="a(b).mp4"'],
    ],
)
def test_these_are_no_mistakes(recorder: object, words: list[str]) -> None:
    assert main(["train", *words]) == 0
    assert len(recorder.configs) == 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", ["2024_11_05", "007", "1e5", "2024", "true", "inf", "-3.50"])
def test_paths_that_look_like_numbers_stay_as_typed(recorder: Any, name: str) -> None:
    assert main(["train", f"output_dir={name}", f"++data.root={name}"]) == 0
    assert (recorder.configs[-1].output_dir, recorder.configs[-1].data.root) == (name, name)


def test_required_key(recorder: object, capsys: pytest.CaptureFixture[str]) -> None:
    recorder.answer = lambda cfg: cfg.source  # pyright: ignore[reportAttributeAccessIssue]
    assert main(["predict"]) == 2
    assert capsys.readouterr().err == "error: source is required: source=...\n"


def _raise(error: BaseException) -> object:
    raise error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("data.root=x: no\n  such folder"), "data.root=x: no such folder"),
        (FileNotFoundError("no checkpoint in runs/a"), "no checkpoint in runs/a"),
        (FileNotFoundError(2, "No such file or directory", "a.mp4"), "a.mp4: no such file or directory"),
        (PermissionError(13, "Permission denied", "/root/x"), "/root/x: permission denied"),
        (
            ValueError(
                "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                '  File "x.py", line 3, in f\n    raise ValueError(m)\nValueError: clip.mp4: not a video\n'
            ),
            "clip.mp4: not a video",
        ),
        (
            RuntimeError("operator torchvision::nms does not exist"),
            "torch and torchvision do not match (operator torchvision::nms does not exist); run 'stdetr doctor'",
        ),
    ],
)
def test_errors_of_a_run(recorder: object, capsys: pytest.CaptureFixture[str], error: BaseException, line: str) -> None:
    recorder.answer = lambda cfg: _raise(error)  # pyright: ignore[reportAttributeAccessIssue]
    assert main(["train"]) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize("error", [TypeError("a bug"), AssertionError("a bug"), RuntimeError("a bug"), KeyError("a")])
def test_bugs_keep_their_traceback(recorder: object, error: BaseException) -> None:
    recorder.answer = lambda cfg: _raise(error)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(type(error)):
        main(["train"])


def test_a_key_that_code_asks_for_and_lacks_is_a_bug(recorder: object) -> None:
    recorder.answer = lambda cfg: cfg.trainer.nothing  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ConfigAttributeError):
        main(["train"])


def test_traceback_on_request(recorder: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STDETR_TRACEBACK", "1")
    with pytest.raises(ValueError, match="max_stpes"):
        main(["train", "trainer.max_stpes=3"])


def test_interrupt(recorder: object, capsys: pytest.CaptureFixture[str]) -> None:
    recorder.answer = lambda cfg: _raise(KeyboardInterrupt())  # pyright: ignore[reportAttributeAccessIssue]
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_unresolvable_value(recorder: object, capsys: pytest.CaptureFixture[str]) -> None:
    recorder.answer = lambda cfg: OmegaConf.to_container(cfg, resolve=True)  # pyright: ignore[reportAttributeAccessIssue]
    assert main(["train", "checkpoint=${nowhere.at_all}"]) == 2
    err = capsys.readouterr().err
    assert "nowhere.at_all" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [["predcit"], ["train", "trainer.max_stpes=3", "experiment=toy"]])
def test_the_command_itself(conf: Path, words: list[str]) -> None:
    result = subprocess.run([sys.executable, "-m", "stdetr", *words], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
