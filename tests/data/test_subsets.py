"""Annotation files of some windows or some classes, with their boxes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stdetr.data.subsets import keep_classes, thin, window_places


def test_places_by_hand() -> None:
    # 20 frames in two halves: the middle 4 of 0-9 and of 10-19.
    assert window_places(20, 2, 4) == [3, 4, 5, 6, 13, 14, 15, 16]
    assert window_places(9, 1, 3) == [3, 4, 5]
    assert window_places(8, 2, 4) == list(range(8))
    assert window_places(3, 2, 4) == [0, 1, 2]
    assert window_places(0, 2, 4) == []
    for count in range(60, 400, 7):
        places = window_places(count, 12, 5)
        assert len(set(places)) == 60, "windows do not overlap"
        assert places == sorted(places)
        assert 0 <= places[0] < places[-1] < count


def test_a_thinned_file(tmp_path: Path) -> None:
    images = [
        {"id": 100 * v + f, "video_id": v, "frame_id": f} for v in (1, 2) for f in reversed(range(10 if v == 1 else 2))
    ]
    boxes = [{"id": n, "image_id": image["id"], "bbox": [0, 0, 1, 1]} for n, image in enumerate(images)]
    source = tmp_path / "val.json"
    document = {"videos": [{"id": 1}, {"id": 2}], "categories": [], "images": images, "annotations": boxes}
    source.write_text(json.dumps(document))
    thinned = json.loads(thin(source, tmp_path / "thin" / "val.json", 1, 2).read_text())
    assert [image["id"] for image in thinned["images"]] == [104, 105, 200, 201]
    assert sorted(box["image_id"] for box in thinned["annotations"]) == [104, 105, 200, 201]
    assert thinned["videos"] == document["videos"]
    with pytest.raises(ValueError, match=r"evaluation.thin=\[0,2\]"):
        thin(source, tmp_path / "x.json", 0, 2)


def test_a_file_of_some_classes(tmp_path: Path) -> None:
    source = tmp_path / "val.json"
    document = {
        "videos": [], "categories": [{"id": 3, "name": "a"}, {"id": 8, "name": "b"}], "images": [{"id": 1}],
        "annotations": [{"id": n, "image_id": 1, "category_id": c} for n, c in enumerate((3, 8, 3))],
    }  # fmt: skip
    source.write_text(json.dumps(document))
    kept = json.loads(keep_classes(source, tmp_path / "b.json", {8}).read_text())
    assert kept == {**document, "categories": [{"id": 8, "name": "b"}], "annotations": document["annotations"][1:2]}
