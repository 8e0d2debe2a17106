"""The expected numbers of the peers' own code, case by case, to 1e-6."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from stdetr.evaluation.coco import CocoEvaluator
from stdetr.evaluation.evaluate import prepare
from stdetr.evaluation.motion import motion_iou
from stdetr.evaluation.protocol import Result
from stdetr.evaluation.track import TrackEvaluator
from stdetr.evaluation.tube import TubeEvaluator
from stdetr.evaluation.vid import VidEvaluator
from stdetr.evaluation.vid_mega import VidMegaEvaluator

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "fixtures" / "evaluators"
CASES = (
    "crowd_ignore",
    "duplicates_ties",
    "empty_frames_absent_class",
    "large_objects",
    "leave_reenter",
    "small_objects",
)
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no evaluator fixtures at {FOLDER}")


@lru_cache(maxsize=len(CASES))
def load(case: str) -> dict:
    document = json.loads((FOLDER / f"{case}.json").read_text())
    document["inputs"] = prepare(document, document["predictions"], document["tubes"])
    return document


def compare(have: dict, want: dict) -> None:
    for name, value in want.items():
        if name in ("per_class", "per_video") or isinstance(value, list | dict):
            continue
        expected = np.nan if value in (-1, None) else value
        np.testing.assert_allclose(have[name], expected, atol=1e-6, rtol=0, err_msg=name)


def compare_classes(document: dict, have: dict, want: dict) -> None:
    for position, category in enumerate(document["categories"]):
        values = {name: column[position] for name, column in have.items()}
        compare(values, want["per_class"][str(category["id"])])


@pytest.mark.parametrize("case", CASES)
def test_coco(case: str) -> None:
    document = load(case)
    result = CocoEvaluator().evaluate(document["inputs"])
    compare(result.metrics, document["expected"]["coco"])
    compare_classes(document, result.per_class, document["expected"]["coco"])


@pytest.mark.parametrize("case", CASES)
def test_tube(case: str) -> None:
    document = load(case)
    result = TubeEvaluator().evaluate(document["inputs"])
    compare(result.metrics, document["expected"]["ytvis_box"])
    compare_classes(document, result.per_class, document["expected"]["ytvis_box"])


@pytest.mark.parametrize("case", CASES)
def test_tube_area_over_present_frames(case: str) -> None:
    document = load(case)
    expected = document["expected"].get("ytvis_box_youtubevos_area")
    if expected is None:
        pytest.skip("the tube boxes of this case are fractional, which the public code cannot rasterise")
    compare(TubeEvaluator("present_frames").evaluate(document["inputs"]).metrics, expected)


@pytest.mark.parametrize("case", CASES)
def test_motion_iou(case: str) -> None:
    document = load(case)
    gt, expected = document["inputs"].gt, document["expected"]["motion_iou"]["by_annotation_id"]
    want = [expected[str(i)] for i in gt.annotation_ids]
    np.testing.assert_allclose(motion_iou(gt), want, atol=1e-9, rtol=0)
    alone = document["expected"]["motion_iou"]["undefined_in_script_set_to_1"]
    assert all(expected[str(i)] == 1.0 for i in alone)


@pytest.mark.parametrize("case", CASES)
def test_vid(case: str) -> None:
    document = load(case)
    result, expected = VidEvaluator().evaluate(document["inputs"]), document["expected"]
    if expected["vid_devkit"] is None:
        assert np.isnan(list(result.metrics.values())).all()
        assert "crowd" in result.undefined
        return
    wanted = {"AP50": expected["vid_devkit"]["mean_over_classes_with_gt"]}
    compare(result.metrics, wanted)
    for position, category in enumerate(document["categories"]):
        one = expected["vid_devkit"]["per_class"][str(category["id"])]
        compare({"AP50": result.per_class["AP50"][position]}, {"AP50": one})
    check_splits(document, result, expected["vid_motion"]["splits"])
    for split, weight in expected["vid_motion"]["empty_weight"].items():
        if split != "all":
            assert result.details["empty_weight"][split] == pytest.approx(weight, abs=1e-9)
    counts = {split: values["num_gt"] for split, values in expected["vid_motion"]["splits"].items()}
    assert result.details["ground_truth"] == counts


def check_splits(document: dict, result: Result, splits: dict) -> None:
    for split, want in splits.items():
        key = "AP50" if split == "all" else f"AP50_{split}"
        compare(result.metrics, {key: want["map"]})
        for position, category in enumerate(document["categories"]):
            one = want["per_class"][str(category["id"])]
            compare({key: result.per_class[key][position]}, {key: one})


@pytest.mark.parametrize("case", CASES)
def test_vid_mega(case: str) -> None:
    document = load(case)
    result, expected = VidMegaEvaluator().evaluate(document["inputs"]), document["expected"]["vid_mega"]
    if expected is None:
        assert np.isnan(list(result.metrics.values())).all()
        return
    check_splits(document, result, expected["splits"])


@pytest.mark.parametrize("case", CASES)
def test_track(case: str) -> None:
    pytest.importorskip("trackeval")
    document = load(case)
    result, expected = TrackEvaluator().evaluate(document["inputs"]), document["expected"]["mot"]
    compare(result.metrics, expected["class_agnostic"]["combined"])
    for name, want in expected["class_agnostic"]["per_video"].items():
        compare(result.details["per_video"][name], want)
    for position, category in enumerate(document["categories"]):
        want = expected["per_category"][str(category["id"])]
        have = {name: values[position] for name, values in result.per_class.items()}
        if want is None:
            assert np.isnan(list(have.values())).all()
        else:
            compare(have, {name: want[name] for name in have})
