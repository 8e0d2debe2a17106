"""``scripts/frame_shares.py``: the shares of frames, counted by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from stdetr.structures import SamplingRecord

SCRIPT = Path(__file__).parents[1] / "scripts" / "frame_shares.py"
spec = importlib.util.spec_from_file_location("frame_shares", SCRIPT)
assert spec is not None and spec.loader is not None
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def test_shares_of_frames() -> None:
    """Two heads, two points: a frame's share is its sum over points, averaged over heads; -1 samples nothing."""
    weights = torch.zeros(2, 2, 2, 3, 1, 2)  # Q,T,H,F,L,K
    weights[1, 0, :, 1] = torch.tensor([[[0.1, 0.2]], [[0.3, 0.4]]])
    weights[1, 0, :, 2] = torch.tensor([[[0.5, 0.2]], [[0.1, 0.2]]])
    weights[1, 1, :, 0, 0, 0] = 1.0
    frames = torch.tensor([[-1, 0, 1], [1, 0, -1]])
    record = SamplingRecord(torch.zeros(2, 2, 2, 3, 1, 2, 2), weights, frames, torch.zeros(2, 2, 4))
    torch.testing.assert_close(script.shares_of(record, torch.tensor([1])), torch.tensor([[[0.5, 0.5], [0.0, 1.0]]]))
    frames[1, 1] = -1
    assert script.shares_of(record, torch.tensor([1]))[0, 1].isnan().tolist() == [True, False]


def test_clean_and_degraded_by_distance() -> None:
    """Two tubes of a clip whose second frame is degraded, one of a clip of one clean frame, padded to two."""
    one = torch.tensor([[[0.6, 0.4], [0.5, 0.5]], [[0.8, 0.2], [0.3, 0.7]]])
    other = torch.tensor([[[0.9, 0.1], [0.1, 0.9]]])
    found = script.summarise([one, other], [(False, True), (False,)])
    assert found["tubes"] == 3
    assert found["clean"] == pytest.approx([2.3 / 3, 0.4])
    assert found["degraded"] == pytest.approx([0.6, 0.3])
    assert found["ratio"] == pytest.approx(1.8 / (2 * 2.3 / 3 + 2 * 0.4))
    # Deviations over tubes of .6 .8 .9, .4 .2, .5 .3 and .5 .7.
    assert found["spread"] == pytest.approx((0.1527525 + 3 * 0.1414214) / 4, abs=1e-6)
    assert script.summarise([one], [(False, False)])["ratio"] is None
