"""What must hold for any input."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from stdetr.evaluation import evaluate
from stdetr.evaluation.coco import CocoEvaluator
from stdetr.evaluation.evaluate import prepare
from stdetr.evaluation.matching import greedy_match, rank_in_group
from stdetr.evaluation.motion import motion_iou

few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 10_000)
AP = ("coco", "vid", "vid_mega", "motion", "tube")


def flat(document: dict, predictions: list, evaluators=AP) -> dict:
    values = evaluate(document, predictions, evaluators=evaluators, causal=False, seeds=1).flat()
    return {key: value for key, value in values.items() if value is not None}


@few
@given(seeds)
def test_perfect_detections_give_one(make_random_scene, seed: int) -> None:
    scene = make_random_scene(seed)
    perfect = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": a["bbox"],
            "score": 0.5 + a["id"] / 1e4,
            "track_id": a["instance_id"],
        }
        for a in scene.annotations
    ]
    values = flat(scene.document, perfect, (*AP, "track"))
    for key in ("coco/AP", "vid/AP50", "vid_mega/AP50", "tube/AP", "track/HOTA", "track/MOTA", "track/IDF1"):
        assert values[key] == pytest.approx(1), key
    for key, value in values.items():
        # With one detection per frame and class allowed, not every object of a frame can be found.
        if key.startswith(("coco/AP", "vid", "tube/AP")):
            assert value == pytest.approx(1), key


@few
@given(seeds)
def test_order_and_ids_do_not_matter(make_random_scene, seed: int) -> None:
    scene = make_random_scene(seed)
    before = flat(scene.document, scene.predictions)
    rng = np.random.default_rng(seed)
    document, predictions = copy.deepcopy(scene.document), copy.deepcopy(scene.predictions)
    fresh = {old["id"]: int(new) for old, new in zip(document["images"], rng.permutation(10_000), strict=False)}
    for image in document["images"]:
        image["id"] = fresh[image["id"]]
    for record in document["annotations"] + predictions:
        record["image_id"] = fresh[record["image_id"]]
    for name in ("images", "annotations", "videos"):
        document[name] = [document[name][i] for i in rng.permutation(len(document[name]))]
    predictions = [predictions[i] for i in rng.permutation(len(predictions))]
    assert flat(document, predictions) == pytest.approx(before, abs=1e-12)


@few
@given(seeds, st.floats(0.001, 0.999), st.integers(1, 3))
def test_a_false_positive_never_raises_ap(make_random_scene, seed: int, score: float, category: int) -> None:
    scene = make_random_scene(seed)
    before = flat(scene.document, scene.predictions)
    image = 1 + seed % len(scene.images)
    scene.found(image, [5000, 5000, 30, 30], score, category, track=77)
    after = flat(scene.document, scene.predictions)
    assert after.keys() == before.keys()
    for key, value in after.items():
        assert value <= before[key] + 1e-12, key


@few
@given(seeds)
def test_cutting_a_video_changes_only_what_it_should(make_random_scene, seed: int) -> None:
    scene = make_random_scene(seed)
    cut = copy.deepcopy(scene.document)
    longest = max(cut["videos"], key=lambda video: video["length"])
    assume(longest["length"] > 1)
    at = longest["length"] // 2
    moved = set()
    for image in cut["images"]:
        if image["video_id"] == longest["id"] and image["frame_id"] >= at:
            image["video_id"], image["frame_id"] = 99, image["frame_id"] - at
            moved.add(image["id"])
    for annotation in cut["annotations"]:
        if annotation["image_id"] in moved:
            annotation["video_id"] = 99
    # Inserted behind its first half, the second half keeps its place in the order that breaks ties.
    place = cut["videos"].index(longest) + 1
    cut["videos"].insert(place, longest | {"id": 99, "name": "second half", "length": longest["length"] - at})
    longest["length"] = at
    whole, halves = prepare(scene.document, scene.predictions).gt, prepare(cut, scene.predictions).gt
    per_frame = ("coco", "vid", "vid_mega")
    assert flat(scene.document, scene.predictions, per_frame) == flat(cut, scene.predictions, per_frame)
    # Motion changes only for tracks with a box on either side of the cut.
    assert (whole.annotation_ids == halves.annotation_ids).all()
    second = np.isin(whole.image_ids[whole.image], list(moved))
    crossing = np.intersect1d(whole.track[second], whole.track[~second])
    same = ~np.isin(whole.track, crossing)
    np.testing.assert_array_equal(motion_iou(whole)[same], motion_iou(halves)[same])
    assert len(np.unique(halves.track)) == len(np.unique(whole.track)) + len(crossing)


@pytest.mark.parametrize("library", ["pycocotools", "faster-coco-eval"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seeds, st.booleans())
def test_coco_equals_the_libraries(make_random_scene, coco_oracle, library: str, seed: int, crowd: bool) -> None:
    scene = make_random_scene(seed, crowd=crowd, copies=3)
    for prediction in scene.predictions[::3]:
        prediction["score"] = round(prediction["score"], 1)  # ties
    if crowd:
        scene.annotations[seed % len(scene.annotations)]["ignore"] = 1
    result = CocoEvaluator().evaluate(prepare(scene.document, scene.predictions))
    metrics, ap, curve = coco_oracle(scene, library)
    for name, value in metrics.items():
        np.testing.assert_allclose(result.metrics[name], value, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(result.per_class["AP"], ap.mean(axis=1), atol=1e-9)
    np.testing.assert_allclose(result.per_class["AP50"], ap[:, 0], atol=1e-9)
    if result.curves:
        np.testing.assert_allclose(result.curves["coco/AP50"][1], curve, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(1, 6), st.integers(0, 10_000))
def test_greedy_match_is_the_loop(n: int, g: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    iou = rng.integers(0, 6, (n, g)) / 6  # with ties
    reusable = rng.random(g) < 0.3
    want = []
    free = np.ones(g, dtype=bool)
    for d in range(n):
        for k in sorted(range(g), key=lambda k: (-iou[d, k], k)):
            if iou[d, k] >= 0.5 and (free[k] or reusable[k]):
                free[k] = False
                want.append((d, k))
                break
    det, gt = np.nonzero(iou >= 0.5)
    order = np.lexsort((gt, -iou[det, gt], det))
    taker, taken = greedy_match(det[order], gt[order], n, g, reusable=reusable)
    assert list(zip(taker.tolist(), taken.tolist(), strict=True)) == want


def test_rank_in_group() -> None:
    assert rank_in_group(np.array([3, 1, 3, 3, 1, 7])).tolist() == [0, 0, 1, 2, 1, 0]
    assert rank_in_group(np.zeros(0, dtype=int)).tolist() == []
