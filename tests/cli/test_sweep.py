"""Sweeps through Hydra's multirun: a folder per job, a record per job, one summary."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stdetr.cli import main


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_grid(recorder, write_metrics, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(cfg) -> float:
        write_metrics(cfg, {"coco/AP": cfg.model.points / 100, "coco/AP50": cfg.seed / 10, "tube/AP": None})
        return cfg.model.points + cfg.seed / 10

    recorder.answer = answer
    assert main(["train", "-m", "experiment=toy", "model.points=2,8", "seed=1,3", "output_dir=runs/my sweep"]) == 0
    folder = Path("runs/my sweep")
    assert [(cfg.model.points, cfg.seed, cfg.trainer.max_steps) for cfg in recorder.configs] == [
        (2, 1, 20), (2, 3, 20), (8, 1, 20), (8, 3, 20),
    ]  # fmt: skip
    for number, cfg in enumerate(recorder.configs):
        assert Path(cfg.output_dir) == (folder / str(number)).resolve()
        record = json.loads((folder / str(number) / "job.json").read_text(encoding="utf-8"))
        assert record["status"] == "done"
        assert f"model.points={cfg.model.points}" in record["overrides"]
    rows = rows_of(folder)
    assert [row["objective"] for row in rows] == ["2.1", "2.3", "8.1", "8.3"]
    assert [row["coco/AP"] for row in rows] == ["0.02", "0.02", "0.08", "0.08"]
    markdown = (folder / "summary.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown]
    assert cells[0] == ["job", "model.points", "seed", "status", "objective", "seconds", "coco/AP", "coco/AP50"]
    assert cells[5][:5] == ["3", "8", "3", "done", "8.3"]
    assert cells[5][6:] == ["0.08", "0.3"]
    out = capsys.readouterr().out
    assert "experiment" not in out.splitlines()[0]  # the same in every job
    assert "4 jobs: runs/my sweep/summary.csv" in out
    assert Path.cwd().joinpath("conf").is_dir()  # no job changed the working directory


def test_default_folder_and_outputs_variable(recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STDETR_OUTPUTS", "elsewhere")
    assert main(["train", "-m", "seed=1"]) == 0
    (folder,) = Path("elsewhere/sweeps/train").iterdir()
    assert Path(recorder.configs[0].output_dir) == folder.resolve() / "0"


def test_a_failing_job_is_in_the_summary_and_in_the_exit_code(recorder, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(cfg) -> float:
        if cfg.seed == 1:
            raise ValueError("seed=1 is unlucky")
        return float(cfg.seed)

    recorder.answer = answer
    assert main(["train", "-m", "seed=0,1,2", "output_dir=runs/s"]) == 2
    assert [row["status"] for row in rows_of(Path("runs/s"))] == ["done", "failed", "done"]
    assert rows_of(Path("runs/s"))[1]["error"] == "ValueError: seed=1 is unlucky"
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "error: seed=1 is unlucky"
    assert "Traceback" not in captured.err


def test_a_job_with_an_exit_code(recorder) -> None:
    recorder.answer = lambda cfg: 1
    assert main(["train", "-m", "seed=0", "output_dir=runs/s"]) == 1
    assert rows_of(Path("runs/s"))[0]["status"] == "exit 1"


def test_a_second_sweep_in_one_folder_lists_its_own_jobs(recorder) -> None:
    assert main(["train", "-m", "seed=0,1,2", "output_dir=runs/s"]) == 0
    for path in Path("runs/s").glob("*/job.json"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert main(["train", "-m", "seed=5,6", "output_dir=runs/s"]) == 0
    assert [row["seed"] for row in rows_of(Path("runs/s"))] == ["5", "6"]


def test_option_that_sweeps_by_itself(recorder, conf: Path) -> None:
    text = "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      model.points: 1,2,3\n"
    (conf / "hparams_search" / "mine.yaml").write_text(text, encoding="utf-8")
    assert main(["train", "hparams_search=mine", "output_dir=runs/s"]) == 0
    assert [cfg.model.points for cfg in recorder.configs] == [1, 2, 3]


def test_optuna_maximises_the_objective(recorder, conf: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    path = conf / "hparams_search" / "optuna_toy.yaml"
    text = path.read_text(encoding="utf-8").replace("optim.lr", "trainer.lr").replace("model.decoder_window", "seed")
    path.write_text(text, encoding="utf-8")
    recorder.answer = lambda cfg: float(cfg.model.points - 1000 * cfg.trainer.lr)
    words = ["train", "-m", "hparams_search=optuna_toy", "hydra.sweeper.n_trials=3", "output_dir=runs/s"]
    assert main(words) == 0
    rows = rows_of(Path("runs/s"))
    best = yaml.safe_load(Path("runs/s/optimization_results.yaml").read_text(encoding="utf-8"))
    assert len(rows) == 3
    assert best["best_value"] == max(float(row["objective"]) for row in rows)
    assert all(1e-4 <= float(row["trainer.lr"]) <= 2e-3 for row in rows)


VERB_IN_EVERY_PROCESS = """
from stdetr.cli.verbs import VERBS
VERBS["train"] = VERBS["train"]._replace(module="verb_for_processes")
"""
VERB = """
import os
def run(cfg):
    print("job in process", os.getpid())
    return cfg.seed + cfg.model.points / 10
"""


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_with_processes_of_their_own(conf: Path, tmp_path: Path, launcher: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.split('_')[0]}_launcher")
    code = tmp_path / "code"
    code.mkdir()
    (code / "sitecustomize.py").write_text(VERB_IN_EVERY_PROCESS, encoding="utf-8")
    (code / "verb_for_processes.py").write_text(VERB, encoding="utf-8")
    words = ["train", "-m", f"launcher={launcher}", "seed=1,2", f"output_dir={tmp_path / 'sweep'}"]
    result = subprocess.run(
        [sys.executable, "-m", "stdetr", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(code), os.environ.get("PYTHONPATH", "")])},
    )
    assert result.returncode == 0, result.stderr
    rows = rows_of(tmp_path / "sweep")
    assert [(row["seed"], row["status"], row["objective"]) for row in rows] == [
        ("1", "done", "1.4"),
        ("2", "done", "2.4"),
    ]
    assert "2 jobs: " in result.stdout


def test_a_sweep_does_not_run_under_torchrun(
    recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "-m", "seed=1,2"]) == 2
    line = capsys.readouterr().err
    assert "cannot run under torchrun" in line and "launcher=submitit_slurm" in line
