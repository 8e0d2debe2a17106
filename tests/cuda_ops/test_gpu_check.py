"""What a machine without a GPU can tell about ``scripts/gpu_check.sh``, and the CUDA library as it is packaged."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"
KINDS = ("", "fused_", "temporal_")
OPERATORS = [f"stdetr::st_deform_attn_{kind}{pass_}" for kind in KINDS for pass_ in ("forward", "backward")]
# What a GPU machine's Python was seen to lack, and pytest's plugins.
ABSENT = (
    *("hydra", "omegaconf", "antlr4", "av", "decord", "supervision", "pycocotools", "wandb", "accelerate"),
    *("hypothesis", "trackeval", "imageio_ffmpeg", "setuptools", "pip"),
)


def load(name: str):
    spec = spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


check = load("gpu_check")


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def part(name: str, code: str, seconds: float = 20.0, **more):
    return check.Part(name, seconds, lambda machine, _: python(code), **more)


@pytest.fixture
def machine(tmp_path):
    return check.Machine(tmp_path, tmp_path, "h100", dict(os.environ))


def test_without_a_gpu_it_fails_in_one_line(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OUT": str(tmp_path / "out")}
    done = subprocess.run(["sh", str(SCRIPT)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "error: torch sees no CUDA device; GPU_CHECK_DEVICE=cpu rehearses without one\n"
    assert not (tmp_path / "out").exists()


def test_parts_come_in_order_of_worth_and_have_limits(monkeypatch):
    names = [one.name for one in check.PARTS]
    assert names[:4] == ["build", "hot", "measure", "profile"]
    assert sum(one.seconds for one in check.PARTS[:4]) <= 510
    assert all(one.seconds <= 240 for one in check.PARTS)
    monkeypatch.setenv("GPU_CHECK_PARTS", "tests,hot")
    assert [one.name for one in check.chosen_parts()] == ["hot", "tests"]
    monkeypatch.setenv("GPU_CHECK_PARTS", "test")
    with pytest.raises(SystemExit, match="GPU_CHECK_PARTS has 'test'"):
        check.chosen_parts()


def test_the_hot_tests_exist():
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-o",
            "addopts=",
            "--import-mode=importlib",
            *check.HOT,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert found.returncode == 0, found.stdout


def test_the_gpu_is_in_the_names_of_the_files(machine):
    assert check._measure(machine, 240.0)[2:] == [str(machine.out / "op_h100.json"), "--seconds", "220"]
    assert check._measure(replace(machine, gpu="h200"), 240.0)[2].endswith("op_h200.json")


def test_a_part_is_stopped_at_its_limit_with_what_it_started(machine):
    code = "import subprocess, time; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); time.sleep(60)"
    log = io.StringIO()
    began = time.monotonic()
    record = check.do(part("hangs", code), machine, 1.5, log)
    assert time.monotonic() - began < 15
    assert (record["status"], record["limit"]) == ("stopped", 1.5)
    child = int(log.getvalue())
    stat = Path(f"/proc/{child}/stat")
    deadline = time.monotonic() + 5
    while stat.exists() and stat.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


def test_a_failed_part_is_told(machine):
    record = check.do(part("fails", "print('one'); raise SystemExit('error: no luck')"), machine, 20.0, io.StringIO())
    assert (record["status"], record["last"]) == ("failed", "error: no luck")


@pytest.mark.parametrize(("code", "runs"), [(1, 3), (2, 1), (0, 1)])
def test_a_part_that_broke_off_goes_on(machine, code, runs):
    """As the measurement does after an error of the GPU; code 2 is a process that came to its end."""
    text = f"open({str(machine.out / 'runs')!r}, 'a').write('x'); raise SystemExit({code})"
    record = check.do(part("breaks", text, again=2), machine, 60.0, io.StringIO())
    assert (machine.out / "runs").read_text() == "x" * runs
    assert record["status"] == ("passed" if code == 0 else "failed")


def test_what_a_machine_lacks_is_skipped_with_the_reason(machine, monkeypatch):
    monkeypatch.setenv("PATH", str(machine.out))
    monkeypatch.setenv("CUDA_HOME", str(machine.out))
    by_name = {one.name: one for one in check.PARTS}
    record = check.do(by_name["profile"], machine, 20.0, io.StringIO())
    assert record == {"name": "profile", "status": "skipped", "reason": "ncu is not installed"}
    record = check.do(by_name["memcheck"], replace(machine, gpu=None), 20.0, io.StringIO())
    assert record == {"name": "memcheck", "status": "skipped", "reason": "needs a GPU"}


def test_verbose_lines_of_pytest_are_counted():
    lines = ["tests/gpu/a.py::test_x[1-b] PASSED [ 5%]", "tests/gpu/a.py::test_y FAILED   [ 6%]", "FAILED elsewhere"]
    lines += ["tests/gpu/a.py::test_z[a b] SKIPPED (no) [ 7%]"]
    expected = {"passed": 1, "failed": 1, "skipped": 1, "names_failed": ["tests/gpu/a.py::test_y"]}
    assert check.tests_of(lines) == expected


def test_the_rest_runs_after_a_failure_until_time_is_up(machine, monkeypatch, capsys):
    seen = f"import json; print(json.load(open({str(machine.out / 'gpu_check.json')!r}))['parts'][0]['status'])"
    parts = [part("a", "raise SystemExit(3)"), part("b", seen), part("c", "import time; time.sleep(60)", 60.0)]
    monkeypatch.setattr(check, "PARTS", (*parts, part("d", "")))
    monkeypatch.setattr(check, "find_machine", lambda: (machine, {"gpu": "NVIDIA H100"}))
    monkeypatch.setenv("GPU_CHECK_SECONDS", "8")
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    (machine.out / "op_h200.json").write_text("{}")
    with pytest.raises(SystemExit) as error:
        check.main()
    assert error.value.code == 1
    document = json.loads((machine.out / "gpu_check.json").read_text())
    assert [one["status"] for one in document["parts"]] == ["failed", "passed", "stopped", "not started"]
    assert document["complete"] is True
    assert "== b\nfailed\n" in (machine.out / "gpu_check.log").read_text()
    assert sorted(path.name for path in machine.out.iterdir()) == ["gpu_check.json", "gpu_check.log"]
    assert "not started" in capsys.readouterr().out


def test_the_measurement_goes_on_where_a_process_ended(tmp_path, monkeypatch):
    pytest.importorskip("stdetr_ops")
    measure = load("gpu_check_measure")
    monkeypatch.delenv("GPU_CHECK_BUILD", raising=False)
    first, second = (job.label for job in measure.REHEARSAL)
    file = tmp_path / "op.json"
    file.write_text(json.dumps({"jobs": {first: "ended the process"}, "rows": []}))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert measure.measure(file, seconds=60) is False
    document = json.loads(file.read_text())
    assert document["jobs"][first] == "ended the process"
    assert document["jobs"][second].endswith(" s")
    assert {row["kind"] for row in document["rows"]} == {"temporal"}
    assert document["complete"] is False
    file.unlink()
    assert measure.measure(file, seconds=0) is True
    assert set(json.loads(file.read_text())["jobs"].values()) == {"not started: time was up"}


@pytest.mark.slow
def test_a_rehearsal_from_a_clean_copy_without_what_a_gpu_machine_lacks(tmp_path):
    """Five processes in an environment that refuses to import ABSENT, without git and without an installation."""
    spec = find_spec("stdetr_ops")
    if spec is None or spec.origin is None:
        pytest.skip("stdetr-ops is not installed")
    copy, block, out = tmp_path / "copy", tmp_path / "block", tmp_path / "out"
    for folder in ("src", "cuda_ops", "scripts", "tests/gpu", "tests/cuda_ops"):
        ignored = shutil.ignore_patterns("__pycache__", "build", "*.so")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", copy)
    block.mkdir()
    (block / "sitecustomize.py").write_text(
        "import sys\n"
        f"ABSENT = {ABSENT!r}\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ABSENT:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("GPU_CHECK_", "PYTEST_"))}
    environment |= {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(block),
        "OUT": str(out),
        "GPU_CHECK_DEVICE": "cpu",
        "GPU_CHECK_OPS": str(Path(spec.origin).parents[1]),
        "GPU_CHECK_PARTS": "build,hot,measure,memcheck,model",
    }
    done = subprocess.run(
        ["sh", "scripts/gpu_check.sh"], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    document = json.loads((out / "gpu_check.json").read_text())
    statuses = {one["name"]: one["status"] for one in document["parts"]}
    ready = {"build": "passed", "hot": "passed", "measure": "passed"}
    assert statuses == {**ready, "memcheck": "skipped", "model": "skipped"}, done.stdout
    assert document["parts"][-1]["reason"] == "ModuleNotFoundError: No module named 'hydra'"
    assert done.returncode == 0
    measured = json.loads((out / "op_rehearsal.json").read_text())
    assert measured["complete"] is True
    assert measured["backend"].startswith("cpu")
    assert {row["implementation"] for row in measured["rows"]} >= {"stdetr", "stdetr_composed"}
    assert len(list(out.iterdir())) <= 8


def test_the_measured_reduction_is_the_backward_kernels_own_instruction(tmp_path):
    from harness.build import KERNELS, nvcc

    compiler = nvcc()
    if compiler is None:
        pytest.skip("nvcc is not installed")
    source, target = ROOT / "scripts" / "gpu_check_bandwidth.cu", tmp_path / "reductions.ptx"
    flags = ["-ptx", "-std=c++17", "-arch=sm_90", f"-I{KERNELS}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(target)], check=True)
    text = target.read_text()
    assert "red.relaxed.gpu.global.add.v4.f32" in text
    assert "atom" not in text


def test_the_packaged_cuda_library_loads_and_implements_the_operators():
    """Loading needs torch with CUDA, not a GPU."""
    stdetr_ops = pytest.importorskip("stdetr_ops")
    try:
        path = stdetr_ops.load("cuda")
    except stdetr_ops.LibraryError as error:
        pytest.skip(str(error))
    assert path.name == "_C_cuda.so"
    for name in OPERATORS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"), name
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"), name
