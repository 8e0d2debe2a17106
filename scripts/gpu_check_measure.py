"""The measurement of ``gpu_check.py``: needs torch, ``stdetr`` and ``stdetr_ops`` only.

python scripts/gpu_check_measure.py FILE.json --seconds 240      every job, the file written after each
python scripts/gpu_check_measure.py --profile                    each kernel once, for ncu

Jobs come in order of worth, and none starts after ``--seconds``.  A file that is there already is continued: what it
names is not measured again, so that a job that kills the process (an error of the GPU leaves no way on) costs only
itself.  Environment: GPU_CHECK_BUILD, the folder of ``gpu_check_build.py``; GPU_CHECK_WHEELS; GPU_CHECK_KERNELS.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stdetr.bench.report import machine, write
from stdetr.ops import backend
from stdetr_ops.bench.cases import CHANNELS, HEADS, OpCase, find_cases, make_inputs
from stdetr_ops.bench.measure import prepare
from stdetr_ops.bench.op import OpBench, measure_case
from stdetr_ops.bench.peers import PEERS, Implementation, implementations

SETTINGS = OpBench(repeats=21, seconds=3.0, memory=torch.cuda.is_available())
# What PyTorch operations do takes long and is known: it is measured where a job asks for it.
SLOW = ("reference", "grid_sample")


@dataclass(frozen=True)
class Job:
    case: str
    kind: str = "fused"
    locations: str = "clustered"
    dtype: torch.dtype = torch.bfloat16
    slow: bool = False

    @property
    def label(self) -> str:
        return f"{self.case} {self.kind} {self.locations} {str(self.dtype).removeprefix('torch.')}"


JOBS = (
    Job("full_800x1333_T5"),
    Job("decoder_800x1333_T5", slow=True),
    Job("full_800x1333_T5", "temporal"),
    Job("encoder_800x1333_T1", slow=True),
    Job("decoder_800x1333_T5", "temporal"),
    Job("full_800x1333_T5", locations="uniform"),
    Job("encoder_800x1333_T5"),
    Job("full_800x1333_T5", "plain"),
    Job("decoder_800x1333_T16"),
    Job("encoder_480p_T5"),
    Job("full_800x1333_T5", dtype=torch.float32),
    Job("decoder_800x1333_T5_B4"),
    Job("full_800x1333_T8"),
    Job("encoder_800x1333_T1", "plain"),
    Job("encoder_800x1333_T1", dtype=torch.float32),
    Job("full_800x1333_T5_B4"),
)
# Without a GPU: checks that everything runs, not how fast.
REHEARSAL = (Job("tiny", dtype=torch.float32), Job("tiny", "temporal", dtype=torch.float32))
TINY = OpCase("tiny", 1, 2, (64, 96), "all")


def find_case(name: str) -> OpCase:
    return TINY if name == TINY.name else find_cases([name])[0]


def hardware() -> dict[str, Any]:
    """The GPU's limits: a copy (bytes read and written), and reductions of rows of 32 floats."""
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
    target.copy_(source)
    begin.record()
    for _ in range(10):
        target.copy_(source)
    end.record()
    torch.cuda.synchronize()
    figures: dict[str, Any] = {"copy_bytes_per_second": 10 * 2 * source.nbytes / (begin.elapsed_time(end) / 1e3)}
    del source, target
    library = ctypes.CDLL(str(Path(os.environ["GPU_CHECK_BUILD"]) / "reductions.so"))
    blocks, turns, repeats = 16384, 64, 5
    added = blocks * 64 * turns  # rows
    tokens, coarse = find_case("full_800x1333_T5").tokens, 1323  # of strides 32 and 64
    places = {
        "uniform": 5 * tokens * HEADS,
        "onto_1323_pixels": 5 * coarse * HEADS,
        "onto_1323_pixels_of_one_frame_and_head": coarse,
    }
    for name, rows in places.items():
        sums = torch.zeros(rows, CHANNELS, device="cuda")
        torch.cuda.synchronize()
        took = ctypes.c_float()
        pointer = ctypes.c_void_p(sums.data_ptr())
        code = library.measure_reductions(pointer, ctypes.c_uint(rows), blocks, turns, repeats, ctypes.byref(took))
        if code != 0:
            raise RuntimeError(f"CUDA error {code} in the reductions' measurement")
        # Small whole numbers, so that float sums are exact: every addition arrived.
        arrived = sums.double().sum().item() / CHANNELS
        assert arrived == added * (repeats + 1), f"{arrived} of {added * (repeats + 1)} rows arrived"
        figures[name] = {"rows": rows, "milliseconds": took.value, "bytes_per_second": added * 128 / took.value * 1e3}
    return figures


def peers(device: torch.device) -> list[Implementation]:
    built = Path(os.environ.get("GPU_CHECK_BUILD", "/nonexistent")) / "extensions"
    names = list(PEERS)
    if not list(built.glob("*/*.so")):
        names.remove("deformable_detr")  # the build told why, and trying again would take a minute
    wheels = sorted(Path(os.environ.get("GPU_CHECK_WHEELS", "/nonexistent")).glob("transformers-4.46.3-*.whl"))
    os.environ["TORCH_EXTENSIONS_DIR"] = str(built)
    wheel = str(wheels[0]) if wheels else None
    return implementations(device, names, wheel, os.environ.get("GPU_CHECK_KERNELS") or None)


def measure(file: Path, seconds: float) -> bool:
    """Returns whether every started job has been measured."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    deadline = time.monotonic() + seconds
    result: dict[str, Any] = {"jobs": {}, "rows": []}
    if file.is_file():
        result = json.loads(file.read_text(encoding="utf-8"))
    everything = peers(device)
    present = [one for one in everything if one.absent is None]
    result |= {"suite": "op", "machine": machine(), "backend": str(backend(device)), "complete": False}
    result["absent"] = {one.name: one.absent for one in everything if one.absent is not None}
    if not any(one.name == "deformable_detr" for one in everything):
        result["absent"]["deformable_detr"] = "not built; see the log of the part build"

    def one_job(label: str, run: Callable[[], None]) -> None:
        if label in result["jobs"]:
            return
        if time.monotonic() > deadline:
            result["jobs"][label] = "not started: time was up"
            write(result, file)
            return
        # Stands there if this job kills the process.
        result["jobs"][label] = "ended the process"
        write(result, file)
        began = time.monotonic()
        try:
            run()
            result["jobs"][label] = f"{time.monotonic() - began:.1f} s"
        except Exception as error:
            lines = str(error).splitlines()
            result["jobs"][label] = f"failed: {type(error).__name__}: {lines[0] if lines else ''}"
        print(f"{label}: {result['jobs'][label]}", flush=True)
        write(result, file)
        if device.type == "cuda":
            torch.cuda.synchronize()  # raises where the GPU takes no more work: the next process goes on

    def run_job(job: Job) -> None:
        used = [one for one in present if job.slow or one.name not in SLOW]
        case = find_case(job.case)
        for row in measure_case(case, job.kind, job.locations, used, SETTINGS, device, job.dtype, seed=0):
            row["dtype"] = str(job.dtype).removeprefix("torch.")
            result["rows"].append(row)
            print(json.dumps(row), flush=True)

    if device.type == "cuda":
        one_job("hardware", lambda: result.update(hardware=hardware()))
    for job in JOBS if device.type == "cuda" else REHEARSAL:
        one_job(job.label, lambda job=job: run_job(job))
    statuses = list(result["jobs"].values())
    result["complete"] = all(status[0].isdigit() for status in statuses)
    write(result, file)
    return all(status[0].isdigit() or status.startswith("not started") for status in statuses)


def profile() -> None:
    """Forward and backward once per case."""
    device = torch.device("cuda")
    ours = next(one for one in implementations(device, ["stdetr_coarse2"]) if one.name == "stdetr")
    cases = (("full_800x1333_T5", "fused"), ("full_800x1333_T5", "temporal"), ("decoder_800x1333_T5", "fused"))
    for name, kind in cases:
        inputs = make_inputs(find_case(name), "clustered", torch.bfloat16, device)
        call, leaves = prepare(kind, ours, inputs)
        torch.autograd.grad(call(), leaves, inputs.grad_out)
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    if given.profile:
        profile()
    elif given.file is None:
        sys.exit("error: FILE.json is missing")
    else:
        sys.exit(0 if measure(given.file, given.seconds) else 2)


if __name__ == "__main__":
    main()
