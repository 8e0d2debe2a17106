"""The annotation index: columns as in the file, and one clear line for each mistake."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stdetr.data.coco_vid import PackedNames, read_coco_vid

DOCUMENT: dict[str, Any] = {
    "videos": [
        {"id": 7, "name": "b", "width": 20, "height": 10, "length": 3},
        {"id": 3, "name": "a", "width": 40, "height": 30, "length": 9, "file_name": "a.mp4"},
    ],
    # Out of order on purpose: rows come sorted by video id and frame.
    "images": [
        {"id": 100, "video_id": 7, "frame_id": 1, "file_name": "b/1.jpg", "width": 20, "height": 10},
        {"id": 101, "video_id": 7, "frame_id": 0, "file_name": "b/0.jpg", "width": 20, "height": 10},
        {"id": 50, "video_id": 3, "frame_id": 8, "width": 40, "height": 30, "degradation": "noise"},
        {"id": 51, "video_id": 3, "frame_id": 2, "width": 40, "height": 30, "degradation": None},
    ],
    "annotations": [
        {"id": 1, "image_id": 50, "category_id": 9, "instance_id": 4, "bbox": [1, 2, 10, 5], "iscrowd": 0},
        {"id": 2, "image_id": 50, "category_id": 2, "bbox": [0, 0, 40, 30], "iscrowd": 1},
        {"id": 3, "image_id": 101, "category_id": 2, "instance_id": 0, "bbox": [19.5, 9, 0.9, 1], "ignore": 1},
    ],
    "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write the document after a change to it."""

    def make(change: Callable[[dict[str, Any]], object] = lambda document: None) -> Path:
        document = copy.deepcopy(DOCUMENT)
        change(document)
        path = tmp_path / "train.json"
        path.write_text(json.dumps(document))
        return path

    return make


def test_columns(write: Callable[..., Path]) -> None:
    index = read_coco_vid(write())
    assert index.classes.ids == (2, 9)
    assert index.classes.names == ("cat", "dog")
    assert index.video_ids.tolist() == [3, 7]
    assert index.video_sizes.tolist() == [[30, 40], [10, 20]]
    assert [index.video_files[0], index.video_files[1]] == ["a.mp4", ""]
    assert index.image_ids.tolist() == [51, 50, 101, 100]
    assert index.frame_ids.tolist() == [2, 8, 0, 1]
    assert [index.image_files[row] for row in range(4)] == ["", "", "b/0.jpg", "b/1.jpg"]
    assert index.degradation.tolist() == [-1, 2, -1, -1]
    assert [index.rows(0), index.rows(1)] == [range(2), range(2, 4)]
    assert [index.video_of(row) for row in range(4)] == [0, 0, 1, 1]
    found = index.annotations(np.array([2, 0, 1, 1]))
    assert found.image.tolist() == [0, 2, 2, 3, 3]
    assert found.labels.tolist() == [0, 1, 0, 1, 0]
    assert found.tracks.tolist() == [0, 4, -1, 4, -1]
    assert found.ignored.tolist() == [True, False, True, False, True]
    # 19.5 + 0.9 sticks out by less than a pixel: clipped without complaint.
    np.testing.assert_allclose(found.boxes[:3], [[19.5, 9, 20, 10], [1, 2, 11, 7], [0, 0, 40, 30]])
    assert index.clipped == 0
    again = pickle.loads(pickle.dumps(index))
    np.testing.assert_array_equal(again.boxes, index.boxes)


def test_a_box_outside_is_an_error_or_clipped(write: Callable[..., Path]) -> None:
    def change(document: dict[str, Any]) -> None:
        document["annotations"][0]["bbox"] = [35, 2, 10, 5]
        document["annotations"].append({"id": 9, "image_id": 100, "category_id": 2, "bbox": [50, 50, 5, 5]})

    path = write(change)
    with pytest.raises(ValueError, match=r"id 1\): bbox \[35, 2, 10, 5\] leaves its 40x30 frame;.*data\.strict=false"):
        read_coco_vid(path)
    index = read_coco_vid(path, strict=False)
    assert index.clipped == 2
    assert len(index.boxes) == 3
    np.testing.assert_allclose(index.annotations(np.array([1])).boxes[0], [35, 2, 40, 7])


def _set(section: str, number: int, **values: object) -> Callable[[dict[str, Any]], object]:
    return lambda document: document[section][number].update(values)


def _drop(section: str, number: int, key: str) -> Callable[[dict[str, Any]], object]:
    return lambda document: document[section][number].pop(key)


MISTAKES = {
    "unknown class": (_set("annotations", 0, category_id=8), "8 is not among the categories; the nearest id is 9"),
    "unknown image": (_set("annotations", 0, image_id=49), "image_id 49 is not among the images; the nearest id is 50"),
    "unknown video": (_set("images", 0, video_id=6), "video_id 6 is not among the videos; the nearest id is 7"),
    "two frames in one": (_set("images", 0, frame_id=0), r"id 101\): frame_id 0 of video 7 has a second image record"),
    "frame beyond the end": (_set("images", 2, frame_id=9), r"id 50\): frame_id 9 is outside 0\.\.8 of video 3"),
    "negative frame": (_set("images", 0, frame_id=-1), r"id 100\): frame_id -1 is outside 0\.\.2"),
    "repeated id": (_set("images", 0, id=50), r"images\[2\] \(id 50\): this id was already used"),
    "three numbers": (_set("annotations", 0, bbox=[1, 2, 3]), r"id 1\): bbox must be a list of length 4, it is"),
    "negative width": (_set("annotations", 0, bbox=[1, 2, -3, 4]), r"bbox \[1, 2, -3, 4\] has no area.*strict=false"),
    "not a number": (_set("annotations", 0, bbox=[1, 2, float("nan"), 4]), "not JSON: invalid character near .*NaN"),
    "infinity": (_set("annotations", 0, bbox=[1, 2, float("inf"), 4]), "invalid character near .*Infinit"),
    "huge": (_set("annotations", 0, id=1 << 70), r"\(id 1180591620717411303424\): id must be a whole n"),
    "path that climbs out": (_set("images", 0, file_name="a/../../x.jpg"), "leads outside the data set's folder"),
    "absolute path": (_set("videos", 1, file_name="/etc/passwd"), "leads outside the data set's folder"),
    "windows path": (_set("videos", 1, file_name="C:\\x.mp4"), "leads outside the data set's folder"),
    "two boxes of a track": (_set("annotations", 1, instance_id=4, category_id=9), "4 has a second box on image 50"),
    "one track of two classes": (_set("annotations", 2, image_id=51, instance_id=4), "is category 2 here, and 9"),
    "two classes of one name": (_set("categories", 0, name="cat"), "name 'cat' was already used"),
    "words": (_set("annotations", 0, bbox=["1", 2, 3, 4]), r"id 1\): bbox\[0\] must be a number, it is '1'"),
    "no box": (_drop("annotations", 1, "bbox"), r"annotations\[1\] \(id 2\): bbox is missing"),
    "no file": (_drop("images", 0, "file_name"), r"id 100\): has no file_name, and neither has its video"),
    "no size": (_set("videos", 0, width=0), r"id 7\): width must be a whole number >= 1, it is 0"),
    "degradation": (_set("images", 3, degradation="fog"), r"id 51\): degradation 'fog' is not one of blur"),
    "no videos": (lambda d: d.pop("videos"), "section 'videos' is missing.*format=coco"),
    "typo": (lambda d: d.update(annotation=d.pop("annotations")), "'annotations' is missing; there is 'annotation'"),
    "no class": (lambda d: d.update(categories=[]), "'categories' is empty"),
    "nothing": (lambda d: d.update(images=[]), "'images' is empty"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_named(kind: str, write: Callable[..., Path]) -> None:
    change, message = MISTAKES[kind]
    with pytest.raises(ValueError, match=message) as caught:
        read_coco_vid(write(change))
    assert "\n" not in str(caught.value)
    assert "train.json" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("{", "not JSON: the file ends"),
        ("[]", "COCO results"),
        ("3", "a JSON object or list was expected"),
    ],
)
def test_files_that_are_no_annotations(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "val.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_coco_vid(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"videos":\n[{"name": "\xff"}]}', r"val\.json:2: not a text file in UTF-8"),
        (b'{"videos": [{"id": 1e999}]}', r"val\.json:1: videos\[0\]: id must be a number in range, it is inf"),
        (b'{"videos":\n' + b"[" * 5000 + b"]" * 5000 + b"}", r"val\.json:2: nested too deeply"),
        (b'{"videos": [{"id": 1, "name": "\\ud800"}]}', r"val\.json:1: not JSON: unexpected end of hex escape"),
        (b'{"videos": {}}', r"val\.json:1: section 'videos' must be a list, it is dict"),
    ],
)
def test_files_made_to_break_a_reader(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "val.json"
    sections = {b"categories": b'[{"id": 1, "name": "a"}]', b"images": b'[{"id": 1}]', b"annotations": b"[]"}
    rest = b"".join(b', "%s": %s' % item for item in sections.items())
    path.write_bytes(content[:-1] + rest + b"}")
    with pytest.raises(ValueError, match=message) as caught:
        read_coco_vid(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"trian\.json does not exist; did you mean train\.json"):
        read_coco_vid(tmp_path / "trian.json")
    with pytest.raises(ValueError, match=r"is a folder"):
        read_coco_vid(tmp_path)


def test_no_annotations_at_all_is_allowed(write: Callable[..., Path]) -> None:
    index = read_coco_vid(write(lambda document: document.update(annotations=[])))
    assert len(index.boxes) == 0
    assert len(index.annotations(np.array([0, 3])).image) == 0


def test_packed_names() -> None:
    names = ["", "ä", "", "long name", ""]
    packed = PackedNames.pack(names)
    assert [packed[k] for k in range(len(packed))] == names
