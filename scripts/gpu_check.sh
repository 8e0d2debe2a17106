#!/bin/sh
# Everything that needs a GPU, in one command: build the CUDA kernels with this machine's nvcc, run tests/gpu, run
# compute-sanitizer (memcheck, racecheck, initcheck) on a small script, and measure op and model into JSON files.
# Works with any Python that has torch:  PYTHON=python3 sh scripts/gpu_check.sh [pytest arguments]
#
#   GPU_CHECK_BENCH   the JSON file (default benchmarks/op_h200.json); empty: no measurement
#   GPU_CHECK_SANITIZE=0   leave compute-sanitizer out
set -eu
cd "$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)"
python=${PYTHON:-python3}
bench=${GPU_CHECK_BENCH-benchmarks/op_h200.json}

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
# Without the CUDA library there is nothing to check: fail instead of skipping.
export STDETR_OPS_CUDA=1
uv=.bootstrap/bin/uv
if [ -x "$uv" ]; then
    "$uv" pip install --quiet --python "$python" --no-deps --no-build-isolation --target "$target" ./cuda_ops
else
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target "$target" ./cuda_ops
fi
export PYTHONPATH="$target:$(pwd)/src${PYTHONPATH:+:$PYTHONPATH}"
# The tests would skip where the library does not load.
"$python" -c "
import sys
from stdetr.ops import backend
found = backend('cuda')
sys.exit(0 if found.name == 'cuda' else f'error: the CUDA kernels were built but are not in use: {found.reason}')
"

echo "== tests"
"$python" -m pytest -m gpu tests "$@"

if [ "${GPU_CHECK_SANITIZE:-1}" != 0 ]; then
    sanitizer=$(command -v compute-sanitizer || true)
    for candidate in "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" \
        "${CUDA_HOME:-/usr/local/cuda}/compute-sanitizer/compute-sanitizer"; do
        [ -z "$sanitizer" ] && [ -x "$candidate" ] && sanitizer=$candidate
    done
    if [ -z "$sanitizer" ]; then
        echo "error: compute-sanitizer not found; install the CUDA toolkit's, or set GPU_CHECK_SANITIZE=0" >&2
        exit 1
    fi
    for tool in memcheck racecheck initcheck; do
        echo "== compute-sanitizer $tool"
        # PyTorch's caching allocator would hide accesses past a tensor's end.
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 1 --kernel-regex kns=stdetr \
            "$python" cuda_ops/harness/sanitize.py
    done
fi

if [ -n "$bench" ]; then
    echo "== measurement"
    "$python" -m stdetr bench suite=op device=cuda output="$bench"
    # The backward pass may sum coarse levels in shared memory; without it, for comparison.
    STDETR_COARSE_LEVELS=0 "$python" -m stdetr bench suite=op device=cuda output="${bench%.json}_no_coarse.json"
    # Offsets formed in the temporal kernels against formed before: decides stdetr.ops.temporal's default on CUDA.
    "$python" -m stdetr bench suite=model device=cuda output="$(dirname "$bench")/model_h200.json"
fi
