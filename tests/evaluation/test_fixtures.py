"""The expected numbers of the peers' own code, case by case, to 1e-6."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from stdetr.evaluation.coco import CocoEvaluator
from stdetr.evaluation.evaluate import prepare
from stdetr.evaluation.tube import TubeEvaluator

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
@pytest.mark.parametrize("backend", ["pycocotools", "faster-coco-eval", "columnar"])
def test_coco(case: str, backend: str) -> None:
    if backend == "faster-coco-eval":
        pytest.importorskip("faster_coco_eval")
    document = load(case)
    result = CocoEvaluator(backend).evaluate(document["inputs"])
    assert result.details["backend"] == backend
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
