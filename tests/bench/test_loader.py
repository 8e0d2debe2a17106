"""The loader benchmark runs end to end and reports what its page promises."""

from __future__ import annotations

import json

import pytest
from omegaconf import DictConfig

from stdetr.bench.loader import _Pass, _summary, run, table
from stdetr.config import compose

SMALL = ["size=[48,32]", "length=12", "gop=6", "frames=3", "workers=[0]", "reads=6", "limit=12", "repeats=1"]


def settings(keys: list[str]) -> DictConfig:
    return compose("bench", ["suite=loader", *(f"loader.{key}" for key in keys)])


def test_a_small_run_gives_json() -> None:
    result = run(settings(SMALL))
    assert json.loads(json.dumps(result)) == result
    assert result["video"] == {"name": "made", "size": [48, 32], "frames": 12, "gop": 6}
    assert set(result["backends"]) == {"decord", "av", "frames"}
    for measured in result["backends"].values():
        raw = measured["raw_sequential"]["frames_per_s"]
        assert measured["raw_sequential"]["ratio_to_raw"] == 1
        names = ("source_contiguous", "loader_contiguous_workers_0", "loader_random_workers_0")
        for name in (*names, "loader_contiguous_normalised_on_cpu"):
            entry = measured[name]
            # One turn: the rate of each is its median.
            assert entry["ratio_to_raw"] == pytest.approx(entry["frames_per_s"] / raw, abs=0.002)
            assert entry["frames_per_s"] == pytest.approx(3 * entry["clips_per_s"], rel=0.02)
            assert entry["cpu_ms_per_frame"] > 0
    assert set(result["memory"]) == {"decord", "av"}
    for memory in result["memory"].values():
        assert memory["reads"] == 6
        assert memory["peak_mb"] >= memory["before_mb"] > 0
    assert set(result["caches"]) == {"memory", "disk"}
    lines = table(result).splitlines()
    assert lines[0] == "made film, 48x32, 12 frames, clips of 3"
    assert sum(line.startswith("| decord") for line in lines) == 5
    assert [line[: line.index(":")] for line in lines[-2:]] == [
        "memory over 6 random clips (av)", "memory over 6 random clips (decord)"
    ]  # fmt: skip


def test_figures_are_medians_of_turns_and_workers_have_no_cpu_figure() -> None:
    passes = {
        "raw_sequential": [_Pass(2.0, 1.0, 100), _Pass(1.0, 1.5, 100), _Pass(4.0, 2.0, 100)],
        "loader_contiguous_workers_0": [_Pass(2.5, 2.0, 100), _Pass(2.0, 2.0, 100), _Pass(4.0, 1.25, 100)],
        "loader_contiguous_workers_2": [_Pass(0.5, 0.1, 100)] * 3,
    }
    found = _summary(passes, clip=5)
    assert found["raw_sequential"]["frames_per_s"] == 50  # of 50, 100 and 25
    here = found["loader_contiguous_workers_0"]
    assert (here["frames_per_s"], here["clips_per_s"]) == (40, 8)  # of 40, 50 and 25
    assert here["ratio_to_raw"] == 0.8  # of 0.8, 0.5 and 1
    assert here["cpu_ms_per_frame"] == 20  # of 20, 20 and 12.5
    assert here["cpu_ratio_to_raw"] == 0.75  # of 0.5, 0.75 and 1.6
    assert found["loader_contiguous_workers_2"] == {"frames_per_s": 200, "clips_per_s": 40, "ratio_to_raw": 4}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["read=3"], r"loader\.read=3: no such key; did you mean 'loader\.reads'"),
        (["reads=0"], r"loader\.reads must be at least 1, got 0"),
        (["backends=[decrod]"], r"loader\.backends has 'decrod'"),
    ],
)
def test_mistakes(keys: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(settings(keys))
