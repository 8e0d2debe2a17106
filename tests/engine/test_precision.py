"""``trainer.precision`` from the configuration to a checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from stdetr.engine import train


def test_bf16_trains(tiny, tmp_path: Path) -> None:
    for precision in ("no", "bf16"):
        train.run(tiny(precision, f"trainer.precision={precision}", "trainer.single_frame=1", "trainer.max_steps=2"))
    lines = {
        precision: json.loads((tmp_path / precision / "metrics.jsonl").read_text().splitlines()[0])
        for precision in ("no", "bf16")
    }
    assert math.isfinite(lines["bf16"]["loss"])
    # The same batches, so nearly the same loss; but not the same, or nothing was computed in bf16.
    assert lines["bf16"]["loss"] == pytest.approx(lines["no"]["loss"], rel=0.1)
    assert lines["bf16"]["loss"] != lines["no"]["loss"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works on this machine's GPU, so it is not refused")
def test_fp16_is_refused_where_it_cannot_be_used(tiny) -> None:
    with pytest.raises(ValueError, match=r"trainer\.precision=fp16 needs a GPU"):
        train.run(tiny("run", "trainer.precision=fp16"))
