"""Every violation of the contract, with file and record."""

from __future__ import annotations

import json
import re

import pytest

from stdetr.datasets.validate import Validation


def document() -> dict:
    return {
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "videos": [{"id": 1, "name": "v", "width": 64, "height": 48, "length": 3, "file_name": "videos/v.mp4"}],
        "images": [
            {"id": 1, "video_id": 1, "frame_id": 0},
            {"id": 2, "video_id": 1, "frame_id": 1, "width": 64, "height": 48, "degradation": None},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "video_id": 1, "category_id": 1, "instance_id": 4, "bbox": [0, 0, 64, 48]},
            {"id": 2, "image_id": 2, "video_id": 1, "category_id": 1, "instance_id": 4, "bbox": [1, 2, 3, 4]},
        ],
    }


@pytest.fixture
def check(tmp_path, video):
    video(tmp_path / "videos/v.mp4", 3, (64, 48))

    def _check(value, **keys) -> list[str]:
        path = tmp_path / "f.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value, indent=1))
        validation = Validation(path, **keys)
        return [line.removeprefix(str(path)) for line in validation.violations()]

    return _check


def test_a_valid_file(check):
    assert check(document()) == []


def set_in(section, place, **values):
    return lambda d: d[section][place].update(values)


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (
            set_in("annotations", 1, bbox=[1, 2, 3]),
            [r":51: annotations\[1\] \(id 2\): bbox must be a list of length 4, it is"],
        ),
        (
            set_in("annotations", 1, instance_id=None, track_id=4),
            [r"track_id 4, but no instance_id: CocoVID calls it instance_id; rename it"],
        ),
        (set_in("annotations", 1, track_id=9), []),
        (set_in("annotations", 1, image_id=10**30), [r"image_id must be a whole number .*, it is 10{30}"]),
        (set_in("annotations", 1, area=float("1e308") * 10), [r":63: not JSON: invalid character"]),
        (set_in("videos", 0, name="\ud800"), [r":15: not JSON: unexpected end of hex escape"]),
        (set_in("annotations", 1, bbox=[1, 2, 0, 4]), [r"bbox \[1, 2, 0, 4\] has no area"]),
        (set_in("annotations", 1, bbox=[61, 2, 5, 4]), [r"bbox \[61, 2, 5, 4\] leaves its 64x48 frame"]),
        (set_in("annotations", 1, bbox=[-1.5, 2, 5, 4]), ["leaves its"]),
        (set_in("annotations", 1, bbox=[1, 2, 3, True]), [r"bbox\[3\] must be a number, it is True"]),
        (
            set_in("annotations", 1, category_id=3),
            ["category_id 3 is not among the categories", "is category 3 here, and 1 elsewhere"],
        ),
        (set_in("annotations", 1, image_id=9), ["image_id 9 is not among the images"]),
        (set_in("annotations", 1, image_id=[1]), [r"image_id must be a whole number, it is \[1\]"]),
        (set_in("annotations", 1, video_id=2), ["video_id is 2, but its image belongs to video 1"]),
        (set_in("annotations", 1, id=1), ["this id was already used"]),
        (set_in("annotations", 1, id="1"), ["id must be a whole number, it is '1'"]),
        (set_in("annotations", 1, image_id=1), ["instance_id 4 has a second box on image 1"]),
        (set_in("annotations", 1, category_id=2), ["instance_id 4 is category 2 here, and 1 elsewhere in video 1"]),
        (set_in("annotations", 1, instance_id=1.5), ["instance_id must be a whole number"]),
        (set_in("annotations", 1, iscrowd=2), ["iscrowd must be 0 or 1, it is 2"]),
        (set_in("annotations", 1, area=-1), ["area must be a number from 0, it is -1"]),
        (set_in("images", 1, frame_id=3), [r"frame_id 3 is outside 0..2 of video 1"]),
        (set_in("images", 1, frame_id=0), ["frame_id 0 of video 1 has a second image record"]),
        (set_in("images", 1, width=32), ["is 32x48, its video 64x48"]),
        (set_in("images", 1, degradation="fog"), ["degradation 'fog' is not one of blur"]),
        (set_in("images", 1, file_name="x.jpg"), ["'x.jpg': there is no such file below"]),
        (set_in("images", 1, file_name="../x.jpg"), ["leads outside the data set's folder"]),
        (set_in("videos", 0, length=4), ["length is 4 here, but 'videos/v.mp4' has 3 frames"]),
        (set_in("videos", 0, file_name="/v.mp4"), ["leads outside"]),
        (set_in("videos", 0, file_name="videos/w.mp4"), ["there is no such file"]),
        (set_in("videos", 0, neg_category_ids=[1, 8]), ["neg_category_ids has 8, which is not among the categories"]),
        (set_in("videos", 0, neg_category_ids=[[1]]), [r"neg_category_ids\[0\] must be a whole number"]),
        (set_in("videos", 0, name=""), ["name must be text"]),
        (set_in("categories", 1, name="cat"), ["name 'cat' was already used"]),
        (lambda d: d["categories"].append(3), [r"categories\[2\]: must be an object, it is int"]),
        (
            lambda d: d.pop("images"),
            ["section 'images' is missing", "image_id 1", "image_id 2", "video id 1 has no image"],
        ),
        (lambda d: d.update(annotations={}), ["section 'annotations' must be a list, it is dict"]),
    ],
)
def test_each_violation(check, change, reasons):
    value = document()
    change(value)
    found = check(value)
    assert len(found) == len(reasons), found
    for line, reason in zip(found, reasons, strict=True):
        assert re.search(reason, line), line


def test_every_violation_is_told_at_once(check):
    value = document()
    for annotation in value["annotations"]:
        annotation["bbox"] = [0, 0, 99, 99]
    value["images"][0]["frame_id"] = -1
    assert len(check(value)) == 3


def test_what_refers_to_a_malformed_record_is_not_told_as_well(check):
    value = document()
    del value["videos"][0]["width"]
    value["categories"][0]["name"] = None
    found = check(value)
    assert len(found) == 2
    assert "categories[0] (id 1): name must be text, it is None" in found[0]
    assert "videos[0] (id 1): width is missing" in found[1]


def test_media_are_optional(check):
    value = document()
    value["videos"][0]["file_name"] = "videos/w.mp4"
    assert check(value, check_media=False) == []
    value["videos"][0]["file_name"] = None
    found = check(value)
    assert len(found) == 2
    assert all("has no file_name, and neither has its video" in line for line in found)


def test_files_that_are_no_annotations(check, tmp_path):
    assert check("") == [": the file is empty"]
    assert check("nope") == [":1: not JSON: invalid character near 'nope' (byte 4)"]
    found = check('[{"image_id": 1}]')
    assert "the document is a list (COCO results?), not an object with categories" in found[0]
    with pytest.raises(FileNotFoundError, match=r"annotation file .*g\.json does not exist; did you mean f\.json"):
        list(Validation(tmp_path / "g.json").violations())


def test_a_text_file_named_mp4(check, tmp_path):
    (tmp_path / "videos/v.mp4").write_text("hello")
    found = check(document())
    assert len(found) == 1
    assert "'videos/v.mp4' cannot be decoded" in found[0]
