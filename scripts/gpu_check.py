"""Everything that needs a GPU, in one command of at most ten minutes; ``gpu_check.sh`` starts it.

Works from a plain copy of this repository (no git, no installation, no network) with torch, pytest and nvcc.  Parts
run in order of worth.  Each has its own process and time limit; a failure or hang is reported, and the next
one runs regardless.  Results are five files: ``gpu_check.json`` (the status of every part), ``gpu_check.log``,
``op_<gpu>.json`` (the measurement, written after every case), ``ncu_<gpu>.csv`` and, where Hydra is installed,
``model_<gpu>.json``.

    build     the operators; the 2020 kernels and the reductions' measurement beside them
    hot       tests of the cases that models run: dtypes, many queries, CUDA graphs
    measure   reductions, then the operators against their peers, by graph replay
    profile   ncu: share of issue slots, L1 and L2
    memcheck, racecheck, initcheck    compute-sanitizer on the smallest cases
    tests     the other tests of tests/gpu
    model     stdetr bench suite=model, the temporal form against its composition; needs hydra-core and omegaconf

Environment
    OUT                  folder of the results (default build/gpu-check/results)
    GPU_CHECK_WHEELS     folder of wheels for what the machine lacks: deformops-3.0.1 (Python 3.12 or later),
                         transformers-4.46.3 (the 2020 kernels' source; it is not installed), and for the part model
                         hydra_core, omegaconf and antlr4_python3_runtime
    GPU_CHECK_KERNELS    copy of kernels-community/deformable-detr from Hugging Face's hub
    GPU_CHECK_OPS        folder with a built stdetr_ops (pip install --target FOLDER ./cuda_ops), instead of a build
    GPU_CHECK_PARTS      names of the parts to run, separated by commas
    GPU_CHECK_SECONDS    time for everything (default 570)
    GPU_CHECK_DEVICE     cpu: a rehearsal on a machine without a GPU; parts that need one are skipped
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
HOT = (
    "tests/gpu/test_agreement.py::test_dtypes",
    "tests/gpu/test_agreement.py::test_many_queries",
    "tests/gpu/test_temporal.py::test_dtypes",
    "tests/gpu/test_temporal.py::test_many_queries",
    "tests/gpu/test_citizenship.py::test_cuda_graph",
)
# Share of issue slots, of L1's and L2's bandwidth, L1 hits, resident warps, reductions that L2 took, time.
METRICS = (
    "gpu__time_duration.sum",
    "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed",
    "l1tex__throughput.avg.pct_of_peak_sustained_active",
    "l1tex__t_sector_hit_rate.pct",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__t_sectors_op_red.sum",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
)


class SkipError(Exception):
    """The part cannot run on this machine; the text says why."""


@dataclass
class Machine:
    """Paths and properties of the machine."""

    out: Path
    work: Path
    gpu: str | None  # h100, h200, ...; None in a rehearsal
    environment: dict[str, str]

    def tool(self, name: str) -> str:
        home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
        places = [home / "bin" / name, home / name / name]
        executable = shutil.which(name) or next((str(path) for path in places if os.access(path, os.X_OK)), None)
        if self.gpu is None:
            raise SkipError("needs a GPU")
        if executable is None:
            raise SkipError(f"{name} is not installed")
        return executable


@dataclass(frozen=True)
class Part:
    """``command`` gives the command line for a machine and a number of seconds.

    ``again``: number of restarts after a process broke off (exit code 2 is a process that finished).
    """

    name: str
    seconds: float
    command: Callable[[Machine, float], list[str]]
    again: int = 0
    environment: dict[str, str] = field(default_factory=dict)


def _pytest(chosen: Sequence[str]) -> list[str]:
    return [
        *(sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-o", "addopts=", "--import-mode=importlib"),
        *("--tb=short", "-rs", *chosen),
    ]


def _measure(machine: Machine, seconds: float) -> list[str]:
    file = machine.out / f"op_{machine.gpu or 'rehearsal'}.json"
    return [sys.executable, str(SCRIPTS / "gpu_check_measure.py"), str(file), "--seconds", f"{seconds - 20:.0f}"]


def _profile(machine: Machine, _: float) -> list[str]:
    return [
        *(machine.tool("ncu"), "--csv", "--log-file", str(machine.out / f"ncu_{machine.gpu}.csv")),
        # The clocks are left as they are: the card may be shared.
        *("--clock-control", "none", "--kernel-name", "regex:(forward|backward)_kernel"),
        *("--metrics", ",".join(METRICS)),
        *(sys.executable, str(SCRIPTS / "gpu_check_measure.py"), "--profile"),
    ]


def _sanitizer(tool: str) -> Callable[[Machine, float], list[str]]:
    def command(machine: Machine, _: float) -> list[str]:
        start = [machine.tool("compute-sanitizer"), "--tool", tool, "--error-exitcode", "1"]
        script = str(ROOT / "cuda_ops" / "harness" / "sanitize.py")
        return [*start, "--kernel-regex", "kns=stdetr", sys.executable, script, "small"]

    return command


def _model(machine: Machine, _: float) -> list[str]:
    code = "import hydra, omegaconf, antlr4"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=machine.environment
    )
    if done.returncode != 0:
        raise SkipError(done.stderr.strip().splitlines()[-1])
    file = machine.out / f"model_{machine.gpu or 'rehearsal'}.json"
    small = [] if machine.gpu else ["model.frames=[1,2,4]", "model.repeats=1", "model.size=[64,96]"]
    device = "cuda" if machine.gpu else "cpu"
    return [sys.executable, "-m", "stdetr", "bench", "suite=model", f"device={device}", f"output={file}", *small]


# PyTorch's caching allocator would hide accesses past a tensor's end.
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
PARTS = (
    Part("build", 150, lambda machine, _: [sys.executable, str(SCRIPTS / "gpu_check_build.py"), str(machine.work)]),
    Part("hot", 60, lambda machine, _: _pytest(HOT)),
    Part("measure", 240, _measure, again=3),
    Part("profile", 60, _profile),
    Part("memcheck", 40, _sanitizer("memcheck"), environment=UNCACHED),
    Part("racecheck", 45, _sanitizer("racecheck"), environment=UNCACHED),
    Part("initcheck", 35, _sanitizer("initcheck"), environment=UNCACHED),
    Part("tests", 150, lambda machine, _: _pytest(["tests/gpu", *(f"--deselect={test}" for test in HOT)])),
    Part("model", 90, _model),
)


def chosen_parts() -> list[Part]:
    asked = [name for name in os.environ.get("GPU_CHECK_PARTS", "").split(",") if name]
    names = [part.name for part in PARTS]
    for name in asked:
        if name not in names:
            sys.exit(f"error: GPU_CHECK_PARTS has {name!r}; there are {', '.join(names)}")
    return [part for part in PARTS if not asked or part.name in asked]


def find_machine() -> tuple[Machine, dict[str, Any]]:
    """The machine and its description for the record.  Ends the program where there is no GPU."""
    rehearsal = os.environ.get("GPU_CHECK_DEVICE", "cuda")
    if rehearsal not in {"cuda", "cpu"}:
        sys.exit(f"error: GPU_CHECK_DEVICE must be cuda or cpu, got {rehearsal!r}")
    code = """
import json, sys
try:
    import torch
except ImportError:
    sys.exit("error: this Python has no torch; PYTHON=... names another")
from stdetr_ops.bench.cases import gpu_label
gpu = torch.cuda.is_available()
print(json.dumps({"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda,
    "gpu": torch.cuda.get_device_name() if gpu else None,
    "label": gpu_label(torch.cuda.get_device_name()) if gpu else None,
    "memory": torch.cuda.mem_get_info()[1] if gpu else None}))
"""
    sources = {"PYTHONPATH": os.pathsep.join([str(ROOT / "cuda_ops"), str(ROOT / "src")])}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, **sources}
    )
    if done.returncode != 0:
        sys.exit(done.returncode)
    facts = json.loads(done.stdout.splitlines()[-1])
    if facts["gpu"] is None and rehearsal == "cuda":
        sys.exit("error: torch sees no CUDA device; GPU_CHECK_DEVICE=cpu rehearses without one")
    work = ROOT / "build" / "gpu-check"
    out = Path(os.environ.get("OUT") or work / "results").resolve()
    out.mkdir(parents=True, exist_ok=True)
    path = [str(work / "ops"), str(ROOT / "src"), *unpack_wheels(work / "wheels"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONUNBUFFERED": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "GPU_CHECK_BUILD": str(work),
    }
    if rehearsal == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    label = facts["label"] if rehearsal == "cuda" else None
    return Machine(out, work, label, environment), {**facts, "cores": os.cpu_count()}


def unpack_wheels(target: Path) -> list[str]:
    """The pure Python wheels of GPU_CHECK_WHEELS, as a folder for PYTHONPATH; transformers stays a file."""
    folder = os.environ.get("GPU_CHECK_WHEELS")
    if not folder:
        return []
    wheels = [wheel for wheel in sorted(Path(folder).glob("*.whl")) if not wheel.name.startswith("transformers-")]
    shutil.rmtree(target, ignore_errors=True)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
    return [str(target)]


def run(command: list[str], environment: dict[str, str], seconds: float, log: IO[str]) -> tuple[int | None, list[str]]:
    """Exit code (None: it was stopped at its limit, with everything that it had started) and lines of output."""
    lines: list[str] = []
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdout is not None
    output = process.stdout

    def follow() -> None:
        for line in output:
            lines.append(line.rstrip("\n"))
            log.write(line)
            log.flush()
            print(line, end="", flush=True)

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    code: int | None
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        code = None
    reader.join(5)
    return code, lines


def tests_of(lines: Sequence[str]) -> dict[str, Any]:
    """Counts of pytest's verbose lines, and the names of what failed."""
    matches = [re.match(r"(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", line) for line in lines]
    results = [(match[1], match[2].lower()) for match in matches if match]
    counts: dict[str, Any] = {}
    for _, status in results:
        counts[status] = counts.get(status, 0) + 1
    failed = [name for name, status in results if status in {"failed", "error"}]
    return {**counts, **({"names_failed": failed} if failed else {})}


def do(part: Part, machine: Machine, seconds: float, log: IO[str]) -> dict[str, Any]:
    """The part's record: status (passed, failed, stopped, skipped), seconds, tests, the last line of a failure."""
    began = time.monotonic()
    try:
        command = part.command(machine, seconds)
    except SkipError as reason:
        return {"name": part.name, "status": "skipped", "reason": str(reason)}
    environment = {**machine.environment, **part.environment}
    code, lines = run(command, environment, seconds, log)
    for _ in range(part.again):
        left = seconds - (time.monotonic() - began)
        if code in (0, 2, None) or left < 15:
            break
        code, more = run(part.command(machine, left), environment, left, log)
        lines += more
    record: dict[str, Any] = {"name": part.name, "status": {0: "passed", None: "stopped"}.get(code, "failed")}
    record |= {"seconds": round(time.monotonic() - began, 1), "limit": round(seconds, 1)}
    tests = tests_of(lines)
    if tests:
        record["tests"] = tests
    if code != 0:
        record["last"] = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return record


def main() -> None:
    if sys.argv[1:]:
        sys.exit(f"error: {sys.argv[1]!r}: there are no arguments; GPU_CHECK_PARTS names the parts to run")
    parts = chosen_parts()
    began = time.monotonic()
    machine, facts = find_machine()
    total = float(os.environ.get("GPU_CHECK_SECONDS", "570"))
    document: dict[str, Any] = {"machine": facts, "parts": [], "complete": False}
    summary = machine.out / "gpu_check.json"

    def save() -> None:
        partial = summary.with_suffix(".partial")
        partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        partial.replace(summary)

    for stale in [*machine.out.glob("op_*.json"), *machine.out.glob("model_*.json"), *machine.out.glob("ncu_*.csv")]:
        stale.unlink()  # the measurement continues a file that it finds
    with (machine.out / "gpu_check.log").open("w", encoding="utf-8") as log:
        for part in parts:
            left = total - (time.monotonic() - began)
            title = f"== {part.name}"
            print(title, flush=True)
            log.write(f"{title}\n")
            if left < 5:
                record: dict[str, Any] = {"name": part.name, "status": "not started", "reason": "time was up"}
            else:
                record = do(part, machine, min(part.seconds, left), log)
            document["parts"].append(record)
            document["seconds"] = round(time.monotonic() - began, 1)
            save()
    document["complete"] = True
    save()
    for record in document["parts"]:
        more = record.get("reason") or record.get("last") or json.dumps(record.get("tests", "")).strip('"')
        print(f"{record['name']:<10} {record['status']:<12} {record.get('seconds', ''):>6} {more}")
    print(f"{document['seconds']:.0f} s; results in {machine.out}")
    sys.exit(any(record["status"] in {"failed", "stopped", "not started"} for record in document["parts"]))


if __name__ == "__main__":
    main()
