"""Builds what ``gpu_check.py`` needs, all at once: the operators, the 2020 kernels and the reductions' measurement.

python scripts/gpu_check_build.py FOLDER       torch and nvcc only: neither pip nor setuptools takes part

FOLDER gets ``ops`` (to be put on PYTHONPATH), ``reductions.so`` and ``extensions``.  Only the operators must build;
other failures are reported, and the part is absent from the measurement.  Environment: GPU_CHECK_OPS, a folder whose
stdetr_ops is taken instead of a new build; GPU_CHECK_WHEELS, where the wheel of transformers lies.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
CUDA_OPS = ROOT / "cuda_ops"
sys.path.append(str(CUDA_OPS))


def build_operators(folder: Path) -> None:
    """``stdetr_ops`` as its wheel holds it."""
    from native import build

    package = folder / "ops" / "stdetr_ops"
    shutil.rmtree(folder / "ops", ignore_errors=True)
    ready = os.environ.get("GPU_CHECK_OPS")
    shutil.copytree(Path(ready) / "stdetr_ops" if ready else CUDA_OPS / "stdetr_ops", package)
    if ready:
        # The benchmark is this copy's; only the libraries were built elsewhere.
        shutil.copytree(CUDA_OPS / "stdetr_ops", package, dirs_exist_ok=True)
        return
    if torch.cuda.is_available():
        os.environ["STDETR_OPS_CUDA"] = "1"  # without the CUDA library there is nothing to check
    report = build(package)
    (package / "build.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")


def toolkit() -> Path | None:
    """The CUDA toolkit's folder, which has bin/nvcc and include."""
    from native import find_nvcc, toolkit_include

    nvcc = find_nvcc()
    homes = [] if nvcc is None else toolkit_include(nvcc).resolve().parents
    return next((home for home in homes if (home / "bin" / "nvcc").is_file()), None)


def build_reductions(folder: Path) -> None:
    from native import find_nvcc

    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError("no nvcc found")
    major, minor = torch.cuda.get_device_capability()
    flags = ["-shared", "-std=c++17", "-O3", f"-arch=sm_{major}{minor}", "-Xcompiler", "-fPIC"]
    source, target = ROOT / "scripts" / "gpu_check_bandwidth.cu", folder / "reductions.so"
    command = [nvcc, *flags, f"-I{CUDA_OPS / 'csrc' / 'cuda'}", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)


def build_peer(folder: Path) -> None:
    """The 2020 kernels, into ``extensions``; afterwards they only load."""
    wheels = sorted(Path(os.environ.get("GPU_CHECK_WHEELS", "/nonexistent")).glob("transformers-4.46.3-*.whl"))
    if not wheels:
        raise RuntimeError("GPU_CHECK_WHEELS has no transformers-4.46.3 wheel")
    # In a process of its own: importing the benchmark here would load the operators before they are built.
    code = f"from stdetr_ops.bench.peers import build_deformable_detr; build_deformable_detr({str(wheels[0])!r})"
    path = os.pathsep.join([str(CUDA_OPS), str(ROOT / "src")])
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(folder / "extensions"), "PYTHONPATH": path}
    home = toolkit()
    if home is not None:
        environment["CUDA_HOME"] = str(home)  # torch takes the folder above an nvcc on the path, which may be a script
    # A toolkit without the libraries' headers (cusparse.h): those of the wheels beside torch, looked at last.
    headers = [str(path) for path in sorted(Path(torch.__file__).parent.parent.glob("nvidia/*/include"))]
    environment["CPLUS_INCLUDE_PATH"] = os.pathsep.join(filter(None, [os.environ.get("CPLUS_INCLUDE_PATH"), *headers]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError((done.stdout + done.stderr)[-4000:])


def _timed(step: Callable[[Path], None], folder: Path) -> str | None:
    began = time.monotonic()
    try:
        step(folder)
    except Exception as error:
        print(f"{step.__name__}: failed after {time.monotonic() - began:.0f} s: {error}", flush=True)
        return str(error)
    print(f"{step.__name__}: {time.monotonic() - began:.0f} s", flush=True)
    return None


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # nvcc's own variable: the processors' versions of a file are compiled side by side.
    os.environ.setdefault("NVCC_APPEND_FLAGS", "--threads=2")
    steps = [build_operators, *([build_reductions, build_peer] if torch.cuda.is_available() else [])]
    with ThreadPoolExecutor(len(steps)) as pool:
        failures = list(pool.map(lambda step: _timed(step, folder), steps))
    if failures[0] is not None:
        sys.exit("error: the operators did not build")
    # The tests would skip where the library does not load.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sys.path[:0] = [str(folder / "ops"), str(ROOT / "src")]
    importlib.invalidate_caches()  # the folder may have been on PYTHONPATH before it existed
    from stdetr.ops import backend

    chosen = backend(device)
    if chosen.name != device:
        sys.exit(f"error: the kernels were built but are not in use: {chosen.reason}")
    print(f"in use: {chosen}")


if __name__ == "__main__":
    main()
