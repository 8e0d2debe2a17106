"""The loader benchmark runs end to end and reports what its page promises."""

from __future__ import annotations

import json

import pytest

from stdetr.bench.loader import run

SMALL = {"size": [48, 32], "length": 12, "gop": 6, "frames": 3, "workers": [0], "reads": 6, "limit": 12}


def test_a_small_run_gives_json() -> None:
    result = run({"loader": SMALL})
    assert json.loads(json.dumps(result)) == result
    assert result["video"] == {"name": "made", "size": [48, 32], "frames": 12}
    assert set(result["backends"]) == {"decord", "av", "frames"}
    for measured in result["backends"].values():
        raw = measured["raw_sequential"]["frames_per_s"]
        assert measured["raw_sequential"]["ratio_to_raw"] == 1
        for name in ("source_contiguous", "loader_contiguous_workers_0", "loader_random_workers_0"):
            entry = measured[name]
            assert entry["ratio_to_raw"] == pytest.approx(entry["frames_per_s"] / raw, abs=0.002)
            assert entry["frames_per_s"] == pytest.approx(3 * entry["clips_per_s"], rel=0.02)
    assert result["memory"]["reads"] == 6
    assert result["memory"]["peak_mb"] >= result["memory"]["before_mb"] > 0
    assert set(result["caches"]) == {"memory", "disk"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"read": 3}, r"loader\.read is no key; there are .*reads"),
        ({"reads": 0}, r"loader\.reads must be at least 1, got 0"),
        ({"backends": ["decrod"]}, r"loader\.backends has 'decrod'"),
    ],
)
def test_mistakes(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run({"loader": keys})
