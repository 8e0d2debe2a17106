"""A share of ``scripts/kill_test.py``: runs that are killed, also in pairs of saves, end as an undisturbed one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "kill_test.py"


@pytest.mark.slow
def test_killed_runs_end_as_an_undisturbed_one(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    words = ["kills=7", "in_saves=4", "seed=3", f"folder={tmp_path / 'runs'}", f"output={output}"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    result = json.loads(output.read_text())
    # A run that ends before its kill is followed by another, so there may be more.
    assert result["kills"] >= 7
    assert result["kills_in_saves"] >= 4
    assert result["failures"] == []
    assert result["wandb_missing"] == result["wandb_double"] == result["other_weights"] == result["other_metrics"] == 0
