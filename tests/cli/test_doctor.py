"""The doctor's findings, on healthy parts and on broken ones made for the test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from omegaconf import OmegaConf

from stdetr import doctor
from stdetr.doctor import machine, packages, parts
from stdetr.doctor.check import Check, run_checks


@pytest.mark.parametrize(
    ("torch_version", "expected"), [("2.13.0+cpu", "0.28"), ("2.11.0", "0.26"), ("2.0.1+cu118", "0.15")]
)
def test_torchvision_that_belongs_to_torch(torch_version: str, expected: str) -> None:
    assert packages.matching_torchvision(torch_version) == expected


def test_the_installed_pair_matches() -> None:
    checks = list(packages.check_torch())
    assert [check.name for check in checks] == ["torch", "torchvision"]
    assert checks[1].status == "ok", checks[1]
    assert torchvision.__version__.startswith(packages.matching_torchvision(torch.__version__))


def test_mismatch_is_explained_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(packages.importlib, "import_module", broken)
    check = list(packages.check_torch())[1]
    assert check.status == "broken"
    assert "operator torchvision::nms does not exist" in check.text
    assert f"needs torchvision {packages.matching_torchvision(torch.__version__)}" in check.text
    assert f"torch=={torch.__version__.split('+')[0]}" in check.fix


def test_python_versions() -> None:
    assert [machine.check_python(version).status for version in [(3, 9), (3, 10), (3, 13), (3, 14)]] == [
        "broken", "ok", "ok", "broken",
    ]  # fmt: skip


def test_missing_and_old_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["torch>=99", "no-such-package-of-ours>=1", "numpy>=1", 'no-such-thing; extra == "nice"']
    monkeypatch.setattr(packages.metadata, "requires", lambda name: needs)
    (check,) = packages.check_dependencies()
    assert check.status == "broken"
    assert f"torch {packages.metadata.version('torch')} is not >=99; no-such-package-of-ours is missing" == check.text


def test_video_round_trip_works_here() -> None:
    video, _ = parts.check_video()
    assert video.status == "ok", video


def test_compiler_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    assert [(check.name, check.status) for check in machine.check_compiler()] == [
        ("c++ compiler", "note"),
        ("nvcc", "note"),
    ]


def test_folders(tmp_path: Path) -> None:
    checks = list(machine.check_disk({"data": str(tmp_path / "not" / "yet"), "outputs": str(tmp_path)}))
    assert [check.name for check in checks[:2]] == ["data folder", "outputs folder"]
    assert not (tmp_path / "not").exists()
    assert all("GB free" in check.text for check in checks[:2])


def test_a_check_that_fails_is_a_finding() -> None:
    def check_the_moon() -> Check:
        raise OSError("it is\nfar away")

    (found,) = run_checks(check_the_moon)
    assert found == Check("the moon", "broken", "OSError: it is far away")


def test_lines() -> None:
    assert Check("cuda", "note", "none", "buy one").line(6) == "note    cuda    none\n                fix: buy one"


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("note", 0), ("broken", 1)])
def test_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: str, code: int) -> None:
    found = [Check("op", "ok", "reference"), Check("video", status, "a film")]  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(doctor, "run_checks", lambda *checks: found)
    cfg = OmegaConf.create({"paths": {"data": "data", "outputs": "outputs"}})
    assert doctor.run(cfg) == code
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == ("broken: video" if code else "everything needed works")


def test_configurations_that_do_not_compose_are_named(conf: Path) -> None:
    (conf / "train.yaml").write_text("defaults:\n  - nothing: here\n", encoding="utf-8")
    (check,) = parts.check_configurations()
    assert check.status == "broken"
    assert "train: " in check.text
    assert "nothing/here" in check.text
