"""Plain COCO: stills as videos of one frame."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stdetr.datasets.converters.problems import MalformedInputError


def coco() -> dict:
    return {
        "images": [
            {"id": 139, "file_name": "000000000139.jpg", "width": 64, "height": 48},
            {"id": 42, "file_name": "000000000042.jpg", "width": 30, "height": 20},
        ],
        "annotations": [
            {"id": 9, "image_id": 139, "category_id": 18, "bbox": [1.5, 2, 3, 4], "area": 8.25, "iscrowd": 0},
            {"id": 3, "image_id": 139, "category_id": 1, "bbox": [0, 0, 64, 48], "area": 99, "iscrowd": 1},
            {"id": 4, "image_id": 42, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 8, "iscrowd": 0},
        ],
        "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 1, "name": "person"}],
    }


@pytest.fixture
def source(tmp_path, write, images) -> Path:
    root = tmp_path / "coco"
    write(root / "annotations/instances_val2017.json", json.dumps(coco()))
    images(root / "val2017", ["000000000139.jpg"], (64, 48))
    images(root / "val2017", ["000000000042.jpg"], (30, 20))
    return root


def test_ids_are_kept(source, run):
    converted = run("coco", source)
    document = converted.document("val2017")
    assert [(v["id"], v["length"], v["width"]) for v in document["videos"]] == [(42, 1, 30), (139, 1, 64)]
    assert [i["id"] for i in document["images"]] == [42, 139]
    kept = [
        (a["id"], a["image_id"], a["category_id"], a["bbox"], a["area"], a["iscrowd"]) for a in document["annotations"]
    ]
    assert kept == [
        (4, 42, 1, [1, 2, 3, 4], 8, 0),
        (3, 139, 1, [0, 0, 64, 48], 99, 1),
        (9, 139, 18, [1.5, 2, 3, 4], 8.25, 0),
    ]
    assert document["images"][0]["file_name"] == "videos/val2017/000000000042.jpg"
    assert [c["id"] for c in document["categories"]] == [1, 18]


def test_an_exported_file_beside_its_images(tmp_path, write, images, run):
    write(tmp_path / "mine/train/_annotations.coco.json", json.dumps(coco()))
    images(tmp_path / "mine/train", ["000000000139.jpg"], (64, 48))
    images(tmp_path / "mine/train", ["000000000042.jpg"], (30, 20))
    assert run("coco", tmp_path / "mine").counts["train"].boxes == 2
    only = run("coco", tmp_path / "mine/train/_annotations.coco.json", output=tmp_path / "single")
    assert only.counts["all"].boxes == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda d: d["annotations"][0].update(image_id=7),
            r"annotations\[0\] \(line 1\): image_id 7 is not among the images",
        ),
        (lambda d: d["annotations"][0].update(category_id=7), "category_id 7 is not among the categories"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 0, 4]), "has no area"),
        (lambda d: d["annotations"][0].update(id=3), r"annotations\[1\] \(line 1\): id 3 was already used"),
        (lambda d: d["annotations"].append([]), "must be an object, it is list"),
        (lambda d: d.update(categories=[]), "no categories"),
        (lambda d: d["categories"][0].update(name="person"), "category name 'person' was already used"),
        (lambda d: d["images"][0].update(file_name="x.jpg"), "is missing"),
    ],
)
def test_malformed_records(source, write, run, change, reason):
    document = coco()
    change(document)
    write(source / "annotations/instances_val2017.json", json.dumps(document))
    with pytest.raises(MalformedInputError, match=reason):
        run("coco", source)


def test_broken_json_is_named_with_its_line(source, write, run):
    text = json.dumps(coco(), indent=1).replace('"area": 8.25', '"area": oops')
    line = next(number for number, row in enumerate(text.splitlines(), start=1) if "oops" in row)
    write(source / "annotations/instances_val2017.json", text)
    with pytest.raises(
        MalformedInputError,
        match=rf"annotations/instances_val2017.json:{line}: not JSON: invalid character near .*oops",
    ):
        run("coco", source)
    for text, reason in (
        ("", "the file is empty"),
        ("[1]", "a JSON object was expected"),
        ("{", "json:1: not JSON: the file ends"),
    ):
        write(source / "annotations/instances_val2017.json", text)
        with pytest.raises(MalformedInputError, match=reason):
            run("coco", source)
