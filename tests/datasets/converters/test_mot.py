"""MOTChallenge text: one video with gt.txt, and sequences with image folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from stdetr.datasets.converters.problems import MalformedInputError

SHARED = Path(__file__).resolve().parents[3] / ".." / "shared"

# Frame 3 of 4 is empty; track 2 leaves at the right border; conf = 0 marks an ignore region.
SINGLE = """1,1,10,5,20,30,1,-1,-1,-1
1,2,50,8,20.5,10,1,-1,-1,-1
2,1,12,5,20,30,1,-1,-1,-1
4,7,0,0,64,48,0,-1,-1,-1
4,2,60,8,20,10,1,-1,-1,-1
"""


@pytest.fixture
def mot_source(tmp_path, write, video) -> Path:
    root = tmp_path / "source"
    video(root / "street.avi", 4, (64, 48))
    write(root / "gt.txt", SINGLE)
    return root


def test_one_video_with_its_ground_truth(mot_source, run):
    converted = run("mot", mot_source)
    assert converted.boxes() == [
        (0, 1, 1, [10, 5, 20, 30], 0),
        (0, 1, 2, [50, 8, 14, 10], 0),
        (1, 1, 1, [12, 5, 20, 30], 0),
        (3, 1, 7, [0, 0, 64, 48], 1),
        (3, 1, 2, [60, 8, 4, 10], 0),
    ]
    document = converted.document()
    assert document["videos"] == [
        {"id": 1, "name": "street", "width": 64, "height": 48, "length": 4, "file_name": "videos/street.avi"}
    ]
    assert [image["frame_id"] for image in document["images"]] == [0, 1, 2, 3]
    assert document["categories"] == [{"id": 1, "name": "person"}]
    assert [a["area"] for a in document["annotations"]] == [600, 140, 600, 3072, 40]
    count = converted.counts["all"]
    assert (count.boxes, count.ignore_regions, count.tracks, count.clipped) == (4, 1, 2, 2)


def test_frame_ranges_keep_decoded_frame_numbers(mot_source, run):
    converted = run("mot", mot_source, splits={"train": [1, 2], "val": [4, 4], "test": None}, classes=["walker"])
    assert sorted(path.name for path in converted.folder.glob("*.json")) == [
        "all.json",
        "conversion.json",
        "train.json",
        "val.json",
    ]
    assert [image["frame_id"] for image in converted.document("val")["images"]] == [3]
    assert [box[0] for box in converted.boxes("train")] == [0, 0, 1]
    assert converted.document("val")["videos"][0]["length"] == 4
    assert converted.document("train")["categories"][0]["name"] == "walker"


def mot_tree(root: Path, write, images, name: str, rows: str, length: int = 3) -> None:
    folder = root / name
    write(
        folder / "seqinfo.ini",
        f"[Sequence]\nname={folder.name}\nimDir=img1\nframeRate=30\nseqLength={length}\n"
        "imWidth=80\nimHeight=60\nimExt=.jpg\n",
    )
    images(folder / "img1", [f"{number:06d}.jpg" for number in range(1, length + 1)], (80, 60))
    if rows:
        write(folder / "gt" / "gt.txt", rows)


def test_mot17_classes_detectors_and_splits(tmp_path, write, images, run):
    source = tmp_path / "MOT17"
    rows = "1,1,1,2,30,40,1,1,0.9\n2,3,5,5,10,10,0,7,1\n2,4,5,5,10,10,0,3,1\n3,5,5,6,7,8,0,1,0.2\n1,8,0,0,9,9,0,12,1\n"
    for detector in ("DPM", "FRCNN", "SDP"):
        mot_tree(source, write, images, f"train/MOT17-02-{detector}", rows)
    mot_tree(source, write, images, "test/MOT17-01-FRCNN", "")
    converted = run("mot", source)
    assert set(converted.counts) == {"train", "test"}
    # Class 3 (car) is left out; 7 (static person), 12 (reflection) and conf = 0 are ignore regions.
    assert converted.boxes("train") == [
        (0, 1, 1, [1, 2, 30, 40], 0),
        (0, 1, 8, [0, 0, 9, 9], 1),
        (1, 1, 3, [5, 5, 10, 10], 1),
        (2, 1, 5, [5, 6, 7, 8], 1),
    ]
    assert converted.document("train")["videos"][0]["name"] == "MOT17-02-FRCNN"
    image = converted.document("train")["images"][2]
    assert image["file_name"] == "videos/train/MOT17-02-FRCNN/img1/000003.jpg"
    assert converted.counts["test"].images == 3
    assert converted.problems.notes == {
        "MOT17 sequences left out: repeated for another detector": 2,
        "rows left out: class 3 (car)": 1,
    }
    assert set(run("mot", source, output=tmp_path / "only", split=["train"]).counts) == {"train"}
    with pytest.raises(ValueError, match="split=val is not in the source; it has test, train"):
        run("mot", source, split=["val"])
    (source / "train").rename(source / "valid")
    assert set(run("mot", source, output=tmp_path / "valid", split=["valid"]).counts) == {"valid"}


def test_mot15_has_no_seqinfo(tmp_path, write, images, run):
    source = tmp_path / "2DMOT2015"
    write(source / "train/PETS/gt/gt.txt", SINGLE)
    images(source / "train/PETS/img1", [f"{number:06d}.jpg" for number in range(1, 5)], (64, 48))
    images(source / "test/ADL/img1", ["000001.jpg", "000002.jpg"], (80, 60))
    converted = run("mot", source)
    video = converted.document("train")["videos"][0]
    assert (video["name"], video["width"], video["height"], video["length"]) == ("PETS", 64, 48, 4)
    assert [box[:3] for box in converted.boxes("train")] == [(0, 1, 1), (0, 1, 2), (1, 1, 1), (3, 1, 7), (3, 1, 2)]
    assert (converted.counts["test"].images, converted.counts["test"].boxes) == (2, 0)
    (source / "train/PETS/img1/000002.jpg").unlink()
    with pytest.raises(MalformedInputError, match="train/PETS: the last frame is 4, but frame 2 is missing in img1"):
        run("mot", source)


@pytest.fixture
def dancetrack_source(tmp_path, write, images) -> Path:
    # DanceTrack's rows end with class and visibility 1,1; its sequences are train/dancetrack0001 and so on.
    rows = "1,1,10,5,20,30,1,1,1\n1,2,40,8,20,30,1,1,1\n2,1,12,5,20,30,1,1,1\n3,2,44,8,20,30,1,1,1\n"
    mot_tree(tmp_path / "dance", write, images, "train/dancetrack0001", rows)
    return tmp_path / "dance"


def test_dancetrack(dancetrack_source, run):
    converted = run("dancetrack", dancetrack_source)
    assert [box[:3] for box in converted.boxes("train")] == [(0, 1, 1), (0, 1, 2), (1, 1, 1), (2, 1, 2)]
    assert converted.counts["train"].tracks == 2


def test_mot20_non_motorised_vehicles_are_ignored(tmp_path, write, images, run):
    mot_tree(tmp_path / "s", write, images, "train/MOT20-01", "1,1,1,2,30,40,0,6,0.9\n1,2,1,2,30,40,1,1,1\n")
    assert [box[-1] for box in run("mot", tmp_path / "s").boxes("train")] == [1, 0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1,1,10,x,20,30,1,-1,-1,-1", r"gt.txt:2: y \(column 4\) is 'x', not a number"),
        ("1,1,10,5,20,nan,1,-1,-1,-1", r"gt.txt:2: h \(column 6\) is 'nan', not finite"),
        ("0,1,10,5,20,30,1,-1,-1,-1", r"gt.txt:2: frame 0 is outside 1..4 \(frames count from 1\)"),
        ("5,1,10,5,20,30,1,-1,-1,-1", r"gt.txt:2: frame 5 is outside 1..4"),
        ("1.5,1,10,5,20,30,1,-1,-1,-1", r"gt.txt:2: frame \(column 1\) is '1.5', not a whole number"),
        ("1,3,10,5", r"gt.txt:2: 4 columns, at least 7 are needed"),
        ("1,3,10,5,0,30,1,-1,-1,-1", r"gt.txt:2: box \[x, y, w, h\] = \[10.0, 5.0, 0.0, 30.0\] has no area"),
        ("2,9,10,5,20,30,1,-1,-1,-1", r"gt.txt:2: track 9 has a second box on frame 2"),
        ("1,3,10,5,20,30,1,40,1", r"gt.txt:2: class 40 is none of MOTChallenge's 1..13"),
    ],
)
def test_malformed_rows_are_refused_or_skipped(tmp_path, write, video, run, row, reason):
    source = tmp_path / "source"
    video(source / "street.avi", 4, (64, 48))
    write(source / "gt.txt", f"2,9,10,5,20,30,1,-1,-1,-1\n{row}\n3,1,10,5,20,30,1,-1,-1,-1\n")
    with pytest.raises(MalformedInputError, match=reason):
        run("mot", source)
    assert not list((tmp_path / "converted").glob("*.json"))
    converted = run("mot", source, strict=False)
    assert converted.counts["all"].boxes == 2
    assert converted.problems.skipped == 1
    listed = (converted.folder / "skipped.txt").read_text().splitlines()
    assert len(listed) == 1
    assert listed[0].startswith("gt.txt:2: ")


def test_missing_pieces_are_named(tmp_path, write, images, video, run):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no MOT sequence"):
        run("mot", tmp_path / "empty")
    source = tmp_path / "source"
    video(source / "street.avi", 4, (64, 48))
    write(source / "gt.txt", "")
    with pytest.raises(MalformedInputError, match=r"gt\.txt: the file is empty"):
        run("mot", source)
    with pytest.raises(FileNotFoundError, match=r"has no stret.avi \(the video\); did you mean 'street.avi'"):
        run("mot", source, video="stret.avi")
    mot_tree(tmp_path / "tree", write, images, "train/a", "")
    with pytest.raises(FileNotFoundError, match=r"has no train/a/gt/gt.txt"):
        run("mot", tmp_path / "tree")
    (tmp_path / "tree/train/a/img1/000002.jpg").unlink()
    with pytest.raises(MalformedInputError, match="seqLength=3, but frame 2 is missing in img1"):
        run("mot", tmp_path / "tree")


def test_pets09_s2l1(tmp_path, run):
    source = SHARED / "data" / "pets09-s2l1"
    if not source.is_dir():
        pytest.skip("the PETS09-S2L1 clip is not here")
    converted = run("mot", source, splits={"train": [1, 560], "val": [600, 795]})
    everything = converted.counts["all"]
    assert (everything.boxes, everything.ignore_regions, everything.tracks) == (4476, 174, 19)
    assert (everything.images, everything.clipped) == (795, 20)
    assert (converted.counts["train"].boxes, converted.counts["train"].images) == (2879, 560)
    assert (converted.counts["val"].boxes, converted.counts["val"].images) == (1361, 196)
    first = converted.document("val")["images"][0]
    assert first["frame_id"] == 599
    # Row "1,9,499,158,31.03,75.17,1": the first line of the file.
    assert converted.boxes()[0] == (0, 1, 9, [499, 158, 31.03, 75.17], 0)
