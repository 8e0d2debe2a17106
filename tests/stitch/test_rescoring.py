"""Scores averaged along tracks, against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stdetr.evaluation import offline
from stdetr.stitch.association import StitchRules
from stdetr.stitch.rescoring import rescore_tracks

Row = tuple[int, int, int, tuple[float, float, float, float], float]
"""video, frame, class, xywh, score"""


def _rescored(rows: list[Row], **rules: Any) -> list[float]:
    video, frame, label, boxes, scores = (list(column) for column in zip(*rows, strict=True)) if rows else [[]] * 5
    found = rescore_tracks(
        video=np.array(video, int),
        frame=np.array(frame, int),
        label=np.array(label, int),
        boxes=np.array(boxes, float).reshape(-1, 4),
        scores=np.array(scores, float),
        **rules,
    )
    return [round(float(score), 6) for score in found]


def _box(frame: int, left: float = 10.0) -> tuple[float, float, float, float]:
    return (left + 2 * frame, 20.0, 30.0, 30.0)


def test_a_track_shares_its_mean() -> None:
    assert _rescored([(0, t, 0, _box(t), score) for t, score in enumerate((0.9, 0.1, 0.5))]) == [0.5] * 3


def test_classes_compete_over_the_whole_track() -> None:
    """On frame 1 the wrong class is ahead; over the track it is behind.  A class not reported on a frame counts 0."""
    rows = [
        (0, 0, 0, _box(0), 0.8), (0, 0, 1, _box(0), 0.1),
        (0, 1, 0, _box(1), 0.3), (0, 1, 1, _box(1), 0.5),
        (0, 2, 0, _box(2), 0.7),
    ]  # fmt: skip
    assert _rescored(rows) == [0.6, 0.2, 0.6, 0.2, 0.6]


def test_tracks_videos_and_order_do_not_mix() -> None:
    rows = [
        (1, 1, 0, _box(1), 0.2),
        (0, 0, 0, _box(0), 0.9),
        (0, 1, 0, _box(1), 0.7),
        (1, 0, 0, _box(0), 0.4),
        (0, 0, 0, _box(0, left=300.0), 0.5),
        (0, 1, 0, _box(1, left=300.0), 0.1),
    ]
    assert _rescored(rows) == [0.3, 0.8, 0.8, 0.3, 0.3, 0.3]


def test_a_gap_is_bridged_by_the_rules() -> None:
    rows = [(0, t, 0, _box(t), score) for t, score in ((0, 0.8), (1, 0.8), (10, 0.5))]
    assert _rescored(rows) == [0.7] * 3
    assert _rescored(rows, rules=StitchRules(max_gap=3)) == [0.8, 0.8, 0.5]


def test_a_duplicate_keeps_its_score() -> None:
    rows = [(0, t, 0, _box(t), 0.8) for t in range(3)] + [(0, 1, 0, (12.5, 20.0, 30.0, 30.0), 0.3)]
    assert _rescored(rows) == [0.8, 0.8, 0.8, 0.3]


@pytest.mark.parametrize("rows", [[], [(3, 7, 2, _box(0), 0.25)]], ids=["none", "one"])
def test_none_and_one(rows: list[Row]) -> None:
    assert _rescored(rows) == [row[4] for row in rows]


def test_eval_rescores_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object on three frames and a false box that outranks its weakest."""
    images = [{"id": t + 1, "video_id": 1, "frame_id": t} for t in range(3)]
    document = {
        "videos": [{"id": 1, "name": "a", "width": 400, "height": 300, "length": 3}],
        "images": images,
        "categories": [{"id": 7, "name": "bird"}],
        "annotations": [
            {"id": t + 1, "image_id": t + 1, "category_id": 7, "instance_id": 1, "bbox": _box(t)} for t in range(3)
        ],
    }
    boxes = [(1, _box(0), 0.9), (2, _box(1), 0.1), (3, _box(2), 0.5), (2, (300, 200, 20, 20), 0.4)]
    results = [{"image_id": i, "category_id": 7, "bbox": box, "score": score} for i, box, score in boxes]
    (tmp_path / "gt.json").write_text(json.dumps(document))
    (tmp_path / "found.json").write_text(json.dumps(results))
    keys: dict[str, Any] = {
        "annotations": tmp_path / "gt.json", "predictions": tmp_path / "found.json", "evaluators": ["coco"],
        "output_dir": tmp_path / "out",
    }  # fmt: skip
    plain, joined = (offline.run({**keys, "rescore": rescore}) for rescore in (None, "tracks"))
    # Precision over recall: 1 up to 2/3 (67 of 101 points), then 3/4; once the object's scores are 0.5, 1 throughout.
    assert plain["coco/AP50"] == pytest.approx((67 + 34 * 3 / 4) / 101)
    assert joined["coco/AP50"] == 1
    assert json.loads((tmp_path / "out/eval/report.json").read_text())["sources"]["rescored"] == "tracks"
    with pytest.raises(ValueError, match="causal=true would be wrong"):
        offline.run({**keys, "rescore": "tracks", "causal": True})
    with pytest.raises(ValueError, match="rescore=track must be tracks"):
        offline.run({**keys, "rescore": "track"})
    with pytest.raises(ValueError, match="compare takes predictions as they are"):
        offline.run({**keys, "rescore": "tracks", "compare": "a,b"})
