"""Tracking metrics by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stdetr.evaluation.evaluate import prepare
from stdetr.evaluation.track import TrackEvaluator

pytest.importorskip("trackeval")


def score(scene) -> dict[str, float]:
    return TrackEvaluator().evaluate(prepare(scene.document, scene.predictions)).metrics


def test_one_identity_switch(new_scene) -> None:
    # One object, four perfect boxes, the identity changes in the middle.  Each match shares its identity with two of
    # the four boxes on either side: AssA = 2 / 4, HOTA = sqrt(1 x 0.5); two of four boxes carry the better identity.
    scene = new_scene([4])
    for image in range(1, 5):
        scene.truth(image, [20, 20, 40, 40])
        scene.found(image, [20, 20, 40, 40], 0.9, track=1 + image // 3)
    metrics = score(scene)
    assert metrics["DetA"] == pytest.approx(1)
    assert metrics["AssA"] == pytest.approx(0.5)
    assert metrics["HOTA"] == pytest.approx(math.sqrt(0.5))
    assert metrics["IDSW"] == 1
    assert metrics["MOTA"] == pytest.approx(0.75)
    assert metrics["IDF1"] == pytest.approx(0.5)


def test_distractor_takes_its_prediction_along(new_scene) -> None:
    scene = new_scene([2])
    for image in (1, 2):
        scene.truth(image, [20, 20, 40, 40], instance=1)
        scene.truth(image, [100, 100, 40, 40], instance=2, ignore=1)
        scene.found(image, [20, 20, 40, 40], 0.9, track=1)
        scene.found(image, [101, 100, 40, 40], 0.9, track=2)
    assert score(scene)["MOTA"] == pytest.approx(1)
    scene.found(1, [150, 20, 10, 10], 0.9, track=3)  # a real false positive still costs
    assert score(scene)["MOTA"] == pytest.approx(0.5)


def test_detections_without_track_do_not_count(new_scene) -> None:
    scene = new_scene([1])
    scene.truth(1, [20, 20, 40, 40])
    scene.found(1, [20, 20, 40, 40], 0.9, track=1)
    scene.found(1, [120, 20, 40, 40], 0.9)
    assert score(scene)["HOTA"] == pytest.approx(1)


def test_classes_alone_and_together(new_scene) -> None:
    # The class is wrong: together that does not matter, alone it costs both classes everything.
    scene = new_scene([2], classes=3)
    for image in (1, 2):
        scene.truth(image, [20, 20, 40, 40], category=1)
        scene.found(image, [20, 20, 40, 40], 0.9, category=2, track=1)
    result = TrackEvaluator().evaluate(prepare(scene.document, scene.predictions))
    assert result.metrics["HOTA"] == pytest.approx(1)
    assert result.per_class["HOTA"][:2].tolist() == [0, 0]
    assert np.isnan(result.per_class["HOTA"][2])


def test_undefined_says_why(new_scene) -> None:
    scene = new_scene([1])
    scene.truth(1, [20, 20, 40, 40])
    scene.found(1, [20, 20, 40, 40], 0.9)
    result = TrackEvaluator().evaluate(prepare(scene.document, scene.predictions))
    assert result.undefined == "no prediction has a track_id"
    assert np.isnan(list(result.metrics.values())).all()


def test_without_ids_the_sure_tubes_are_the_tracks(new_scene) -> None:
    scene = new_scene([2])
    for image in (1, 2):
        scene.truth(image, [20, 20, 40, 40])
        scene.found(image, [20, 20, 40, 40], 0.9)
    near, far = [[20, 20, 40, 40]] * 2, [[200, 100, 30, 30]] * 2
    tubes = [{"video_id": 1, "category_id": 1, "score": s, "bboxes": b} for s, b in ((0.9, near), (0.2, far))]
    inputs = prepare(scene.document, scene.predictions, tubes)
    result = TrackEvaluator().evaluate(inputs)
    assert (result.metrics["MOTA"], result.metrics["IDF1"], result.metrics["HOTA"]) == pytest.approx((1, 1, 1))
    assert result.note == "no prediction has a track_id: the tubes that score at least 0.3 are the tracks"
    assert result.undefined == ""
    with_weak = TrackEvaluator(tube_score=0.1).evaluate(inputs)
    assert with_weak.metrics["MOTA"] == pytest.approx(0)  # two false positives on two boxes
    assert with_weak.metrics["IDF1"] == pytest.approx(2 / 3)
    nothing = TrackEvaluator(tube_score=0.95).evaluate(inputs)
    assert nothing.metrics["MOTA"] == pytest.approx(0)
    assert nothing.metrics["CLR_FN"] == 2
