"""Which implementation runs, and how that is chosen, told and built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stdetr.ops import backend, backends, ms_deform_attn, use_backend

ROOT = Path(__file__).resolve().parents[2]
CALL = (
    "import torch, warnings; warnings.simplefilter('always');"
    "from stdetr.ops import ms_deform_attn, backend, use_backend;"
    "run = lambda: ms_deform_attn(torch.ones(1, 1, 1, 1), [(1, 1)], torch.full((1, 1, 1, 1, 1, 2), 0.5),"
    "                             torch.ones(1, 1, 1, 1, 1));"
)


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def test_the_context_manager_chooses_and_restores():
    before = backend("cpu")
    with use_backend("reference"):
        assert backend("cpu").name == "reference"
        with use_backend("auto"):
            assert backend("cpu") == before
    assert backend("cpu") == before
    with pytest.raises(ValueError, match="did you mean 'reference'"), use_backend("referense"):
        pass


def test_other_devices_run_the_reference():
    assert backend("meta").name == "reference"
    value = torch.ones(1, 1, 1, 1, device="meta")
    locations = torch.ones(1, 1, 1, 1, 1, 2, device="meta")
    assert ms_deform_attn(value, [(1, 1)], locations, value[..., None]).shape == (1, 1, 1)
    with use_backend("kernels"), pytest.raises(ValueError, match="meta has none"):
        ms_deform_attn(value, [(1, 1)], locations, value[..., None])


def test_the_environment_variable_chooses():
    done = python(CALL + "print(backend('cpu').name, run().item())", STDETR_OPS_BACKEND="reference")
    assert done.stdout.split() == ["reference", "1.0"], done.stderr
    done = python(CALL, STDETR_OPS_BACKEND="kernel")
    assert done.returncode != 0
    assert "STDETR_OPS_BACKEND must be one of auto, reference, kernels, got 'kernel'" in done.stderr


def test_without_the_package_the_reference_runs_and_says_so_once():
    done = python("import sys; sys.modules['stdetr_ops'] = None;" + CALL + "run(); run(); print(run().item())")
    assert done.stdout.split() == ["1.0"], done.stderr
    assert done.stderr.count("runs as its PyTorch reference") == 1
    assert "stdetr-ops is not installed" in done.stderr


def test_a_build_without_compilers_leaves_a_package_that_says_why(tmp_path):
    """The build's own entry point with an empty PATH; the result is imported and the op still runs."""
    pytest.importorskip("setuptools")
    script = (
        "import json, sys; from dataclasses import asdict; from pathlib import Path;"
        f"sys.path.insert(0, {str(ROOT / 'cuda_ops')!r});"
        "import native; folder = Path(sys.argv[1]);"
        "(folder / 'build.json').write_text(json.dumps(asdict(native.build(folder))))"
    )
    package = tmp_path / "stdetr_ops"
    package.mkdir()
    source = ROOT / "cuda_ops" / "stdetr_ops" / "__init__.py"
    (package / "__init__.py").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    built = subprocess.run(
        [sys.executable, "-c", script, str(package)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
    )
    assert built.returncode == 0, built.stderr
    assert not list(package.glob("*.so"))
    done = python(CALL + "print(backend('cpu')); print(run().item())", PYTHONPATH=str(tmp_path))
    assert "no C++ compiler found" in done.stdout
    assert done.stdout.splitlines()[-1] == "1.0"


def test_a_broken_library_is_told_and_survived(tmp_path):
    package = tmp_path / "stdetr_ops"
    package.mkdir()
    source = ROOT / "cuda_ops" / "stdetr_ops" / "__init__.py"
    (package / "__init__.py").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    (package / "_C_cpu.so").write_bytes(b"not a library")
    done = python(CALL + "print(backend('cpu')); print(run().item())", PYTHONPATH=str(tmp_path))
    assert "does not load" in done.stdout
    assert done.stdout.splitlines()[-1] == "1.0"


def test_a_version_that_does_not_fit_is_not_used_and_says_so(kernels, monkeypatch):
    monkeypatch.setattr(backends, "OPS_VERSION", "9.9.9")
    found = backends._load()
    assert {one.name for one in found.values()} == {"reference"}
    installed = __import__("stdetr_ops").__version__
    line = f"stdetr-ops {installed} is installed, but this stdetr needs 9.9.9; run: make ops"
    assert found["cpu"].reason == found["cuda"].reason == line


def test_the_version_that_is_needed_is_the_one_in_this_repository():
    text = (ROOT / "cuda_ops" / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{backends.OPS_VERSION}"' in text
    package = (ROOT / "cuda_ops" / "stdetr_ops" / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{backends.OPS_VERSION}"' in package
