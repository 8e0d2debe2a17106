#!/bin/sh
# Everything that needs a GPU, in one command of at most ten minutes: build the CUDA kernels, test the hot cases, measure
# them against their peers, profile, sanitise, run the other tests. What each part does and which variables there are:
# scripts/gpu_check.py. Works from a copy of this repository with any Python that has torch and pytest, without network:
#
#   OUT=results GPU_CHECK_WHEELS=wheels PYTHON=python3 sh scripts/gpu_check.sh
set -eu
exec "${PYTHON:-python3}" "$(dirname -- "$0")/gpu_check.py" "$@"
