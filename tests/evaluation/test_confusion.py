"""The class of the best detection on each annotated box, counted by hand."""

from __future__ import annotations

from typing import Any

from stdetr.evaluation.confusion import confusion
from stdetr.evaluation.evaluate import evaluate, prepare
from stdetr.evaluation.report import tables


def test_counts_by_hand(new_scene: Any) -> None:
    scene = new_scene([4], classes=2)
    for image in (1, 2, 3):
        scene.truth(image, [10, 10, 20, 20], 1)
    scene.truth(4, [10, 10, 20, 20], 2, instance=3)
    scene.truth(4, [100, 100, 20, 20], 2, instance=4, iscrowd=1)
    scene.found(1, [10, 10, 20, 20], 0.3, 1)
    scene.found(1, [12, 10, 20, 20], 0.6, 2)  # more confident, and near enough (IoU 360 / 440)
    scene.found(1, [20, 10, 20, 20], 0.9, 1)  # too far: IoU 1 / 3
    scene.found(2, [10, 10, 20, 20], 0.5, 1)
    scene.found(2, [10, 10, 20, 20], 0.5, 2)  # equal: the first counts
    scene.found(4, [100, 100, 20, 20], 0.9, 1)  # on a crowd
    found = confusion(prepare(scene.document, scene.predictions))
    assert found.tolist() == [[1, 1, 1], [0, 0, 1]]
    scored = evaluate(scene.document, scene.predictions, evaluators=["coco"], causal=None, seeds=None)
    table = tables(scored)["confusion"]
    assert table.columns == ["class", "boxes", "class1", "class2", "none"]
    assert table.rows == [["class1", 3, 1 / 3, 1 / 3, 1 / 3], ["class2", 1, 0.0, 0.0, 1.0]]


def test_nothing_found_and_one_class(new_scene: Any) -> None:
    scene = new_scene([1], classes=2)
    assert confusion(prepare(scene.document, [])).tolist() == [[0, 0, 0], [0, 0, 0]]
    scene.truth(1, [10, 10, 20, 20], 2)
    assert confusion(prepare(scene.document, [])).tolist() == [[0, 0, 0], [0, 0, 1]]
    one = new_scene([1])
    one.truth(1, [10, 10, 20, 20])
    assert "confusion" not in tables(evaluate(one.document, [], evaluators=["coco"], causal=None, seeds=None))
