"""ImageNet VID and DET in the ILSVRC2015 layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from stdetr.datasets.converters.imagenet_vid import CLASSES
from stdetr.datasets.converters.problems import MalformedInputError

VIDEO = "train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000"
VAL = "val/ILSVRC2015_val_00000000"
STILL = "train/ILSVRC2014_train_0006/ILSVRC2014_train_00060027"


def vid_xml(objects: str, size: tuple[int, int] = (64, 48)) -> str:
    return (
        "<annotation>\n<folder>f</folder><filename>n</filename>\n<source><database>ILSVRC_2015</database></source>\n"
        f"<size><width>{size[0]}</width><height>{size[1]}</height></size>\n{objects}</annotation>\n"
    )


def vid_object(track: int | None, name: str, box: tuple[int, int, int, int], occluded: int = 0) -> str:
    left, top, right, bottom = box
    identity = "" if track is None else f"<trackid>{track}</trackid>"
    # The real files write xmax before xmin.
    return (
        f"<object>{identity}<name>{name}</name><bndbox><xmax>{right}</xmax><xmin>{left}</xmin><ymax>{bottom}</ymax>"
        f"<ymin>{top}</ymin></bndbox><occluded>{occluded}</occluded><generated>0</generated></object>\n"
    )


@pytest.fixture
def ilsvrc(tmp_path, write, images) -> Path:
    root = tmp_path / "disk" / "ILSVRC2015"
    for index in range(4):
        objects = vid_object(0, "n02691156", (5 + index, 6, 25 + index, 16), occluded=index % 2)
        if index == 2:
            objects = vid_object(3, "n02958343", (1, 1, 64, 49)) + objects
        if index == 3:
            objects = ""
        write(root / f"Annotations/VID/{VIDEO}/{index:06d}.xml", vid_xml(objects))
    images(root / f"Data/VID/{VIDEO}", [f"{index:06d}.JPEG" for index in range(4)], (64, 48))
    for index in range(2):
        write(root / f"Annotations/VID/{VAL}/{index:06d}.xml", vid_xml(vid_object(7, "n02391049", (0, 0, 9, 9))))
    images(root / f"Data/VID/{VAL}", ["000000.JPEG", "000001.JPEG"], (64, 48))
    stills = vid_object(None, "n02084071", (2, 3, 12, 13)) + vid_object(None, "n07739125", (0, 0, 5, 5))
    write(root / f"Annotations/DET/{STILL}.xml", vid_xml(stills, (30, 20)))
    images(root / f"Data/DET/{STILL}", [], (30, 20))
    images((root / f"Data/DET/{STILL}").parent, ["ILSVRC2014_train_00060027.JPEG"], (30, 20))
    write(root / "ImageSets/VID_train_15frames.txt", f"{VIDEO} 1 0 4\n{VIDEO} 2 2 4\n")
    write(root / "ImageSets/VID_val_videos.txt", f"{VAL} 1 0 2\n")
    write(root / "ImageSets/DET_train_30classes.txt", f"{STILL} 1\n")
    return root


def test_lists_are_used_as_they_are(ilsvrc, run):
    converted = run("imagenet_vid", ilsvrc)
    train = converted.document("train")
    assert [(v["name"], v["length"]) for v in train["videos"]] == [(VIDEO, 4), (f"DET/{STILL}", 1)]
    assert train["videos"][0]["vid_train_frames"] == [0, 2]
    marked = [(i["frame_id"], i["is_vid_train_frame"]) for i in train["images"]]
    assert marked == [(0, True), (1, False), (2, True), (3, False), (0, True)]
    assert train["images"][2]["file_name"] == f"videos/Data/VID/{VIDEO}/000002.JPEG"
    # w = xmax - xmin, no +1; the car sticks out at the bottom (49 > 48) and is cut there; file order is kept.
    assert converted.boxes("train") == [
        (0, 1, 0, [5, 6, 20, 10], 0),
        (1, 1, 0, [6, 6, 20, 10], 0),
        (2, 7, 3, [1, 1, 63, 47], 0),
        (2, 1, 0, [7, 6, 20, 10], 0),
        (0, 9, 1, [2, 3, 10, 10], 0),
    ]
    assert [a["occluded"] for a in train["annotations"]] == [0, 1, 0, 0, 0]
    assert converted.problems.notes == {"objects left out: class outside VID's 30": 1}
    assert converted.boxes("val") == [(0, 30, 7, [0, 0, 9, 9], 0), (1, 30, 7, [0, 0, 9, 9], 0)]
    assert len(train["categories"]) == 30
    assert train["categories"][29] == {"id": 30, "name": "zebra", "encode_name": "n02391049"}
    assert len({wordnet for wordnet, _ in CLASSES}) == 30


def test_listed_frames_only_and_without_stills(ilsvrc, run):
    converted = run("imagenet_vid", ilsvrc.parent, frames="listed", det=False, split=["train"])
    assert [i["frame_id"] for i in converted.document("train")["images"]] == [0, 2]
    assert set(converted.counts) == {"train"}
    assert converted.counts["train"].videos == 1


def test_without_lists_the_folders_are_walked(ilsvrc, run):
    for path in (ilsvrc / "ImageSets").iterdir():
        path.unlink()
    converted = run("imagenet_vid", ilsvrc)
    assert [v["name"] for v in converted.document("train")["videos"]] == [VIDEO]
    assert [v["name"] for v in converted.document("val")["videos"]] == [VAL]
    assert "is_vid_train_frame" not in converted.document("train")["images"][0]
    assert any("list missing (DET_train_30classes.txt)" in note for note in converted.problems.notes)
    with pytest.raises(FileNotFoundError, match=r"frames=listed needs VID_train_15frames.txt"):
        run("imagenet_vid", ilsvrc, frames="listed")


def test_malformed_files_are_named(ilsvrc, write, run):
    broken = ilsvrc / f"Annotations/VID/{VIDEO}/000001.xml"
    write(broken, vid_xml(vid_object(0, "n02691156", (5, 6, 25, 16)).replace("<xmin>5</xmin>", "<xmin>five</xmin>")))
    with pytest.raises(MalformedInputError, match=r"000001.xml:5: bndbox/xmin is 'five', not a number"):
        run("imagenet_vid", ilsvrc)
    write(broken, "<annotation><size>")
    with pytest.raises(MalformedInputError, match=r"000001.xml:1: no element found"):
        run("imagenet_vid", ilsvrc)
    write(broken, '<!DOCTYPE a [<!ENTITY b "c">]><annotation/>')
    with pytest.raises(MalformedInputError, match="declares a document type or entities; refused"):
        run("imagenet_vid", ilsvrc)
    converted = run("imagenet_vid", ilsvrc, strict=False)
    assert [i["frame_id"] for i in converted.document("train")["images"]] == [0, 2, 3, 0]
    broken.unlink()
    with pytest.raises(MalformedInputError, match=r"000001.xml: annotation file is missing"):
        run("imagenet_vid", ilsvrc)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"{VIDEO} 1 4 4", r"VID_train_15frames.txt:1: frame 4 is outside 0..3"),
        (f"{VIDEO} 1 4", "is not 'path id frame length'"),
        ("../../etc 1 0 4", "points outside the source; refused"),
    ],
)
def test_malformed_lists(ilsvrc, write, run, line, reason):
    write(ilsvrc / "ImageSets/VID_train_15frames.txt", line + "\n")
    with pytest.raises(MalformedInputError, match=reason):
        run("imagenet_vid", ilsvrc)
