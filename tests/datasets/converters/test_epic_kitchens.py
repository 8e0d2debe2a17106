"""EPIC-KITCHENS-55: top, left, height, width."""

from __future__ import annotations

from pathlib import Path

import pytest

from stdetr.datasets.converters.problems import MalformedInputError

HEADER = "noun_class,noun,participant_id,video_id,frame,bounding_boxes\n"
ROWS = (
    '20,bag,P01,P01_01,0000031,"[(5, 40, 12, 8)]"\n'
    '3,knife,P01,P01_01,0000001,"[(1, 2, 3, 4), (10, 20, 30, 40)]"\n'
    "20,bag,P01,P01_01,0000001,[]\n"
    '3,knife,P02,P02_03,0000061,"[(0, 0, 48, 64)]"\n'
)


@pytest.fixture
def source(tmp_path, write, images) -> Path:
    root = tmp_path / "epic"
    write(root / "annotations/EPIC_train_object_labels.csv", HEADER + ROWS)
    write(
        root / "annotations/EPIC_noun_classes.csv",
        "noun_id,class_key,nouns\n0,pan,\"['pan']\"\n3,knife,\"['knife']\"\n20,bag,\"['bag']\"\n",
    )
    images(root / "object_detection_images/train/P01/P01_01", ["0000000001.jpg", "0000000031.jpg"], (64, 48))
    images(root / "object_detection_images/train/P02/P02_03", ["0000000061.jpg"], (64, 48))
    return root


def test_order_of_the_four_numbers(source, run):
    converted = run("epic_kitchens", source)
    # (top 1, left 2, height 3, width 4) is x 2, y 1, w 4, h 3; (10, 20, 30, 40) is x 20, y 10, w 40, h 30.
    assert converted.boxes("train") == [
        (0, 3, -1, [2, 1, 4, 3], 0),
        (0, 3, -1, [20, 10, 40, 30], 0),
        (30, 20, -1, [40, 5, 8, 12], 0),
        (60, 3, -1, [0, 0, 64, 48], 0),
    ]
    document = converted.document("train")
    assert [(v["name"], v["length"]) for v in document["videos"]] == [("P01_01", 31), ("P02_03", 61)]
    assert document["images"][0]["file_name"] == "videos/object_detection_images/train/P01/P01_01/0000000001.jpg"
    assert [c["id"] for c in document["categories"]] == [0, 3, 20]
    assert converted.counts["train"].tracks == 0


def test_chosen_nouns(source, run):
    converted = run("epic_kitchens", source, classes=["bag"])
    # The frame on which no bag was found stays, without a box.
    assert [i["frame_id"] for i in converted.document("train")["images"]] == [0, 30]
    assert converted.counts["train"].boxes == 1
    with pytest.raises(ValueError, match="classes has 'bug'"):
        run("epic_kitchens", source, classes=["bug"])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('99,x,P01,P01_01,1,"[(1,2,3,4)]"', r"labels.csv:2: noun_class 99 is not in annotations/EPIC_noun_classes.csv"),
        ('3,x,P01,P01_01,1,"[(1,2,3)]"', "not a list of"),
        ('3,x,P01,P01_01,1,"__import__(1)"', "not a list of"),
        ('3,x,P01,P01_01,0,"[(1,2,3,4)]"', "frame is 0, frames count from 1"),
        ("3,x,P01,P01_01", "4 cells, the header has 6"),
        (
            '3,x,P01,P01_01,7,"[(1,2,3,4)]"',
            r"frame is missing; looked for object_detection_images/train/P01/P01_01/0000000007.jpg",
        ),
        ('3,x,../..,P01_01,1,"[(1,2,3,4)]"', "points outside the source; refused"),
    ],
)
def test_malformed_rows(source, write, run, row, reason):
    write(source / "annotations/EPIC_train_object_labels.csv", HEADER + row + "\n")
    with pytest.raises(MalformedInputError, match=reason):
        run("epic_kitchens", source)


def test_sizes_that_nobody_looked_at_are_reported(source, run):
    converted = run("epic_kitchens", source, check_media=False)
    assert {(v["width"], v["height"]) for v in converted.document("train")["videos"]} == {(1920, 1080)}
    assert any("taken as 1920x1080" in note for note in converted.problems.notes)
    sized = run("epic_kitchens", source, output=source.parent / "sized", check_media=False, frame_size=(1280, 720))
    assert not any("taken as" in note for note in sized.problems.notes)
