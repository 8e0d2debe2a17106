"""VisDrone-VID text files."""

from __future__ import annotations

from pathlib import Path

import pytest

from stdetr.datasets.converters.problems import MalformedInputError

ROWS = """1,0,5,6,10,12,1,4,0,1
1,3,20,6,10,12,0,1,0,2
2,0,7,6,10,12,1,4,1,0
2,9,0,0,30,20,0,0,0,0
2,8,40,20,5,5,1,11,0,0
"""


@pytest.fixture
def source(tmp_path, write, images) -> Path:
    root = tmp_path / "VisDrone"
    for split in ("train", "val"):
        folder = root / f"VisDrone2019-VID-{split}"
        write(folder / "annotations/uav0000013.txt", ROWS)
        images(folder / "sequences/uav0000013", ["0000001.jpg", "0000002.jpg"], (64, 48))
    return root


def test_ignored_regions_and_score_zero(source, run):
    converted = run("visdrone_vid", source)
    assert set(converted.counts) == {"train", "val"}
    boxes = converted.boxes("train")
    assert [box for box in boxes if not box[-1]] == [(0, 4, 0, [5, 6, 10, 12], 0), (1, 4, 0, [7, 6, 10, 12], 0)]
    ignored = [box for box in boxes if box[-1]]
    # Score 0 is ignored for its own class; categories 0 and 11 for all ten.
    assert ignored[0] == (0, 1, 3, [20, 6, 10, 12], 1)
    assert len(ignored) == 1 + 2 * 10
    count = converted.counts["train"]
    assert (count.boxes, count.ignore_regions, count.tracks) == (2, 3, 1)
    assert converted.document("train")["annotations"][0]["occlusion"] == 1


def test_one_split_folder_as_the_source(source, run):
    assert set(run("visdrone_vid", source / "VisDrone2019-VID-val").counts) == {"val"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,0,5,6,10,12,1,4,0", r"uav0000013.txt:1: 9 columns, at least 10 are needed"),
        ("1,0,5,6,10,12,1,12,0,0", r"object_category \(column 8\) is 12, outside 0..11"),
        ("1,0,5,6,10,12,2,4,0,0", r"score \(column 7\) is 2; ground truth has 0 or 1"),
        ("3,0,5,6,10,12,1,4,0,0", "frame 3 is outside 1..2"),
        ("1,0,5,6,0,12,1,4,0,0", "has no area"),
    ],
)
def test_malformed_rows(source, write, run, row, reason):
    write(source / "VisDrone2019-VID-train/annotations/uav0000013.txt", row + "\n1,1,5,6,10,12,1,4,0,0\n")
    with pytest.raises(MalformedInputError, match=reason):
        run("visdrone_vid", source)
    assert run("visdrone_vid", source, strict=False).counts["train"].boxes == 1
