#!/bin/sh
# The checks that need a GPU: build the kernels with this machine's nvcc, then run tests/gpu and the op's own tests.
# Works with any Python that has torch: PYTHON=python3 sh scripts/gpu_check.sh [pytest arguments]
set -eu
cd "$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)"
python=${PYTHON:-python3}

"$python" - <<'CHECK'
import sys

try:
    import torch
except ImportError:
    sys.exit("error: this Python has no torch; PYTHON=... names another")
if not torch.cuda.is_available():
    sys.exit("error: torch sees no CUDA device; 'stdetr doctor' tells why")
print(f"torch {torch.__version__}, {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}", flush=True)
CHECK

target=$(pwd)/build/gpu-check
rm -rf "$target"
if [ -f cuda_ops/pyproject.toml ]; then
    uv=.bootstrap/bin/uv
    if [ -x "$uv" ]; then
        "$uv" pip install --quiet --python "$python" --no-deps --no-build-isolation --target "$target" ./cuda_ops
    else
        "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target "$target" ./cuda_ops
    fi
fi
PYTHONPATH="$target:$(pwd)/src${PYTHONPATH:+:$PYTHONPATH}" "$python" -m pytest -m gpu tests "$@"
