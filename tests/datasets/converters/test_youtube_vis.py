"""YouTube-VIS, OVIS and LV-VIS."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from stdetr.datasets.converters.problems import MalformedInputError


def ytvis() -> dict:
    names = [f"0043f083b5/{number:05d}.jpg" for number in (0, 5, 10)]
    return {
        "info": {"description": "YouTube-VOS"},
        "categories": [{"supercategory": "object", "id": 1, "name": "person"}, {"id": 22, "name": "zebra"}],
        "videos": [{"id": 7, "width": 64, "height": 48, "length": 3, "file_names": names, "license": 1}],
        "annotations": [
            {
                "id": 31,
                "video_id": 7,
                "category_id": 22,
                "iscrowd": 0,
                "segmentations": [None, None, None],
                "bboxes": [[1.0, 2.0, 10.0, 20.0], None, [60.0, 2.0, 10.0, 20.0]],
                "areas": [150, None, 100],
            },
            {
                "id": 32,
                "video_id": 7,
                "category_id": 1,
                "iscrowd": 1,
                "bboxes": [None, [0, 0, 5, 5], None],
                "areas": [None, 25, None],
            },
        ],
    }


@pytest.fixture
def source(tmp_path, write, images) -> Path:
    root = tmp_path / "YouTubeVIS"
    write(root / "train/instances.json", json.dumps(ytvis()))
    hidden = ytvis()
    del hidden["annotations"]
    write(root / "valid/instances.json", json.dumps(hidden))
    for split in ("train", "valid"):
        images(root / split / "JPEGImages", ytvis()["videos"][0]["file_names"], (64, 48))
    return root


def test_tracks_become_boxes(source, run):
    converted = run("youtube_vis", source)
    assert set(converted.counts) == {"train", "val"}
    # An annotation id is the track; null is no box; the last box is cut at x = 64; crowds are ignore regions.
    assert converted.boxes("train") == [
        (0, 22, 31, [1, 2, 10, 20], 0),
        (1, 1, 32, [0, 0, 5, 5], 1),
        (2, 22, 31, [60, 2, 4, 20], 0),
    ]
    document = converted.document("train")
    assert document["videos"] == [{"id": 7, "name": "0043f083b5", "width": 64, "height": 48, "length": 3}]
    assert [a["area"] for a in document["annotations"]] == [150, 25, 80]
    assert document["images"][1]["file_name"] == "videos/train/JPEGImages/0043f083b5/00005.jpg"
    assert document["categories"][0] == {"id": 1, "name": "person", "supercategory": "object"}
    assert converted.counts["val"].images == 3
    assert converted.counts["val"].boxes == 0


@pytest.fixture
def ovis_source(tmp_path, write, images) -> Path:
    document = ytvis()
    document["videos"][0]["file_names"] = [f"2fb5a55b/img_{number:07d}.jpg" for number in (1, 2, 3)]
    write(tmp_path / "OVIS/annotations_train.json", json.dumps(document))
    images(tmp_path / "OVIS/train", document["videos"][0]["file_names"], (64, 48))
    return tmp_path / "OVIS"


def test_ovis_layout(ovis_source, run):
    converted = run("ovis", ovis_source)
    assert converted.document("train")["images"][0]["file_name"] == "videos/train/2fb5a55b/img_0000001.jpg"


@pytest.fixture
def lvvis_source(tmp_path, write, images) -> Path:
    document = ytvis()
    mask = np.zeros((48, 64), dtype=np.uint8, order="F")
    mask[10:20, 30:34] = 1
    encoded = coco_mask.encode(mask)
    encoded["counts"] = encoded["counts"].decode()
    empty = coco_mask.encode(np.zeros((48, 64), dtype=np.uint8, order="F"))
    empty["counts"] = empty["counts"].decode()
    track = {"id": 1, "video_id": 7, "category_id": 22, "segmentations": [encoded, None, empty]}
    document["annotations"] = [track]
    document["videos"][0]["file_names"] = [f"x\\y\\00000\\{number:05d}.jpg" for number in range(3)]
    for split in ("train", "val"):
        write(tmp_path / f"LVVIS/Annotations/{split}_instances.json", json.dumps(document))
        images(tmp_path / f"LVVIS/JPEGImages/{split}/00000", [f"{number:05d}.jpg" for number in range(3)], (64, 48))
    return tmp_path / "LVVIS"


def test_lvvis_is_federated_in_train_only(lvvis_source, run):
    converted = run("lvvis", lvvis_source)
    # Rows 10..19 and columns 30..33 of the mask: x 30, y 10, w 4, h 10.
    assert converted.boxes("train") == [(0, 22, 1, [30, 10, 4, 10], 0)]
    video = converted.document("train")["videos"][0]
    assert video["neg_category_ids"] == []
    assert video["not_exhaustive_category_ids"] == [22]
    assert "not_exhaustive_category_ids" not in converted.document("val")["videos"][0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda d: d["annotations"][0].update(video_id=8),
            r"annotations\[0\] \(line 1\): video_id 8 is not among the videos",
        ),
        (lambda d: d["annotations"][0]["bboxes"].pop(), "areas must be a list as long as bboxes"),
        (lambda d: d["annotations"][1].update(category_id=3), "category_id 3 is not among the categories"),
        (
            lambda d: d["annotations"][0].update(bboxes=[[1, 2, 3]], areas=[1]),
            r"bboxes\[0\] must be a list of length 4, it is \[1, 2, 3\]",
        ),
        (lambda d: d["annotations"][1].update(id=31), "id 31 was already used"),
        (lambda d: d["videos"][0].update(length=4), "length is 4, but there are 3 file_names"),
        (lambda d: d["videos"][0]["file_names"].__setitem__(1, "a/b.jpg"), "frame train/JPEGImages/a/b.jpg is missing"),
        (lambda d: d["videos"][0].pop("width"), "width is missing"),
    ],
)
def test_malformed_records(source, write, run, change, reason):
    document = ytvis()
    change(document)
    write(source / "train/instances.json", json.dumps(document))
    with pytest.raises(MalformedInputError, match=reason):
        run("youtube_vis", source, split=["train"])


def test_a_path_that_climbs_out_is_refused_even_when_lenient(source, write, run):
    for name in ("/etc/passwd", "../../secret.jpg", "a\\..\\..\\b.jpg", "C:\\x.jpg"):
        document = ytvis()
        document["videos"][0]["file_names"][0] = name
        write(source / "train/instances.json", json.dumps(document))
        with pytest.raises(MalformedInputError, match="points outside the source; refused"):
            run("youtube_vis", source, split=["train"], strict=False)


def test_a_split_made_of_videos(source, run):
    converted = run("youtube_vis", source, split=["train"], splits={"mine": ["0043*"]})
    assert converted.boxes("mine") == converted.boxes("all")
    with pytest.raises(ValueError, match=r"splits.mine=\['other'\] matches no frame"):
        run("youtube_vis", source, splits={"mine": ["other"]})
    with pytest.raises(ValueError, match="split=test is not in the source; it has train, val"):
        run("youtube_vis", source, split=["test"])
