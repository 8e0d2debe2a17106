"""Streaming AP: which output is on screen when a frame arrives, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from stdetr.evaluation import evaluate
from stdetr.evaluation.evaluate import prepare
from stdetr.evaluation.streaming import load_times, replay, shown_output, simulate


@pytest.fixture
def scene(new_scene):
    """One object that moves 30 pixels per frame, found exactly in every frame; 10 frames per second."""
    scene = new_scene([5])
    scene.videos[0]["fps"] = 10
    for frame in range(5):
        scene.truth(frame + 1, [30 * frame, 20, 40, 40])
        scene.found(frame + 1, [30 * frame, 20, 40, 40], 0.9)
    return scene


def test_latest_output_not_after_the_frame(scene) -> None:
    gt = prepare(scene.document, []).gt
    # Frames arrive at 0, 0.1, ..., 0.4.  Frame 0 is ready at 0.1 (just in time for frame 1), frame 2 at 0.35.
    times = load_times([{"image_id": 1, "timestamp": 0.1}, {"image_id": 3, "timestamp": 0.35}], gt)
    rate = np.array([10.0])
    assert shown_output(gt, times, rate).tolist() == [-1, 0, 0, 0, 2]
    assert shown_output(gt, times, rate, horizon=1).tolist() == [-1, -1, 0, 0, 0]


def test_an_older_frame_that_is_ready_later_is_shown(scene) -> None:
    gt = prepare(scene.document, []).gt
    times = load_times([{"image_id": 1, "timestamp": 0.3}, {"image_id": 2, "timestamp": 0.2}], gt)
    assert shown_output(gt, times, np.array([10.0])).tolist() == [-1, -1, 1, 0, 0]


@pytest.mark.parametrize(
    ("latency", "ready"),
    [
        (0.05, [0.05, 0.15, 0.25, 0.35, 0.45]),  # faster than the frames: each one, half a frame late
        (0.1, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (0.15, [0.15, 0.3, None, 0.45, 0.6]),  # free at 0.15: takes frame 1; at 0.30: frame 3; at 0.45: frame 4
        (0.3, [0.3, None, None, 0.6, 0.9]),
    ],
)
def test_simulated_detector_takes_the_newest_frame(scene, latency: float, ready: list) -> None:
    gt = prepare(scene.document, []).gt
    want = [np.nan if time is None else time for time in ready]
    np.testing.assert_allclose(simulate(gt, latency, np.array([10.0])), want, atol=1e-12)


def test_no_latency_gives_coco_and_latency_costs(scene) -> None:
    at_once = [{"image_id": i, "timestamp": (i - 1) / 10} for i in range(1, 6)]
    late = [{"image_id": i, "timestamp": i / 10} for i in range(1, 6)]

    def score(**more) -> dict:
        given = {"evaluators": ("coco", "streaming"), "causal": True, "seeds": 1}
        return evaluate(scene.document, scene.predictions, **given, **more).flat()

    assert score(timestamps=at_once)["streaming/sAP"] == pytest.approx(1)
    # A frame late, 40 pixels wide and 30 further on: IoU 10 / 70.
    assert score(timestamps=late)["streaming/sAP50"] == 0
    assert score(latency_ms=100)["streaming/sAP50"] == 0
    assert score()["streaming/sAP"] is None
    assert score(latency_ms=100)["coco/AP"] == pytest.approx(1)


def test_replayed_detections(scene) -> None:
    scene.found(1, [0, 0, 5, 5], 0.1)
    inputs = prepare(scene.document, scene.predictions)
    shown = replay(inputs.detections, np.array([-1, 0, 0, -1, 2]))
    assert shown.image.tolist() == [1, 1, 2, 2, 4]
    assert shown.boxes[:, 0].tolist() == [0, 0, 0, 0, 60]


def test_mistakes(scene) -> None:
    gt = prepare(scene.document, []).gt
    with pytest.raises(ValueError, match="latency_ms=0 must be above 0"):
        prepare(scene.document, [], latency_ms=0)
    with pytest.raises(ValueError, match="not both"):
        prepare(scene.document, [], latency_ms=5, timestamps=[])
    with pytest.raises(ValueError, match="nearest valid image_id is 5"):
        load_times([{"image_id": 9, "timestamp": 0.0}], gt)
    with pytest.raises(ValueError, match="give one timestamp for each"):
        load_times([{"image_id": 1, "timestamp": 0.0}] * 2, gt)
    del scene.videos[0]["fps"]
    with pytest.raises(ValueError, match="'vid1' has no fps"):
        prepare(scene.document, [], latency_ms=5)
