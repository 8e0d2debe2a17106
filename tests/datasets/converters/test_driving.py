"""BDD100K, UA-DETRAC and Argoverse-HD."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stdetr.datasets.converters.problems import MalformedInputError

NAME = "b1c66a42-6f7d68ca"


def label(number: str, category: str, box: tuple[float, float, float, float], **attributes: bool) -> dict:
    x1, y1, x2, y2 = box
    return {
        "id": number,
        "category": category,
        "box2d": {"x1": x1, "y1": y1, "x2": x2, "y2": y2},
        "attributes": attributes,
    }


def bdd() -> list[dict]:
    return [
        {
            "name": f"{NAME}-0000002.jpg",
            "videoName": NAME,
            "frameIndex": 1,
            "labels": [label("00000007", "car", (3, 4, 13.5, 24), crowd=False)],
        },
        {
            "name": f"{NAME}-0000001.jpg",
            "videoName": NAME,
            "frameIndex": 0,
            "labels": [
                label("00000007", "car", (1, 2, 11, 22), crowd=False),
                label("00000009", "other vehicle", (30, 30, 40, 40)),
                label("00000011", "pedestrian", (20, 20, 30, 40), crowd=True),
            ],
        },
        {"name": f"{NAME}-0000003.jpg", "videoName": NAME, "frameIndex": 2, "labels": None},
    ]


@pytest.fixture
def bdd_source(tmp_path, write, images) -> Path:
    root = tmp_path / "bdd"
    write(root / f"labels/box_track_20/train/{NAME}.json", json.dumps(bdd()))
    images(root / f"images/track/train/{NAME}", [f"{NAME}-{n:07d}.jpg" for n in (1, 2, 3)], (64, 48))
    return root


def test_bdd100k(bdd_source, run):
    converted = run("bdd100k", bdd_source)
    boxes = converted.boxes("train")
    real = [box for box in boxes if not box[-1]]
    assert real == [(0, 3, 7, [1, 2, 10, 20], 0), (1, 3, 7, [3, 4, 10.5, 20], 0)]
    # A distractor and a crowd hold for each of the 8 classes, without a track.
    assert [box for box in boxes if box[-1] and box[1] == 8] == [
        (0, 8, -1, [30, 30, 10, 10], 1),
        (0, 8, -1, [20, 20, 10, 20], 1),
    ]
    assert len(boxes) == 2 + 2 * 8
    count = converted.counts["train"]
    assert (count.boxes, count.ignore_regions, count.tracks, count.images) == (2, 2, 1, 3)
    assert count.per_class == {"car": 2}
    assert converted.document("train")["videos"][0]["length"] == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d[1]["labels"][0].update(category="tank"), r"document\[1\] \(line 1\).labels\[0\]: category 'tank'"),
        (lambda d: d[1]["labels"][0].pop("box2d"), "box2d is missing"),
        (lambda d: d[1]["labels"][0]["box2d"].update(x2="a"), r"box2d\.x2 must be a number, it is 'a'"),
        (lambda d: d[1]["labels"][0]["box2d"].update(x2=1), "has no area"),
        (lambda d: d[1].update(frameIndex=1), "frame 1 was already there"),
        (lambda d: d[1].update(name="../x.jpg"), "points outside the source; refused"),
    ],
)
def test_bdd100k_malformed(bdd_source, write, run, change, reason):
    document = bdd()
    change(document)
    write(bdd_source / f"labels/box_track_20/train/{NAME}.json", json.dumps(document))
    with pytest.raises(MalformedInputError, match=reason):
        run("bdd100k", bdd_source)


def target(number: int, box: tuple[float, float, float, float], kind: str) -> str:
    left, top, width, height = box
    return (
        f'<target id="{number}">\n<box left="{left}" top="{top}" width="{width}" height="{height}"/>\n'
        '<attribute orientation="18.5" speed="6.8" trajectory_length="5" truncation_ratio="0.1" '
        f'vehicle_type="{kind}"/>'
        "\n</target>\n"
    )


DETRAC = (
    '<?xml version="1.0" encoding="utf-8"?>\n<sequence name="MVI_20011">\n'
    '<sequence_attribute camera_state="unstable" sence_weather="sunny"/>\n'
    '<ignored_region>\n<box left="40.5" top="0" width="30" height="10"/>\n</ignored_region>\n'
    '<frame density="2" num="1">\n<target_list>\n'
    + target(1, (5.25, 6, 10, 12), "car")
    + target(2, (20, 6, 10, 12), "bus")
    + '</target_list>\n</frame>\n<frame density="1" num="3">\n<target_list>\n'
    + target(1, (7, 6, 10, 12), "car")
    + "</target_list>\n</frame>\n</sequence>\n"
)


@pytest.fixture
def detrac_source(tmp_path, write, images) -> Path:
    root = tmp_path / "detrac"
    write(root / "DETRAC-Train-Annotations-XML/MVI_20011.xml", DETRAC)
    images(root / "Insight-MVT_Annotation_Train/MVI_20011", [f"img{n:05d}.jpg" for n in (1, 2, 3)], (64, 48))
    return root


def test_ua_detrac(detrac_source, run):
    converted = run("ua_detrac", detrac_source)
    boxes = converted.boxes("train")
    assert [box for box in boxes if not box[-1]] == [
        (0, 1, 1, [5.25, 6, 10, 12], 0),
        (0, 3, 2, [20, 6, 10, 12], 0),
        (2, 1, 1, [7, 6, 10, 12], 0),
    ]
    # The ignored region lies on each of the 3 frames, for each of the 4 classes, cut at x = 64.
    ignored = [box for box in boxes if box[-1]]
    assert len(ignored) == 12
    assert {tuple(box[3]) for box in ignored} == {(40.5, 0, 23.5, 10)}
    assert converted.counts["train"].ignore_regions == 3
    assert converted.document("train")["annotations"][0]["truncation"] == 0.1


def test_ua_detrac_with_all_frames_in_one_folder(detrac_source, run):
    (detrac_source / "Insight-MVT_Annotation_Train").rename(detrac_source / "DETRAC-Images")
    converted = run("ua_detrac", detrac_source)
    assert len(converted.boxes("train")) == 15
    name = converted.document("train")["images"][0]["file_name"]
    assert name == "videos/DETRAC-Images/MVI_20011/img00001.jpg"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('vehicle_type="bus"', 'vehicle_type="tram"', r"MVI_20011.xml:7: target 2: vehicle_type 'tram' is none of car"),
        ('width="30"', 'width="wide"', r"MVI_20011.xml:4: box width is 'wide', not a number"),
        ('num="3"', 'num="1"', r"MVI_20011.xml:1\d: frame 1 is there twice"),
        ('num="3"', 'num="9"', "frame 9 has targets, but no image"),
        ("</sequence>", "", "no element found"),
    ],
)
def test_ua_detrac_malformed(detrac_source, write, run, old, new, reason):
    assert old in DETRAC
    write(detrac_source / "DETRAC-Train-Annotations-XML/MVI_20011.xml", DETRAC.replace(old, new))
    with pytest.raises(MalformedInputError, match=reason):
        run("ua_detrac", detrac_source)


def argoverse() -> dict:
    return {
        "categories": [{"id": 0, "name": "person"}, {"id": 2, "name": "car"}],
        "images": [
            {"id": 0, "sid": 0, "fid": 0, "name": "a_315.jpg", "width": 64, "height": 48},
            {"id": 1, "sid": 0, "fid": 1, "name": "a_316.jpg", "width": 64, "height": 48},
            {"id": 2, "sid": 1, "fid": 0, "name": "b_1.jpg", "width": 64, "height": 48},
        ],
        "annotations": [
            {"id": 0, "image_id": 1, "category_id": 2, "track": 5, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
            {"id": 1, "image_id": 0, "category_id": 2, "track": 5, "bbox": [0, 2, 3, 4], "area": 12, "iscrowd": 0},
            {"id": 2, "image_id": 2, "category_id": 0, "track": 5, "bbox": [9, 9, 3, 4], "area": 12, "iscrowd": 1},
        ],
        "sequences": ["aaaa", "bbbb"],
        "seq_dirs": ["train1/aaaa/ring_front_center", "train1/bbbb/ring_front_center"],
        "coco_subset": [0, 2],
    }


@pytest.fixture
def argoverse_source(tmp_path, write, images) -> Path:
    root = tmp_path / "argo"
    write(root / "Argoverse-HD/annotations/val.json", json.dumps(argoverse(), indent=1))
    images(root / "Argoverse-1.1/tracking/train1/aaaa/ring_front_center", ["a_315.jpg", "a_316.jpg"], (64, 48))
    images(root / "Argoverse-1.1/tracking/train1/bbbb/ring_front_center", ["b_1.jpg"], (64, 48))
    return root


def test_argoverse_hd(argoverse_source, write, run):
    source, annotations = argoverse_source, argoverse_source / "Argoverse-HD/annotations/val.json"
    converted = run("argoverse_hd", source)
    document = converted.document("val")
    assert [(v["id"], v["name"], v["length"]) for v in document["videos"]] == [(1, "aaaa", 2), (2, "bbbb", 1)]
    assert [(i["id"], i["frame_id"]) for i in document["images"]] == [(0, 0), (1, 1), (2, 0)]
    assert converted.boxes("val") == [
        (0, 2, 5, [0, 2, 3, 4], 0),
        (1, 2, 5, [1, 2, 3, 4], 0),
        (0, 0, 5, [9, 9, 3, 4], 1),
    ]
    name = document["images"][0]["file_name"]
    assert name == "videos/Argoverse-1.1/tracking/train1/aaaa/ring_front_center/a_315.jpg"
    write(annotations.with_name("test-meta.json"), "{}")  # lists frames of a test set without annotations
    assert set(run("argoverse_hd", source).counts) == {"val"}
    broken = argoverse()
    broken["seq_dirs"].pop()
    write(annotations, json.dumps(broken))
    with pytest.raises(MalformedInputError, match="2 sequences, but 1 seq_dirs"):
        run("argoverse_hd", source)
    broken = argoverse()
    broken["seq_dirs"][0] = "../../elsewhere"
    write(annotations, json.dumps(broken))
    with pytest.raises(MalformedInputError, match="points outside the source"):
        run("argoverse_hd", source)
