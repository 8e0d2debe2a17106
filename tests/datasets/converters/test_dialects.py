"""What tools and older releases really write: older names, rotation, project exports, trailing commas, class lists."""

from __future__ import annotations

import json

import pytest
from test_driving import NAME, bdd, bdd_source, label  # noqa: F401 - a fixture is found by its name
from test_own_videos import box, cvat

from stdetr.datasets.converters.problems import MalformedInputError


@pytest.fixture
def street(tmp_path, video):
    """A folder with a video of 6 frames of 64x48."""
    video(tmp_path / "s/street.avi", 6, (64, 48))
    return tmp_path / "s"


def test_cvat_rotated_boxes_are_enclosed(street, write, run):
    turned = box(0, "40 15 60 25").replace("z_order", 'rotation="90.0" z_order')
    half = box(1, "40 15 60 25").replace("z_order", 'rotation="180" z_order')
    slanted = box(2, "20 10 30 20").replace("z_order", 'rotation="45" z_order')
    write(street / "street.xml", cvat(f'<track id="0" label="walker">\n{turned}{half}{slanted}</track>\n'))
    converted = run("cvat", street)
    # 20x10 about (50, 20) becomes 10x20; a square of 10 turned by 45 degrees is 10 * sqrt(2) wide.
    assert [b[3] for b in converted.boxes()] == [
        [45, 10, 10, 20],
        [40, 15, 20, 10],
        pytest.approx([25 - 50**0.5, 15 - 50**0.5, 200**0.5, 200**0.5], abs=1e-4),
    ]
    assert converted.problems.notes["rotated boxes replaced by the upright boxes around them"] == 2


def test_cvat_outside_behind_the_last_frame(street, write, run):
    track = box(3, "0 0 9 9") + box(6, "0 0 9 9", outside=1)
    write(street / "street.xml", cvat(f'<track id="0" label="walker">\n{track}</track>\n'))
    assert [b[0] for b in run("cvat", street).boxes()] == [3, 4, 5]
    track = box(3, "0 0 9 9") + box(900, "0 0 9 9", outside=1)
    write(street / "street.xml", cvat(f'<track id="0" label="walker">\n{track}</track>\n'))
    assert [b[0] for b in run("cvat", street).boxes()] == [3, 4, 5]


def test_cvat_project_has_a_video_per_task(street, write, video, run):
    video(street / "park.avi", 4, (32, 32))
    labels = "<labels><label><name>walker</name></label></labels>"
    tasks = "".join(
        f"<task><id>{number}</id>{labels}<source>{name}</source></task>"
        for number, name in ((7, "street.avi"), (3, "park.avi"))
    )

    def export(owners: str) -> str:
        tracks = "".join(
            f'<track id="{number}" label="walker" task_id="{owner}">{box(number, "1 1 9 9")}'
            f"{box(number + 1, '1 1 9 9', outside=1)}</track>\n"
            for number, owner in enumerate(owners)
        )
        return f"<annotations><meta><project>{labels}<tasks>{tasks}</tasks></project></meta>\n{tracks}</annotations>"

    write(street / "annotations.xml", export("737"))
    document = run("cvat", street).document()
    names = {record["id"]: record["name"] for record in document["videos"]}
    assert list(names.values()) == ["street", "park"]
    assert [(names[a["video_id"]], a["instance_id"]) for a in document["annotations"]] == [
        ("street", 0),
        ("street", 2),
        ("park", 1),
    ]
    write(street / "annotations.xml", export("79"))
    with pytest.raises(MalformedInputError, match=r"annotations.xml:5: track task_id '9' is none of the tasks 7, 3"):
        run("cvat", street)
    assert run("cvat", street, strict=False).problems.skipped == 1


def test_a_trailing_comma_is_no_column(street, write, run):
    rows = "1,1,10,10,20,20,1,1,1.0,\n1,2,40,10,20,20,1,3,1.0,\n1,3,40,20,20,20,1,8,0.5,\n"
    write(street / "gt.txt", rows)
    converted = run("mot", street)
    # A pedestrian, a car that is left out, a distractor.
    assert [(b[1], b[2], b[4]) for b in converted.boxes()] == [(1, 1, 0), (1, 3, 1)]
    assert converted.problems.notes == {"rows left out: class 3 (car)": 1}


@pytest.mark.parametrize("end", ["", ",1.0", ",1.0,", ",1.0,-1"])
def test_the_class_column_of_own_videos_is_the_eighth(street, write, run, end):
    write(street / "street.txt", f"1,1,10,10,20,20,1,1{end}\n1,2,40,10,20,20,1,2{end}\n")
    converted = run("videos", street, classes=["cat", "dog"])
    assert [b[1] for b in converted.boxes()] == [1, 2]
    write(street / "street.txt", f"1,1,10,10,20,20,1,3{end}\n")
    with pytest.raises(MalformedInputError, match=r"street.txt:1: class 3 is outside 1..2"):
        run("videos", street, classes=["cat", "dog"])


def test_mot_with_its_own_labels(tmp_path, write, images, run):
    source = tmp_path / "s"
    images(source / "img1", ["000001.jpg", "000002.jpg"], (80, 60))
    write(source / "gt/labels.txt", "cat\ndog\nfox\n")
    rows = "1,1,1,1,9,9,1,1,1.0\n1,2,20,1,9,9,1,2,1.0\n2,3,40,1,9,9,0,3,1.0\n"
    write(source / "gt/gt.txt", rows)
    converted = run("mot", source)
    assert [c["name"] for c in converted.document()["categories"]] == ["cat", "dog", "fox"]
    assert [(b[1], b[4]) for b in converted.boxes()] == [(1, 0), (2, 0), (3, 1)]
    with pytest.raises(ValueError, match=r"gt/labels.txt names the classes cat, dog, fox, but classes=\['cow'\]"):
        run("mot", source, classes=["cow"])
    write(source / "gt/gt.txt", rows + "2,4,1,1,9,9,1,4,1.0\n")
    with pytest.raises(MalformedInputError, match=r"gt/gt.txt:4: class 4 is outside 1..3"):
        run("mot", source)
    write(source / "gt/labels.txt", "cat\ncat\n")
    with pytest.raises(MalformedInputError, match=r"gt/labels.txt: one class name per line, each once"):
        run("mot", source)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1.5,1,1,1,9,9,1", r"gt.txt:1: frame \(column 1\) is '1.5', not a whole number"),
        ("1,nan,1,1,9,9,1", r"gt.txt:1: id \(column 2\) is 'nan', not finite"),
        ("1,1e30,1,1,9,9,1", r"gt.txt:1: id \(column 2\) is '1e30', not a whole number of 63 bits"),
        ("99999999999999999999,1,1,1,9,9,1", "not a whole number of 63 bits"),
        ("1,1,1,1,9,1e400,1", r"h \(column 6\) is '1e400', not finite"),
    ],
)
def test_numbers_that_are_none_are_refused(street, write, run, row, reason):
    write(street / "gt.txt", "\ufeff" + row + "\n")
    with pytest.raises(MalformedInputError, match=reason):
        run("mot", street)
    (street / "gt.txt").write_bytes(b"1,1,1,1,9,9,1\n\xff\xfe\n")
    with pytest.raises(MalformedInputError, match=r"gt.txt: not a text file in UTF-8"):
        run("mot", street)


def test_side_files_of_other_systems_are_left_out(street, write, run):
    write(street / "._street.avi", "resource fork")
    write(street / "street.txt", "1,1,1,1,9,9\n")
    assert run("videos", street).counts["all"].videos == 1


def test_bdd100k_names_of_2020(bdd_source, write, run):  # noqa: F811
    document = bdd()
    names = ("person", "bike", "motor", "van", "caravan")
    document[1]["labels"] = [label(str(number), name, (1, 2, 11, 22)) for number, name in enumerate(names)]
    for frame in document:
        frame["name"] = f"{NAME}/{frame['name']}"
    write(bdd_source / f"labels/box_track_20/train/{NAME}.json", json.dumps(document))
    converted = run("bdd100k", bdd_source)
    classes = {c["id"]: c["name"] for c in converted.document("train")["categories"]}
    first = [classes[b[1]] for b in converted.boxes("train") if b[0] == 0]
    assert first == ["pedestrian", "bicycle", "motorcycle", "car", "car"]


def test_coco_booleans_are_flags(tmp_path, write, images, run):
    document = {
        "images": [{"id": 0, "file_name": "a.jpg", "width": 64, "height": 48}],
        "annotations": [
            {"id": n, "image_id": 0, "category_id": 1, "bbox": [1, 2, 10, 10], "iscrowd": crowd}
            for n, crowd in enumerate((False, True))
        ],
        "categories": [{"id": 0, "name": "objects"}, {"id": 1, "name": "cat"}],
    }
    write(tmp_path / "mine/train/_annotations.coco.json", json.dumps(document))
    images(tmp_path / "mine/train", ["a.jpg"], (64, 48))
    assert [b[4] for b in run("coco", tmp_path / "mine").boxes("train")] == [0, 1]
