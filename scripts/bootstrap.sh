#!/bin/sh
# The environment of a checkout, .venv, from requirements.lock: made once, reused while it is current, rebuilt when the
# lock changed. Needs Python 3.10 to 3.13 and nothing else; everything it makes lies in .bootstrap and .venv.
#
#   sh scripts/bootstrap.sh          the environment: packages, this project (editable), the compiled op where it builds
#   sh scripts/bootstrap.sh ops      build the compiled op again, whether or not its sources changed
#   sh scripts/bootstrap.sh python   only tell which interpreter would be used
#   sh scripts/bootstrap.sh uv ...   run the pinned uv with these arguments
#
#   PYTHON=python3.12                this interpreter instead of the newest in range
#   STDETR_REQUIRE_OPS=1             an op that does not build is an error (also where CI is set and a compiler is there)
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root"
venv=.venv
marker=$venv/.stdetr
lock=requirements.lock
export UV_PYTHON_DOWNLOADS=never
if [ -z "${UV_DEFAULT_INDEX:-}" ] && [ -n "${PIP_INDEX_URL:-}" ]; then
    export UV_DEFAULT_INDEX="$PIP_INDEX_URL"
fi

say() { printf '%s\n' "$*" >&2; }
die() {
    say "error: $*"
    exit 1
}
hash_of() { cat -- "$@" | sha256sum | cut -d' ' -f1; }

in_range() { # whether $1 is an interpreter that runs and has a supported version
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        in_range "$PYTHON" || die "PYTHON=$PYTHON: not a Python 3.10 to 3.13"
        printf '%s\n' "$PYTHON"
        return
    fi
    for name in python3.13 python3.12 python3.11 python3.10 python3 python; do
        if in_range "$name"; then
            printf '%s\n' "$name"
            return
        fi
    done
    die "no Python 3.10 to 3.13 on the path; install one, or name it: make PYTHON=/path/to/python3.12"
}

find_uv() { # the path of the pinned uv, installed into .bootstrap the first time
    wanted=$(hash_of scripts/uv.lock)
    for uv in .bootstrap/bin/uv .bootstrap/target/bin/uv; do
        if [ -x "$uv" ] && [ "$(cat .bootstrap/stamp 2>/dev/null)" = "$wanted" ]; then
            printf '%s\n' "$root/$uv"
            return
        fi
    done
    python=$(find_python)
    rm -rf .bootstrap/bin .bootstrap/lib .bootstrap/target .bootstrap/pyvenv.cfg
    mkdir -p .bootstrap
    pip_install="-m pip install --quiet --disable-pip-version-check --require-hashes -r scripts/uv.lock"
    uv=
    if "$python" -m venv .bootstrap >.bootstrap/venv.log 2>&1 && .bootstrap/bin/python $pip_install >&2; then
        uv=.bootstrap/bin/uv
    elif "$python" $pip_install --target .bootstrap/target >.bootstrap/pip.log 2>&1; then
        # Debian's python3 without python3-venv has no ensurepip, but may have pip.
        uv=.bootstrap/target/bin/uv
    elif command -v uv >/dev/null 2>&1; then
        say "note: $python has neither venv nor pip; using $(command -v uv)"
        command -v uv
        return
    else
        tail -n 3 .bootstrap/venv.log .bootstrap/pip.log >&2 || true
        die "$python could not install uv: it needs venv or pip (Debian, Ubuntu: apt-get install python3-venv), or uv on the path"
    fi
    printf '%s\n' "$wanted" >.bootstrap/stamp
    printf '%s\n' "$root/$uv"
}

venv_is_current() { # packages as the lock says, made here, with an interpreter that still runs
    [ "$(cat "$venv/.stamp-lock" 2>/dev/null)" = "$(lock_stamp)" ] || return 1
    in_range "$venv/bin/python" || return 1
    [ -z "${PYTHON:-}" ] || [ "$(version_of "$venv/bin/python")" = "$(version_of "$PYTHON")" ]
}

lock_stamp() { printf '%s %s\n' "$(hash_of "$lock")" "$root"; }
version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])'; }

install_packages() {
    if [ -e "$venv" ] && [ ! -e "$marker" ]; then
        die "$venv was not made by make and is left as it is; move it away, or remove it with: make clean-env"
    fi
    python=$(find_python)
    say "environment: $venv from $lock with Python $(version_of "$python")"
    "$uv" venv --quiet --clear --python "$python" "$venv"
    : >"$marker"
    "$uv" pip install --quiet --python "$venv/bin/python" --require-hashes -r "$lock"
    lock_stamp >"$venv/.stamp-lock"
}

install_project() {
    stamp=$(hash_of pyproject.toml)
    [ "$(cat "$venv/.stamp-project" 2>/dev/null)" = "$stamp" ] && return
    "$uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable .
    printf '%s\n' "$stamp" >"$venv/.stamp-project"
}

ops_sources() {
    find cuda_ops -type f ! -path '*/build/*' ! -path '*/__pycache__/*' ! -path '*.egg-info/*' ! -name '*.so' -print0 |
        LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1
}

find_compiler() {
    for name in ${CXX:-} c++ g++ clang++; do
        command -v "$name" >/dev/null 2>&1 && return 0
    done
    return 1
}

install_ops() { # $1: "again" to build although nothing changed
    [ -f cuda_ops/pyproject.toml ] || return 0
    stamp=$(ops_sources)
    had=$(cat "$venv/.stamp-ops" 2>/dev/null || true)
    if [ "${1:-}" != again ] && [ "${had%% *}" = "$stamp" ]; then
        return 0
    fi
    if ! find_compiler; then
        [ "${STDETR_REQUIRE_OPS:-0}" = 1 ] && die "STDETR_REQUIRE_OPS=1, and there is no C++ compiler"
        say "note: no C++ compiler, so the attention op runs as its PyTorch reference; install one and run: make ops"
        printf '%s no compiler\n' "$stamp" >"$venv/.stamp-ops"
        return 0
    fi
    say "attention op: compiling cuda_ops"
    if "$uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --reinstall ./cuda_ops \
        >"$venv/cuda_ops.log" 2>&1; then
        printf '%s built\n' "$stamp" >"$venv/.stamp-ops"
        return 0
    fi
    tail -n 20 "$venv/cuda_ops.log" >&2
    if [ "${STDETR_REQUIRE_OPS:-0}" = 1 ] || [ -n "${CI:-}" ]; then
        die "the attention op did not build; the whole log: $venv/cuda_ops.log"
    fi
    say "note: the attention op did not build (log: $venv/cuda_ops.log), so its PyTorch reference runs; again with: make ops"
    printf '%s failed\n' "$stamp" >"$venv/.stamp-ops"
}

environment() {
    mkdir -p .bootstrap
    if command -v flock >/dev/null 2>&1; then
        exec 9>.bootstrap/lock
        flock 9
    fi
    started=$(date +%s)
    fresh=no
    uv=$(find_uv)
    if ! venv_is_current; then
        install_packages
        fresh=yes
    fi
    install_project
    install_ops "${1:-}"
    [ $fresh = no ] || say "environment: ready after $(($(date +%s) - started)) s"
}

case "${1:-env}" in
env) environment ;;
ops) environment again ;;
python) find_python ;;
uv)
    shift
    uv=$(find_uv)
    exec "$uv" "$@"
    ;;
*) die "scripts/bootstrap.sh $1: no such step (steps: env, ops, python, uv)" ;;
esac
