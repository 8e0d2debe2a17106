"""Damaged annotation, result and MOT files: one line with the file and no other exception; readers agree."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stdetr.data.coco_vid import read_coco_vid
from stdetr.datasets.validate import Validation
from stdetr.evaluation import Detections, GroundTruth, TubeResults

DOCUMENT: dict[str, Any] = {
    "videos": [
        {"id": 1, "name": "a", "width": 64, "height": 48, "length": 3},
        {"id": 2, "name": "b", "width": 64, "height": 48, "length": 1, "neg_category_ids": [1]},
    ],
    "images": [
        *({"id": i, "video_id": 1, "frame_id": i - 1, "file_name": f"a/{i}.jpg"} for i in (1, 2, 3)),
        {"id": 9, "video_id": 2, "frame_id": 0, "file_name": "b/0.jpg", "degradation": None},
    ],
    "annotations": [
        *({"id": i, "image_id": i, "category_id": 1, "instance_id": 1, "bbox": [1, 2, 10, 12]} for i in (1, 2, 3)),
        {"id": 7, "image_id": 9, "video_id": 2, "category_id": 2, "bbox": [0, 0, 64, 48], "area": 9, "ignore": 1},
    ],
    "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}],
}
RESULTS = [{"image_id": i, "category_id": 1, "bbox": [1, 2, 10, 12], "score": 0.5, "track_id": 3} for i in (1, 2, 3)]
TUBES = [{"video_id": 1, "category_id": 1, "score": 0.5, "bboxes": [[1, 2, 3, 4], None, [1, 2, 3, 4]]}]
VALUES = [
    None,
    True,
    -1,
    0,
    1.5,
    "x",
    "",
    [],
    {},
    [1],
    10**30,
    -(10**30),
    2**63 - 1,
    -(2**63),
    "\0",
    "../x",
    1e308,
    "é",
]
RAW = [
    "1e999",
    "NaN",
    "1" * 5000,
    "[" * 300 + "]" * 300,
    "[" * 1500,
    '"\\ud800"',
    "-",
    "01",
    "tru",
    '"',
    '"a\nb"',
    "\0",
]
CELLS = ["-1", "0", "nan", "inf", "1e400", "1e30", "", "x", "1.5", "9" * 25, "\0", "é", "\ufeff", '"']


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value inside ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def damaged(document: Any, rng: random.Random) -> bytes:
    document, raw = copy.deepcopy(document), {}
    for _ in range(rng.choice((1, 1, 2, 3))):
        *path, key = rng.choice(list(places(document)) or [(None,)])
        owner = document
        for step in path:
            owner = owner[step]
        kind = rng.random()
        if key is None:
            break
        if kind < 0.15:
            del owner[key]
        elif kind < 0.3 and isinstance(owner, list):
            owner.append(copy.deepcopy(owner[key]))
        elif kind < 0.75:
            owner[key] = copy.deepcopy(rng.choice(VALUES))
        else:
            owner[key] = f"@{len(raw)}@"
            raw[owner[key]] = rng.choice(RAW)
    text = json.dumps(document)
    for mark, value in raw.items():
        text = text.replace(f'"{mark}"', value)
    content = bytearray(text.encode())
    if rng.random() < 0.1 and content:
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def refused(path: Path, read: Callable[[Path], Any]) -> bool:
    """Whether ``read`` refuses the file, in the one way that is allowed."""
    try:
        read(path)
    except ValueError as error:
        text = str(error)
        assert "\n" not in text and len(text) < 600, (path.read_bytes(), text)
        assert any(word in text for word in (path.name, "predictions record", "tubes record")), text
        return True
    return False


@pytest.mark.parametrize("seed", range(4))
def test_json(tmp_path: Path, seed: int) -> None:
    rng, outcomes = random.Random(seed), set()
    gt, path = GroundTruth.from_coco(DOCUMENT), tmp_path / "f.json"
    for _ in range(100):
        path.write_bytes(damaged(DOCUMENT, rng))
        violations = list(Validation(path, check_media=False).violations())
        assert all("\n" not in line and path.name in line for line in violations)
        assert refused(path, read_coco_vid) == bool(violations), violations
        refused(path, lambda file: read_coco_vid(file, strict=False))
        assert violations or not refused(path, GroundTruth.from_coco)
        refused(path, GroundTruth.from_coco)
        path.write_bytes(damaged(RESULTS, rng))
        outcomes.add(refused(path, lambda file: Detections.load(file).bind(gt)))
        path.write_bytes(damaged(TUBES, rng))
        outcomes.add(refused(path, lambda file: TubeResults.load(file, gt)))
    assert outcomes == {True, False}


def test_mot_text(tmp_path: Path) -> None:
    rng, outcomes, path = random.Random(0), set(), tmp_path / "a.txt"
    gt = GroundTruth.from_coco(DOCUMENT)
    for _ in range(400):
        rows = [["1", "1", "1", "1", "9", "9", "1", "1"], ["2", "1", "1", "1", "9", "9", ".5", "2", "-1", "-1"]]
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice(CELLS)
        content = bytearray("\n".join(map(",".join, rows)).encode())
        if rng.random() < 0.2:
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        outcomes.add(refused(path, lambda file: Detections.load(file, gt)))
    assert outcomes == {True, False}
