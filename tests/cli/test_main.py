"""Verbs, help, version, where runs write, exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import stdetr
from stdetr.cli import main
from stdetr.cli.verbs import VERBS


def test_overview_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for verb in ("train", "eval", "predict", "data", "export", "bench", "doctor"):
        assert f"stdetr {verb}" in out
    assert main([]) == 0
    assert capsys.readouterr().out == out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"stdetr {stdetr.__version__}\n"


def test_help_lists_groups_and_keys(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "model=large", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  model           [large]  small" in lines
    assert "  experiment      [none]  mot_pets  toy" in lines
    keys = {line.split("=")[0].strip(): line for line in lines if re.match(r"  [\w.]+ += ", line)}
    assert keys["model.width"].split("= ")[1] == "256"
    assert keys["trainer.ema"].split("= ")[1] == "true"
    assert keys["seed"].endswith("= 0  # of everything")
    assert not any(line.strip().startswith("hydra") for line in lines)


def test_config_is_printed_as_yaml(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "experiment=toy", "output_dir=runs/a", "--cfg", "job", "--resolve"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["trainer"]["max_steps"] == 20
    assert shown["output_dir"] == "runs/a"
    assert "hydra" not in shown
    assert main(["train", "--cfg", "--package", "model"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {"width": 64, "points": 4, "stride": 1}


def test_run_gets_the_composed_configuration(recorder: object) -> None:
    assert main(["train", "experiment=mot_pets", "model.points=8", "output_dir=runs/a"]) == 0
    (cfg,) = recorder.configs  # pyright: ignore[reportAttributeAccessIssue]
    assert (cfg.trainer.max_steps, cfg.model.points, cfg.output_dir) == (50, 8, "runs/a")
    assert "hydra" not in cfg


def test_default_folder_of_a_run(recorder: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["train"]) == 0
    assert main(["train", "paths.outputs=elsewhere"]) == 0
    first, second = (cfg.output_dir for cfg in recorder.configs)  # pyright: ignore[reportAttributeAccessIssue]
    assert re.fullmatch(r"outputs/train/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", first)
    assert second.startswith("elsewhere/train/")
    assert not Path("outputs").exists()  # the run makes its own folder, so a mistake leaves none behind


def test_several_processes_need_a_folder_in_common(
    recorder: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train"]) == 2
    assert "output_dir" in capsys.readouterr().err
    assert main(["train", "output_dir=runs/a"]) == 0


def test_doctor_has_no_folder(recorder: object) -> None:
    assert main(["doctor"]) == 0
    assert "output_dir" not in recorder.configs[0]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("answer", "code"), [(None, 0), (0, 0), (1, 1), (3, 3), (0.7, 0), (True, 0)])
def test_exit_code(recorder: object, answer: object, code: int) -> None:
    recorder.answer = lambda cfg: answer  # pyright: ignore[reportAttributeAccessIssue]
    assert main(["train"]) == code


def test_extra_config_folder(recorder: object, tmp_path: Path) -> None:
    own = tmp_path / "my conf" / "model"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("width: 7\npoints: 1\nstride: 1\n", encoding="utf-8")
    assert main(["train", "--config-dir", str(own.parent), "model=mine"]) == 0
    assert recorder.configs[0].model.width == 7  # pyright: ignore[reportAttributeAccessIssue]


def test_every_verb_names_a_module_of_the_package() -> None:
    assert all(verb.module.startswith("stdetr.") for verb in VERBS.values())
    assert list(VERBS) == ["train", "eval", "predict", "data", "export", "bench", "doctor"]


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from stdetr.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_closed_pipe_is_quiet(conf: Path) -> None:
    command = f"{sys.executable} -m stdetr train --help | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.stdout.startswith("stdetr train")


def test_info_and_shell_completion_are_hydras(
    conf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-sc", "install=bash"]) == 0
    assert "complete " in capsys.readouterr().out

    def query(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        assert main(["-sc", "query=bash"]) == 0
        return capsys.readouterr().out.split()

    assert query("stdetr ") == list(VERBS)
    assert query("stdetr pr") == ["predict"]
    assert query("stdetr train model=") == ["model=large", "model=small"]
    assert query("stdetr train trainer.max") == ["trainer.max_steps="]
    assert "source=" in query("stdetr predict s")
    assert main(["train", "model=large", "--info", "defaults"]) == 0
    assert "model/large" in capsys.readouterr().out
