"""Each rule by hand: numbers that follow from the definitions on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stdetr.evaluation.coco import CocoEvaluator
from stdetr.evaluation.evaluate import prepare
from stdetr.evaluation.motion import motion_iou
from stdetr.evaluation.tube import TubeEvaluator
from stdetr.evaluation.vid import VidEvaluator
from stdetr.evaluation.vid_mega import VidMegaEvaluator


def score(scene, evaluator):
    return evaluator.evaluate(prepare(scene.document, scene.predictions)).metrics


@pytest.mark.parametrize(
    ("shift", "vid", "mega", "coco"),
    [
        # A 10 x 10 box moved by ``shift`` pixels.  COCO sees 10 x 10 boxes, the devkit 11 x 11 and a threshold of
        # 121 / 441 = 0.274, MEGA 12 x 12.  Shift 3: 70/130, 4: 60/140 | 77/165 | 96/192 = 0.5 exactly,
        # 5: 50/150 | 66/176 | 84/204, 7: 30/170 | 44/198 = 0.222 | 60/228.
        (3, 1.0, 1.0, 1.0),
        (4, 1.0, 1.0, 0.0),
        (5, 1.0, 0.0, 0.0),
        (7, 0.0, 0.0, 0.0),
    ],
)
def test_same_boxes_by_three_rules(new_scene, shift: int, vid: float, mega: float, coco: float) -> None:
    scene = new_scene([1])
    scene.truth(1, [20, 20, 10, 10])
    scene.found(1, [20 + shift, 20, 10, 10], 0.9)
    assert score(scene, VidEvaluator())["AP50"] == vid
    assert score(scene, VidMegaEvaluator())["AP50"] == mega
    assert score(scene, CocoEvaluator())["AP50"] == pytest.approx(coco)


def test_area_and_101_points(new_scene) -> None:
    # Hit, miss, hit on two objects: precision 1 up to recall 0.5, 2/3 up to recall 1.
    scene = new_scene([2])
    scene.truth(1, [20, 20, 40, 40])
    scene.truth(2, [20, 20, 40, 40])
    scene.found(1, [20, 20, 40, 40], 0.9)
    scene.found(1, [120, 120, 40, 40], 0.8)
    scene.found(2, [20, 20, 40, 40], 0.7)
    assert score(scene, VidEvaluator())["AP50"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert score(scene, CocoEvaluator())["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_duplicate_is_a_false_positive(new_scene) -> None:
    scene = new_scene([2])
    scene.truth(1, [20, 20, 40, 40])
    scene.truth(2, [20, 20, 40, 40])
    scene.found(1, [20, 20, 40, 40], 0.9)
    scene.found(1, [21, 20, 40, 40], 0.8)
    # The second detection of the one object is wrong, the object of frame 2 is not found.
    assert score(scene, VidEvaluator())["AP50"] == pytest.approx(0.5)
    assert score(scene, VidMegaEvaluator())["AP50"] == pytest.approx(0.5)


@pytest.mark.parametrize("evaluator", [CocoEvaluator(), VidEvaluator(), VidMegaEvaluator()], ids=lambda e: e.name)
def test_a_detection_takes_the_object_of_highest_iou(new_scene, evaluator) -> None:
    # The first detection overlaps both objects (0.67 and 0.9).  Only if it takes the second one, the first one is left
    # for the second detection, which does not overlap the other by half.
    scene = new_scene([1])
    scene.truth(1, [50, 50, 40, 40], instance=1)
    scene.truth(1, [60, 50, 40, 40], instance=2)
    scene.found(1, [58, 50, 40, 40], 0.9)
    scene.found(1, [42, 50, 40, 40], 0.8)
    assert score(scene, evaluator)["AP50"] == pytest.approx(1)


def test_equal_boxes_stay_two(new_scene) -> None:
    # Two detections, and the two tubes made of them, with the same boxes, class and score: one is right, one is wrong.
    scene = new_scene([2])
    for image in (1, 2):
        scene.truth(image, [20, 20, 40, 40])
        for track in (1, 2):
            scene.found(image, [20, 20, 40, 40], 0.9, track=track)
    inputs = prepare(scene.document, scene.predictions)
    assert inputs.detections.tracks is not None
    assert inputs.detections.tracks.tolist() == [1, 2, 1, 2]
    assert inputs.tubes is not None
    assert len(inputs.tubes) == 2
    # All four detections have one score; in each image the first is matched.  Matches and misses alternate (COCO and
    # the devkit), so precision is 1 at recall 1/2 and 2/3 at recall 1.
    assert score(scene, VidEvaluator())["AP50"] == pytest.approx(1 / 2 + 2 / 3 / 2)
    assert score(scene, CocoEvaluator())["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert TubeEvaluator().evaluate(inputs).details["predicted_tubes"] == 2


def test_motion_iou_by_hand(new_scene) -> None:
    # 9 x 9 boxes count 10 x 10 pixels; a step of 5 leaves 50 / 150, two steps nothing.
    scene = new_scene([3])
    for frame, x in enumerate([0, 5, 10]):
        scene.truth(frame + 1, [x, 0, 9, 9], instance=1)
        scene.truth(frame + 1, [100, 100, 9, 9], instance=2)
    scene.truth(2, [50, 50, 9, 9], instance=3)
    gt = prepare(scene.document, []).gt
    values = dict(zip(gt.annotation_ids.tolist(), motion_iou(gt), strict=True))
    third = 50 / 150
    assert [values[i] for i in (1, 3, 5)] == pytest.approx([third / 2, third, third / 2])
    assert [values[i] for i in (2, 4, 6)] == pytest.approx([1, 1, 1])
    assert values[7] == 1.0  # alone in its track: as in the published values


def test_motion_window_is_ten_frames(new_scene) -> None:
    scene = new_scene([12])
    scene.truth(1, [0, 0, 9, 9])
    scene.truth(11, [0, 0, 9, 9])  # ten frames later: seen
    scene.truth(12, [100, 0, 9, 9])  # eleven frames after the first, one after the second
    gt = prepare(scene.document, []).gt
    assert motion_iou(gt).tolist() == pytest.approx([1.0, 0.5, 0.0])


def test_unmatched_detection_between_slow_and_fast(new_scene) -> None:
    # Class 1 stands still, class 2 flies.  In the slow split the far detection of class 1 overlaps nothing: FGFA
    # looks at all classes and counts the share of ignored boxes (1 of 2), MEGA only at class 1, where none is.
    scene = new_scene([2], classes=2)
    for frame, x in enumerate([0, 100]):
        scene.truth(frame + 1, [150, 150, 30, 30], category=1, instance=1)
        scene.truth(frame + 1, [x, 0, 9, 9], category=2, instance=2)
        scene.found(frame + 1, [150, 150, 30, 30], 0.8)
    scene.found(1, [50, 80, 20, 20], 0.9)
    assert score(scene, VidEvaluator())["AP50_slow"] == pytest.approx(2 / 2.5)
    assert score(scene, VidMegaEvaluator())["AP50_slow"] == pytest.approx(2 / 3)
    assert math.isnan(score(scene, VidEvaluator())["AP50_medium"])
    assert score(scene, VidEvaluator())["AP50_fast"] == 0.0


def test_empty_frame_weight(new_scene) -> None:
    # One slow box in two frames, one empty frame: motion values {1, 1, 0}, the slow range holds 2 of 3.
    scene = new_scene([3])
    for frame in (1, 2):
        scene.truth(frame, [20, 20, 40, 40])
        scene.found(frame, [20, 20, 40, 40], 0.5)
    scene.found(3, [20, 20, 40, 40], 0.9)
    for evaluator in (VidEvaluator(), VidMegaEvaluator()):
        assert score(scene, evaluator)["AP50_slow"] == pytest.approx(2 / (2 + 2 / 3))
        assert score(scene, evaluator)["AP50"] == pytest.approx(2 / 3)


def test_tube_iou_counts_absent_frames(new_scene) -> None:
    # The tube misses the last of three frames: IoU 2/3, so it is right at 0.50, 0.55, 0.60 and 0.65.
    scene = new_scene([3])
    for image in (1, 2, 3):
        scene.truth(image, [20, 20, 40, 40])
    for image in (1, 2):
        scene.found(image, [20, 20, 40, 40], 0.9, track=5)
    metrics = score(scene, TubeEvaluator())
    assert metrics["AP50"] == pytest.approx(1)
    assert metrics["AP75"] == 0
    assert metrics["AP"] == pytest.approx(0.4)
    assert metrics["AR1"] == pytest.approx(0.4)


def test_ignored_frames_of_a_counted_track_do_not_count(new_scene) -> None:
    # Frame 3 of the track is ignored; the tube's box there is far off, and neither helps nor hurts.
    scene = new_scene([3])
    for image in (1, 2):
        scene.truth(image, [20, 20, 40, 40])
        scene.found(image, [20, 20, 40, 40], 0.9, track=5)
    scene.truth(3, [20, 20, 40, 40], ignore=1)
    scene.found(3, [120, 120, 40, 40], 0.9, track=5)
    assert score(scene, TubeEvaluator())["AP"] == pytest.approx(1)


def test_crowd_takes_any_number_of_detections(new_scene) -> None:
    scene = new_scene([1])
    scene.truth(1, [20, 20, 40, 40])
    scene.truth(1, [100, 100, 80, 80], instance=2, ignore=1)
    scene.found(1, [110, 110, 20, 20], 0.95)
    scene.found(1, [140, 140, 20, 20], 0.94)
    scene.found(1, [20, 20, 40, 40], 0.9)
    assert score(scene, CocoEvaluator())["AP"] == pytest.approx(1)


def test_degraded_and_clean_frames(new_scene) -> None:
    scene = new_scene([4])
    for image in (1, 2, 3, 4):
        scene.truth(image, [20, 20, 40, 40])
    scene.images[2]["degradation"] = "blur"
    scene.images[3]["degradation"] = "blank"
    for image in (1, 2, 3):
        scene.found(image, [20, 20, 40, 40], 0.9)
    metrics = score(scene, CocoEvaluator())
    assert metrics["AP50_clean"] == pytest.approx(1)
    assert metrics["AP50_degraded"] == pytest.approx(51 / 101)  # one of two found: recall points 0 to 0.5
    assert metrics["AP50"] == pytest.approx(76 / 101)


def test_no_degradation_no_split(new_scene) -> None:
    scene = new_scene([1])
    scene.truth(1, [20, 20, 40, 40])
    assert "AP_degraded" not in score(scene, CocoEvaluator())


@pytest.mark.parametrize("evaluator", [CocoEvaluator(), VidEvaluator()])
def test_nothing_to_find_is_undefined_and_nothing_found_is_zero(new_scene, evaluator) -> None:
    empty = new_scene([2])
    empty.found(1, [20, 20, 40, 40], 0.9)
    assert np.isnan(list(score(empty, evaluator).values())).all()
    blind = new_scene([2])
    blind.truth(1, [20, 20, 40, 40])
    assert score(blind, evaluator)["AP50"] == 0.0


def test_more_than_a_hundred_detections(new_scene) -> None:
    # The right detection comes 101st: COCO does not look at it, the devkit does.
    scene = new_scene([1])
    scene.truth(1, [20, 20, 40, 40])
    for k in range(100):
        scene.found(1, [150, 150, 10, 10], 0.9 - k * 1e-3)
    scene.found(1, [20, 20, 40, 40], 0.1)
    assert score(scene, CocoEvaluator())["AP50"] == 0.0
    assert score(scene, VidEvaluator())["AP50"] == pytest.approx(1 / 101)
