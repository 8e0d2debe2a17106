"""TAO: sparse frames, merged classes, federated annotation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stdetr.datasets.converters.problems import MalformedInputError

NAME = "train/YFCC100M/v_f69ebe5b731d3e87c1a3992ee39c3b7e"


def tao() -> dict:
    return {
        "videos": [
            {
                "id": 4,
                "name": NAME,
                "width": 64,
                "height": 48,
                "neg_category_ids": [95, 5],
                "not_exhaustive_category_ids": [41],
                "metadata": {"dataset": "YFCC100M"},
            },
            {"id": 5, "name": "train/empty", "width": 64, "height": 48},
        ],
        # Images out of order on purpose: records come together by video and frame_index.
        "images": [
            {
                "id": 21,
                "video_id": 4,
                "file_name": f"{NAME}/frame0031.jpg",
                "width": 64,
                "height": 48,
                "frame_index": 30,
            },
            {
                "id": 20,
                "video_id": 4,
                "file_name": f"{NAME}/frame0001.jpg",
                "width": 64,
                "height": 48,
                "frame_index": 0,
            },
        ],
        "tracks": [{"id": 6, "category_id": 95, "video_id": 4}, {"id": 8, "category_id": 41, "video_id": 4}],
        "annotations": [
            {"id": 1, "image_id": 21, "track_id": 6, "category_id": 95, "bbox": [1, 2, 3, 4], "area": 12},
            {"id": 2, "image_id": 20, "track_id": 6, "category_id": 96, "bbox": [-2, 2, 6, 4], "area": 24},
            {"id": 3, "image_id": 20, "track_id": 8, "category_id": 41, "bbox": [5, 5, 5, 5], "area": 25, "iscrowd": 0},
        ],
        "categories": [
            {"id": 41, "name": "boat", "synset": "boat.n.01"},
            {"id": 95, "name": "baby", "synset": "baby.n.01", "merged": [{"id": 96, "name": "infant"}]},
            {"id": 96, "name": "infant", "synset": "unknown"},
            {"id": 5, "name": "dog"},
        ],
    }


@pytest.fixture
def source(tmp_path, write, images) -> Path:
    root = tmp_path / "TAO"
    write(root / "annotations/train.json", json.dumps(tao()))
    images(root / "frames" / NAME, [f"frame{number:04d}.jpg" for number in range(1, 36)], (64, 48))
    return root


def test_ids_frames_and_federation(source, run):
    converted = run("tao", source)
    document = converted.document("train")
    assert [(i["id"], i["frame_id"]) for i in document["images"]] == [(20, 0), (21, 30)]
    assert document["videos"] == [
        {
            "id": 4,
            "name": NAME,
            "width": 64,
            "height": 48,
            "length": 35,
            "neg_category_ids": [5, 95],
            "not_exhaustive_category_ids": [41],
        }
    ]
    # Class 96 is merged into 95; the box at x = -2 is cut, and its area with it.
    assert [(a["id"], a["category_id"], a["instance_id"], a["bbox"], a["area"]) for a in document["annotations"]] == [
        (2, 95, 6, [0, 2, 4, 4], 16),
        (3, 41, 8, [5, 5, 5, 5], 25),
        (1, 95, 6, [1, 2, 3, 4], 12),
    ]
    assert [c["id"] for c in document["categories"]] == [5, 41, 95]
    assert converted.problems.notes == {"videos left out: no annotated frame": 1}


def test_without_the_frames(source, run):
    converted = run("tao", source, check_media=False)
    assert converted.document("train")["videos"][0]["length"] == 31


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda d: d["annotations"][2].update(track_id=9),
            r"annotations\[2\] \(line 1\): track_id 9 is not among the tracks",
        ),
        (lambda d: d["annotations"][2].update(category_id=5), "category_id is 5, but its track 8 has 41"),
        (lambda d: d["annotations"][2].update(image_id=9), "image_id 9 is not among the images"),
        (lambda d: d["images"][0].update(video_id=9), "video_id 9 is not among the videos"),
        (lambda d: d["images"][0].update(frame_index=-1), "frame_index must be a whole number >= 0, it is -1"),
        (lambda d: d["images"][0].update(file_name="../../x.jpg"), "points outside the source; refused"),
        (lambda d: d.pop("images"), "no section 'images'"),
        (
            lambda d: d["videos"][0].update(neg_category_ids=["a"]),
            r"neg_category_ids\[0\] must be a whole number, it is 'a'",
        ),
    ],
)
def test_malformed_records(source, write, run, change, reason):
    document = tao()
    change(document)
    write(source / "annotations/train.json", json.dumps(document))
    with pytest.raises(MalformedInputError, match=reason):
        run("tao", source)


def test_no_annotation_file(tmp_path, run):
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no TAO annotation file: expected annotations/train.json"):
        run("tao", tmp_path / "none")
