"""Groups of videos: read from a field, drawn whole within their class, compared one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stdetr.evaluation.evaluate import evaluate
from stdetr.evaluation.ground_truth import GroundTruth
from stdetr.evaluation.groups import VideoGroups
from stdetr.evaluation.offline import run
from stdetr.evaluation.report import tables


@pytest.fixture
def scenes(new_scene: Any) -> Any:
    """Six videos of two frames: class 1 in scenes 9 (videos 1, 2) and 10 (video 3), class 2 in scene 7 (4, 5, 6)."""
    scene = new_scene([2] * 6, classes=2)
    for video, (name, distance) in zip(
        scene.videos, ((9, "far"), (9, "near"), (10, "near"), (7, "far"), (7, "far"), (7, "far")), strict=True
    ):
        video |= {"scene": name, "distance": distance}
    for image in scene.images:
        scene.truth(image["id"], [10, 10, 20, 20], 1 if image["video_id"] <= 3 else 2)
    return scene


def test_reading(scenes: Any) -> None:
    gt = GroundTruth.from_coco(scenes.document)
    groups = VideoGroups.read(gt, "scene")
    assert groups.names == ("7", "9", "10"), "numbers in the order of their values"
    assert groups.group.tolist() == [1, 1, 2, 0, 0, 0]
    assert groups.main.tolist() == [1, 0, 0]
    assert groups.mask("9").tolist() == [1, 1, 0, 0, 0, 0]
    assert VideoGroups.read(gt, "distance").names == ("far", "near")
    assert VideoGroups.read(gt.subset(gt.image_video < 3), "scene").main.tolist() == [-1, 0, 0]
    with pytest.raises(ValueError, match=r"video 'vid1' has no 'scenes' in the annotations; .*did you mean 'scene'"):
        VideoGroups.read(gt, "scenes")
    del scenes.videos[4]["scene"]
    with pytest.raises(ValueError, match=r"video 'vid5' has no 'scene'"):
        VideoGroups.read(GroundTruth.from_coco(scenes.document), "scene")


def test_draws_keep_groups_whole_and_classes_balanced(scenes: Any) -> None:
    groups = VideoGroups.read(GroundTruth.from_coco(scenes.document), "scene")
    draws = {tuple(groups.draw(np.random.default_rng(seed)).tolist()) for seed in range(50)}
    # The one scene of class 2 is always there; of class 1 two draws of scenes 9 and 10.
    assert draws == {(2, 2, 0, 1, 1, 1), (1, 1, 1, 1, 1, 1), (0, 0, 2, 1, 1, 1)}


def test_a_report_splits_ap50(scenes: Any, tmp_path: Path) -> None:
    for image in scenes.images[:5]:  # all but the last frame of video 3, the class's only miss
        scenes.found(image["id"], [10, 10, 20, 20], 0.9, 1)
    scored = evaluate(scenes.document, scenes.predictions, evaluators=["coco"], causal=None, seeds=1, by=["distance"])
    flat = scored.flat()
    assert flat["coco/AP50_distance_near"] == pytest.approx(76 / 101)
    assert flat["coco/AP50_distance_far"] == 0.5, "class 2 is nowhere found"
    assert tables(scored)["per_distance"].rows == [["coco/AP50", flat["coco/AP50"], 0.5, pytest.approx(76 / 101)]]


def test_comparing_by_groups(scenes: Any, tmp_path: Path) -> None:
    """A finds all of scene 9 and one frame of two in scene 10; B everything."""
    for name in "ab":
        scenes.predictions.clear()
        for image in scenes.images:
            if name == "b" or image["id"] != 6:
                scenes.found(image["id"], [10, 10, 20, 20], 0.9, 1 if image["video_id"] <= 3 else 2)
        (tmp_path / f"{name}.json").write_text(json.dumps(scenes.predictions))
    (tmp_path / "gt.json").write_text(json.dumps(scenes.document))
    run(
        {
            "compare": f"{tmp_path / 'a.json'},{tmp_path / 'b.json'}", "annotations": tmp_path / "gt.json",
            "evaluators": ["coco"], "bootstrap_draws": 100, "output_dir": tmp_path / "out",
            "evaluation": {"group": "scene", "by": ["distance"]},
        }
    )  # fmt: skip
    document = json.loads((tmp_path / "out/eval/compare.json").read_text())
    found = {d["metric"]: d for d in document["differences"]}
    # Recall 5/6 of class 1: 84 of the 101 recall points; of scene 10 alone 1/2: 51 points.
    class_1, scene_10 = 84 / 101, 51 / 101
    assert found["coco/AP50 class=class1"]["a"] == pytest.approx(class_1)
    assert found["coco/AP50"]["a"] == pytest.approx((class_1 + 1) / 2)
    assert found["coco/AP50"]["units"] == 3
    assert found["coco/AP50"]["low"] == 0, "scene 9 twice"
    assert found["coco/AP50"]["high"] == pytest.approx((1 - scene_10) / 2), "scene 10 twice"
    assert found["coco/AP50"]["b_range"] == [1, 1]
    # Near: videos 2 and 3, 3 of 4 boxes: 76 points.  Far: both classes complete.
    assert found["coco/AP50 distance=near"]["a"] == pytest.approx(76 / 101)
    assert found["coco/AP50 distance=far"]["a"] == 1
    rows = {g["group"]: g for g in document["groups"]}
    assert {name: g["main"] for name, g in rows.items()} == {"7": "class2", "9": "class1", "10": "class1"}
    assert rows["10"]["difference"] == pytest.approx(1 - scene_10)
    assert (rows["9"]["difference"], rows["9"]["videos"]) == (0, 2)
    text = (tmp_path / "out/eval/compare.md").read_text()
    assert "bootstrap over 3 groups by scene, drawn within their main class, too few" in text
    assert "coco/AP50 by scene: B is above A in 1 of 3" in text
