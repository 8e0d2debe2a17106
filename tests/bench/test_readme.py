"""The README's table and docs/benchmarks.md are what scripts/update_readme.py makes from the committed JSON files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("update_readme", ROOT / "scripts" / "update_readme.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_up_to_date(script):
    text = (ROOT / "README.md").read_text()
    assert script.START in text and script.END in text
    assert script.updated(text) == text, "run: python scripts/update_readme.py"
    assert (ROOT / "docs" / "benchmarks.md").read_text() == script.page(), "run: python scripts/update_readme.py"


def test_only_what_lies_between_the_marks_changes(script):
    text = script.updated(f"before\n{script.START}\nold\n{script.END}\nafter\n")
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    with pytest.raises(ValueError, match="has no <!-- measured -->"):
        script.updated("nothing")


def row(implementation, **figures):
    return {"case": "encoder_480p_T5", "locations": "clustered", "kind": "plain", "implementation": implementation} | (
        figures
    )


def test_the_table_of_the_op(script, tmp_path, monkeypatch):
    document = {
        "command": "stdetr bench suite=op threads=2",
        "commit": "0123456789abcdef",
        "machine": {"processor": "A CPU", "threads": 2, "torch": "2.13"},
        "backend": "cpu (stdetr-ops 0.1.0, avx2)",
        "dtype": "float32",
        "absent": {"deformops": "its kernels need a GPU"},
        "rows": [
            row("stdetr", forward_ms=50.0, both_ms=150.0, memory_peak=2**20 * 105, memory_needed=2**20 * 100),
            row("grid_sample", forward_ms=1000, both_ms=3000, forward_times_ours=20.0, both_times_ours=20.0),
            row("reference", skipped="needs about 21 GiB"),
        ],
        "sweep": {
            "plain": {
                "rows": [{"frames": frames} for frames in (1, 2, 4, 1, 2, 4)],
                "exponents": {"stdetr": {"forward_ms": 1.01, "both_ms": 0.99, "memory_peak": 0.7}},
            }
        },
    }
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "op_cpu.json").write_text(json.dumps(document))
    monkeypatch.setattr(script, "ROOT", tmp_path)
    text = script.page()
    first = "| encoder 480p T5, clustered | 50.0 ms | 150.0 ms | 20.0x, 20.0x | needs about 21 GiB | "
    assert f"\n{first}105 MiB, 1.05 of needed |\n" in text
    assert "T = 1, 2, 4, plain op, as an exponent (1 is linear): forward 1.01, both 0.99, peak memory 0.70" in text
    assert "Not in this run: deformops (its kernels need a GPU)." in text


def test_the_table_of_the_model(script, tmp_path, monkeypatch):
    figures = {"part": "encoder", "frames": 4, "both_ms": 200.0, "peak": 2**20 * 40}
    document = {
        "command": "stdetr bench suite=model",
        "commit": "0123456789abcdef",
        "machine": {"processor": "A CPU", "threads": 2},
        "model": {"window": 1},
        "rows": [
            figures | {"backend": "kernels"},
            figures | {"backend": "composed", "both_times_kernels": 1.3, "peak_times_kernels": 1.16},
        ],
    }
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "model_cpu.json").write_text(json.dumps(document))
    monkeypatch.setattr(script, "ROOT", tmp_path)
    text = script.page()
    assert "\n| encoder | 4 | 200 ms | 10.0 MiB | 1.30x, 1.16x | - |\n" in text
