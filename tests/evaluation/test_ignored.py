"""Ignore regions in the ImageNet VID evaluators, and federated annotation, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stdetr.datasets.converters.convert import convert
from stdetr.evaluation import evaluate
from stdetr.evaluation.coco import CocoEvaluator
from stdetr.evaluation.evaluate import prepare
from stdetr.evaluation.offline import run
from stdetr.evaluation.tube import TubeEvaluator
from stdetr.evaluation.vid import VidEvaluator
from stdetr.evaluation.vid_mega import VidMegaEvaluator

VID = [VidEvaluator(), VidMegaEvaluator()]
PETS = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "pets09-s2l1"


def with_region(new_scene, stray: list[float], category: int = 1, **region):
    """One object in each of two frames, found at 0.7; a region x 100..180, y 100..180 in frame 1; a stray at 0.9."""
    scene = new_scene([2], classes=2)
    for image in (1, 2):
        scene.truth(image, [20, 20, 40, 40], category=category)
        scene.found(image, [20, 20, 40, 40], 0.7, category=category)
    scene.truth(1, [100, 100, 80, 80], instance=None, **({"iscrowd": 1, "ignore": 1} | region))
    scene.found(1, stray, 0.9, category=category)
    return scene


@pytest.mark.parametrize("evaluator", VID, ids=lambda e: e.name)
@pytest.mark.parametrize(
    ("stray", "category", "ap"),
    [
        ([110, 110, 30, 30], 1, 1.0),  # wholly inside
        ([91, 100, 20, 20], 1, 1.0),  # 11 of its 20 columns inside
        ([90, 100, 20, 20], 1, 2 / 3),  # exactly half: false; precision 1/2 and 2/3, whose envelope is 2/3
        ([110, 110, 30, 30], 2, 2 / 3),  # the region is of class 1 only
    ],
)
def test_a_stray_in_an_ignore_region(new_scene, evaluator, stray, category: int, ap: float) -> None:
    result = evaluator.evaluate(prepare(*_parts(with_region(new_scene, stray, category))))
    assert result.metrics["AP50"] == pytest.approx(ap)
    assert result.metrics["AP50_slow"] == pytest.approx(ap)
    assert np.isnan(result.metrics["AP50_fast"])
    assert "extension of the public rules: the 1 ignore regions" in result.note


def _parts(scene):
    return scene.document, scene.predictions


@pytest.mark.parametrize("evaluator", VID, ids=lambda e: e.name)
def test_a_region_on_another_frame_excuses_nothing_and_objects_inside_count(new_scene, evaluator) -> None:
    scene = with_region(new_scene, [110, 110, 30, 30])
    scene.predictions[-1]["image_id"] = 2
    assert evaluator.evaluate(prepare(*_parts(scene))).metrics["AP50"] == pytest.approx(2 / 3)
    # An object inside the region is an object: found it is right, not found it is missed.
    scene = with_region(new_scene, [110, 110, 30, 30])
    scene.truth(1, [110, 110, 30, 30], instance=2)
    assert evaluator.evaluate(prepare(*_parts(scene))).metrics["AP50"] == pytest.approx(1)
    scene.predictions.pop()
    assert evaluator.evaluate(prepare(*_parts(scene))).metrics["AP50"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("evaluator", VID, ids=lambda e: e.name)
def test_crowds_that_are_not_regions_stay_undefined(new_scene, evaluator) -> None:
    result = evaluator.evaluate(prepare(*_parts(with_region(new_scene, [110, 110, 30, 30], ignore=0))))
    assert np.isnan(result.metrics["AP50"])
    assert "have no crowd boxes, and the annotations hold 1" in result.undefined
    # Regions alone are not ground truth either.
    scene = new_scene([1])
    scene.truth(1, [20, 20, 40, 40], iscrowd=1, ignore=1)
    assert evaluator.evaluate(prepare(*_parts(scene))).undefined == "the annotations have no box"


@pytest.mark.parametrize("seed", range(3))
def test_a_far_region_changes_nothing(make_random_scene, seed: int) -> None:
    scene = make_random_scene(seed)
    plain = [e.evaluate(prepare(*_parts(scene))).metrics for e in VID]
    for image in scene.images:
        scene.truth(image["id"], [5000, 5000, 50, 50], instance=None, ignore=1)
    for evaluator, metrics in zip(VID, plain, strict=True):
        np.testing.assert_equal(evaluator.evaluate(prepare(*_parts(scene))).metrics, metrics)


def test_pets_has_vid_metrics(tmp_path: Path) -> None:
    if not PETS.is_dir():
        pytest.skip("the PETS09-S2L1 clip is not here")
    convert("mot", PETS, tmp_path / "pets")
    document = json.loads((tmp_path / "pets/all.json").read_text())
    # Every annotation as a prediction: the objects are found, and the strays lie exactly on the 174 ignore regions.
    found = [
        {"image_id": a["image_id"], "category_id": 1, "bbox": a["bbox"], "score": 0.5 if a.get("ignore") else 0.4}
        for a in document["annotations"]
    ]
    assert sum(record["score"] == 0.5 for record in found) == 174
    values = evaluate(document, found, evaluators=("vid", "vid_mega", "motion", "coco"), causal=False, seeds=1).flat()
    for key in ("vid/AP50", "vid_mega/AP50", "vid/AP50_slow", "coco/AP50"):
        assert values[key] == pytest.approx(1), key


def federated(new_scene):
    """Three classes, two videos of one frame.

    Class 1: found in both videos (0.5, 0.6), and a stray (0.95) in video 2, where it is not exhaustive.
    Class 2: found in video 2 (0.8), and a stray (0.9) in video 1, where it is known to be absent.
    Class 3: found in video 2 (0.6), and a stray (0.9) in video 1, where it was not annotated.
    """
    scene = new_scene([1, 1], classes=3)
    scene.videos[0] |= {"neg_category_ids": [2], "not_exhaustive_category_ids": []}
    scene.videos[1] |= {"neg_category_ids": [], "not_exhaustive_category_ids": [1]}
    for image, box, score, category in (
        (1, [20, 20, 40, 40], 0.5, 1),
        (2, [20, 20, 40, 40], 0.6, 1),
        (2, [80, 20, 40, 40], 0.8, 2),
        (2, [20, 80, 40, 40], 0.6, 3),
    ):
        instance = len(scene.annotations) + 1
        scene.truth(image, box, category, instance)
        scene.found(image, box, score, category, track=instance)
    for image, score, category, track in ((2, 0.95, 1, 11), (1, 0.9, 2, 12), (1, 0.9, 3, 13)):
        scene.found(image, [140, 140, 40, 40], score, category, track=track)
    return scene


FEDERATED = [*VID, CocoEvaluator(), TubeEvaluator()]


@pytest.mark.parametrize("evaluator", FEDERATED, ids=lambda e: e.name)
def test_federated_rule(new_scene, evaluator) -> None:
    scene = federated(new_scene)
    result = evaluator.evaluate(prepare(*_parts(scene)))
    np.testing.assert_allclose(result.per_class["AP50"], [1, 1 / 2, 1], atol=1e-9)
    assert result.metrics["AP50"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert "rule of LVIS and TAO" in result.note
    # Fully annotated, every stray is false: precision 2/3 over class 1, 1/2 over the others.
    for video in scene.videos:
        del video["neg_category_ids"], video["not_exhaustive_category_ids"]
    result = evaluator.evaluate(prepare(*_parts(scene)))
    np.testing.assert_allclose(result.per_class["AP50"], [2 / 3, 1 / 2, 1 / 2], atol=1e-9)
    assert result.note == ""


def test_one_video_without_the_keys_is_annotated_in_full(new_scene) -> None:
    scene = federated(new_scene)
    del scene.videos[0]["neg_category_ids"], scene.videos[0]["not_exhaustive_category_ids"]
    result = CocoEvaluator().evaluate(prepare(*_parts(scene)))
    np.testing.assert_allclose(result.per_class["AP50"], [1, 1 / 2, 1 / 2], atol=1e-9)


def test_reports_state_it_and_mistakes_are_named(new_scene, tmp_path: Path, capsys) -> None:
    scene = federated(new_scene)
    (tmp_path / "annotations.json").write_text(json.dumps(scene.document))
    (tmp_path / "predictions.json").write_text(json.dumps(scene.predictions))
    cfg = {name: str(tmp_path / f"{name}.json") for name in ("annotations", "predictions")}
    values = run(cfg | {"output_dir": str(tmp_path)})
    assert values["tube/AP50"] == values["coco/AP50"] == pytest.approx(2.5 / 3)
    printed, page = capsys.readouterr().out, (tmp_path / "eval/report.md").read_text()
    for text in (printed, page):
        assert "- tube: federated annotation, by the rule of LVIS and TAO" in text
        assert "- track: federated annotation" in text
    notes = {e["name"]: e["note"] for e in json.loads((tmp_path / "eval/report.json").read_text())["evaluators"]}
    assert notes["coco"].startswith("federated annotation")
    scene.videos[0]["neg_category_ids"] = [7]
    with pytest.raises(ValueError, match=r"neg_category_ids has 7, which is not among the categories"):
        prepare(*_parts(scene))
    scene.videos[0]["neg_category_ids"] = "2"
    with pytest.raises(ValueError, match=r"videos\[0\] \(id 1\): neg_category_ids must be a list or null, it is '2'"):
        prepare(*_parts(scene))
