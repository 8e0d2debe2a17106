"""The environment's script, with a stand-in for uv that writes down what it is asked to do."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE_UV = """#!/bin/sh
printf '%s\\n' "$*" >>calls.log
case "$*" in
venv*)
    rm -rf .venv && mkdir -p .venv/bin && ln -s "$REAL_PYTHON" .venv/bin/python ;;
*requirements.lock*) [ ! -e fail-packages ] ;;
*cuda_ops*) [ ! -e fail-ops ] || { echo "kernel.cpp:1: no such thing"; exit 1; } ;;
esac
"""
TOOLS = "sh dirname cat sha256sum cut mkdir rm ln cp date find sort xargs tail flock env"


class Checkout:
    """A folder with the script, a lock, and the stand-in where the pinned uv would be."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "scripts").mkdir(parents=True)
        for name in ("scripts/bootstrap.sh", "scripts/uv.lock", "Makefile"):
            shutil.copy(REPOSITORY / name, root / name)
        self.write("requirements.lock", "numpy==2\n")
        self.write("pyproject.toml", "[project]\n")
        uv = self.write(".bootstrap/bin/uv", FAKE_UV)
        uv.chmod(0o755)
        digest = hashlib.sha256((root / "scripts/uv.lock").read_bytes()).hexdigest()
        self.write(".bootstrap/stamp", f"{digest}\n")
        # Only these tools are on the path, so that no compiler of this machine is found.
        self.tools = root / "tools"
        self.tools.mkdir()
        for tool in TOOLS.split():
            found = shutil.which(tool)
            if found:
                (self.tools / tool).symlink_to(found)
        self.program("python3", f'exec "{sys.executable}" "$@"')

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def program(self, name: str, script: str) -> None:
        path = self.tools / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    def run(self, step: str = "env", **variables: str) -> subprocess.CompletedProcess[str]:
        self.root.joinpath("calls.log").unlink(missing_ok=True)
        environment = {"PATH": str(self.tools), "REAL_PYTHON": sys.executable, "HOME": str(self.root), **variables}
        script = str(self.root / "scripts" / "bootstrap.sh")
        shell = shutil.which("sh") or "/bin/sh"
        # Called from elsewhere: the script finds its checkout by itself.
        return subprocess.run(
            [shell, script, step], capture_output=True, text=True, check=False, env=environment, cwd=self.root.parent
        )

    def calls(self) -> list[str]:
        log = self.root / "calls.log"
        return [line.split(" --python")[0] for line in log.read_text("utf-8").splitlines()] if log.exists() else []

    def commands(self) -> str:
        log = self.root / "calls.log"
        return log.read_text("utf-8") if log.exists() else ""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "my checkout")


def test_made_once_and_reused(checkout: Checkout) -> None:
    first = checkout.run()
    assert first.returncode == 0, first.stderr
    assert checkout.calls() == ["venv --quiet --clear", "pip install --quiet", "pip install --quiet"]
    packages, project = checkout.commands().splitlines()[1:]
    assert packages.endswith("--require-hashes -r requirements.lock")
    assert project.endswith("--no-deps --no-build-isolation --editable .")
    second = checkout.run()
    assert (second.returncode, second.stderr, checkout.calls()) == (0, "", [])


def test_rebuilt_when_the_lock_changed(checkout: Checkout) -> None:
    checkout.run()
    checkout.write("requirements.lock", "numpy==3\n")
    assert checkout.run().returncode == 0
    assert "venv --quiet --clear" in checkout.calls()
    assert checkout.run().returncode == 0
    assert checkout.calls() == []


def test_a_changed_project_file_installs_the_project_only(checkout: Checkout) -> None:
    checkout.run()
    checkout.write("pyproject.toml", "[project]\nname = 'x'\n")
    checkout.run()
    assert checkout.commands().count("\n") == 1
    assert checkout.commands().rstrip().endswith("--editable .")


def test_rebuilt_after_an_interrupted_installation(checkout: Checkout) -> None:
    failing = checkout.write("fail-packages", "")
    assert checkout.run().returncode != 0
    failing.unlink()
    assert checkout.run().returncode == 0
    assert "venv --quiet --clear" in checkout.calls()


def test_rebuilt_when_the_checkout_moved(checkout: Checkout) -> None:
    checkout.run()
    shutil.copytree(checkout.root, checkout.root.parent / "moved", symlinks=True)
    checkout.root = checkout.root.parent / "moved"
    checkout.run()
    assert "venv --quiet --clear" in checkout.calls()


def test_an_environment_of_the_users_own_is_left_alone(checkout: Checkout) -> None:
    mine = checkout.write(".venv/mine.txt", "precious")
    result = checkout.run()
    assert result.returncode != 0
    assert ".venv was not made by make" in result.stderr
    assert mine.read_text(encoding="utf-8") == "precious"


def test_op_is_built_again_when_its_sources_changed(checkout: Checkout) -> None:
    checkout.program("c++", "exit 0")
    checkout.write("cuda_ops/pyproject.toml", "[project]\n")
    source = checkout.write("cuda_ops/csrc/a.cpp", "int a;\n")
    assert checkout.run().returncode == 0
    assert checkout.commands().splitlines()[-1].endswith("--no-deps --no-build-isolation --reinstall ./cuda_ops")
    checkout.write("cuda_ops/build/a.o", "made")
    checkout.write("cuda_ops/stdetr_ops/_C.so", "made")
    checkout.run()
    assert checkout.calls() == []
    source.write_text("int b;\n", encoding="utf-8")
    checkout.run()
    assert checkout.commands().count("cuda_ops") == 1
    checkout.run("ops")
    assert checkout.commands().count("cuda_ops") == 1


def test_no_compiler_is_said_once_and_is_no_failure(checkout: Checkout) -> None:
    checkout.write("cuda_ops/pyproject.toml", "[project]\n")
    first = checkout.run()
    assert first.returncode == 0
    assert "no C++ compiler, so the attention op runs as its PyTorch reference" in first.stderr
    assert "cuda_ops" not in checkout.commands()
    assert checkout.run().stderr == ""
    assert checkout.run("ops", STDETR_REQUIRE_OPS="1").returncode != 0


def test_a_failed_build_of_the_op(checkout: Checkout) -> None:
    checkout.program("g++", "exit 0")
    checkout.write("cuda_ops/pyproject.toml", "[project]\n")
    failing = checkout.write("fail-ops", "")
    first = checkout.run()
    assert first.returncode == 0
    assert "kernel.cpp:1: no such thing" in first.stderr
    assert "its PyTorch reference runs" in first.stderr
    assert checkout.run().stderr == ""
    in_ci = checkout.run("ops", CI="true")
    assert in_ci.returncode != 0
    assert "did not build" in in_ci.stderr
    failing.unlink()
    assert checkout.run("ops").returncode == 0
    assert checkout.run().stderr == ""


def test_interpreters(checkout: Checkout) -> None:
    real = f'exec "{sys.executable}" "$@"'
    assert checkout.run("python").stdout == "python3\n"
    checkout.program("python3.12", "exit 127")  # a shim for a version that is not installed
    checkout.program("python3.11", real)
    assert checkout.run("python").stdout == "python3.11\n"
    assert checkout.run("python", PYTHON="python3").stdout == "python3\n"
    refused = checkout.run("python", PYTHON="python3.12")
    assert refused.returncode != 0
    assert refused.stderr == "error: PYTHON=python3.12: not a Python 3.10 to 3.13\n"
    for name in ("python3", "python3.11"):
        checkout.program(name, "exit 1")
    nothing = checkout.run("python")
    assert nothing.returncode != 0
    assert nothing.stderr.startswith("error: no Python 3.10 to 3.13 on the path")


def test_another_interpreter_on_request_rebuilds(checkout: Checkout) -> None:
    checkout.run()
    checkout.run(PYTHON="python3")
    assert checkout.calls() == []
    version = "3.10.99" if sys.version_info[:2] != (3, 10) else "3.11.99"
    checkout.program("other", f'case "$2" in *print*) echo {version} ;; *) exec "{sys.executable}" "$@" ;; esac')
    checkout.run(PYTHON="other")
    assert "venv --quiet --clear" in checkout.calls()


def test_python_without_venv_and_pip_is_explained(checkout: Checkout) -> None:
    shutil.rmtree(checkout.root / ".bootstrap")
    checkout.program("python3", f'case "$2" in venv|pip) exit 1 ;; *) exec "{sys.executable}" "$@" ;; esac')
    result = checkout.run()
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1].startswith("error: python3 could not install uv")
    assert "python3-venv" in result.stderr
    checkout.program("uv", FAKE_UV.partition("\n")[2])
    assert checkout.run().returncode == 0
    assert "venv --quiet --clear" in checkout.calls()


def test_python_without_venv_uses_pip(checkout: Checkout) -> None:
    shutil.rmtree(checkout.root / ".bootstrap")
    uv = checkout.write("fake-uv", FAKE_UV)
    uv.chmod(0o755)
    install = "mkdir -p .bootstrap/target/bin && cp fake-uv .bootstrap/target/bin/uv"
    cases = f'venv*) exit 1 ;; pip*--target*) {install} ;; pip*) exit 1 ;; *) exec "{sys.executable}" "$@" ;;'
    checkout.program("python3", f'case "$2 $*" in {cases} esac')
    result = checkout.run()
    assert result.returncode == 0, result.stderr
    assert "venv --quiet --clear" in checkout.calls()


def test_unknown_step(checkout: Checkout) -> None:
    result = checkout.run("evn")
    assert result.returncode != 0
    assert "no such step" in result.stderr


@pytest.mark.parametrize("name", ["requirements.lock", "scripts/uv.lock"])
def test_locks_have_versions_and_hashes_and_no_addresses(name: str) -> None:
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    assert "://" not in text
    entries = [entry for entry in re.split(r"\n(?=\S)", text) if entry.strip()]
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9][a-z0-9._-]*==[^ ]+", entry), entry[:60]
        assert "--hash=sha256:" in entry, entry[:60]


def make(*words: str) -> str:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    # Under `make test` the outer make would otherwise add its own words and hand down its variables.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key != "MFLAGS"}
    result = subprocess.run(["make", *words], cwd=REPOSITORY, env=clean, capture_output=True, text=True, check=True)
    return result.stdout


@pytest.mark.parametrize("target", ["demo", "test", "lint", "gpu-check", "doctor"])
def test_targets_make_the_environment_first(target: str) -> None:
    lines = make("-n", target).splitlines()
    assert lines[0] == "sh scripts/bootstrap.sh env"
    assert len(lines) > 1


def test_help_lists_every_target() -> None:
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    shown = {line.split()[0] for line in make("help").splitlines()[1:]}
    assert shown == set(phony.split())


def test_ci_runs_tests_and_lint_and_stops_at_the_first_failure() -> None:
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert "set -euo pipefail" in script
    assert script.index("make test") < script.index("make lint")
    lint = make("-n", "lint")
    assert all(tool in lint for tool in ("ruff check", "ruff format --check", "pyright"))
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
