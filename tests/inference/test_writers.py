"""Result files: what is written is what is read back, by independent readers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from stdetr.inference.predict import image_ids_of
from stdetr.inference.predictions import VideoInfo, VideoPredictions
from stdetr.structures import ClassNames, Tubes

INFO = VideoInfo("videos/street.mp4", "street.mp4", (48, 64), 12.5, ())
CLASSES = ClassNames((18, 4), ("dog, large", "cat"))


def predictions(fps: float = 12.5) -> VideoPredictions:
    """Two clips of three frames: track 2 is on frames 0..4, an unconfirmed detection on frame 3."""
    first = Tubes(
        boxes=torch.tensor([[[1.25, 2, 11.25, 12], [2, 2, 12, 12], [3, 2, 13, 12]]]),
        scores=torch.tensor([[0.5, 0.625, 0.75]]), labels=torch.tensor([0]), track_ids=torch.tensor([2]),
        frame_index=torch.tensor([0, 1, 2]), tube_scores=torch.tensor([0.8]),
        present=torch.ones(1, 3, dtype=torch.bool),
    )  # fmt: skip
    second = Tubes(
        boxes=torch.tensor([[[30, 30, 40, 40.5]] * 3, [[4, 2, 14, 12], [5, 2, 15, 12], [0, 0, 0, 0]]]),
        scores=torch.tensor([[0.3, 0, 0], [0.875, 0.9, 0]]), labels=torch.tensor([1, 1]),
        track_ids=torch.tensor([-1, 2]), frame_index=torch.tensor([3, 4, 5]), tube_scores=torch.tensor([0.3, 0.9]),
        present=torch.tensor([[True, False, False], [True, True, False]]),
    )  # fmt: skip
    info = VideoInfo(INFO.source, INFO.name, INFO.size, fps, ())
    return VideoPredictions.from_clips([first, second], info, CLASSES)


def test_columns_are_ordered_and_a_track_has_one_class():
    found = predictions()
    assert found.info.frame_index == (0, 1, 2, 3, 4, 5)
    assert found.frame_index.tolist() == [0, 1, 2, 3, 3, 4]
    assert found.track_ids.tolist() == [2, 2, 2, 2, -1, 2]
    # Votes of track 2: 3 x 0.8 for class 0 against 2 x 0.9 for class 1.
    assert found.labels.tolist() == [0, 0, 0, 0, 1, 0]
    assert found.on_frame(3)["scores"].tolist() == pytest.approx([0.875, 0.3])
    assert len(found.on_frame(5)["scores"]) == 0
    assert repr(found) == "VideoPredictions('street.mp4': 6 detections, 1 tracks, 6 frames)"


def test_coco_results_are_read_by_pycocotools(tmp_path: Path):
    path = predictions().to_coco(tmp_path / "out" / "predictions.json")
    results = json.loads(path.read_text())
    assert results[0] == {"image_id": 1, "category_id": 18, "bbox": [1.25, 2, 10, 10], "score": 0.5, "track_id": 2}
    assert results[4] == {"image_id": 4, "category_id": 4, "bbox": [30, 30, 10, 10.5], "score": 0.3}
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in range(1, 7)], "categories": [{"id": 18}, {"id": 4}], "annotations": [], "info": {}
    }  # fmt: skip
    truth.createIndex()
    loaded = truth.loadRes(str(path))
    assert len(loaded.getAnnIds(imgIds=[4])) == 2


def test_mot_rows_count_from_one(tmp_path: Path):
    path = predictions().to_mot(tmp_path / "tracks.txt")
    rows = np.loadtxt(path, delimiter=",", ndmin=2)
    assert rows[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert rows[0].tolist() == [1, 2, 1.25, 2, 10, 10, 0.5, -1, -1, -1]
    assert set(rows[:, 1]) == {2}  # the unconfirmed detection is not a track


def test_csv_round_trip_with_a_comma_in_a_class(tmp_path: Path):
    with predictions().to_csv(tmp_path / "d.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[3] == {
        "frame": "3", "time_s": "0.240", "track_id": "2", "category_id": "18", "class": "dog, large",
        "score": "0.875000", "x1": "4.000", "y1": "2.000", "x2": "14.000", "y2": "12.000",
    }  # fmt: skip
    assert rows[4]["track_id"] == ""
    with predictions(fps=0.0).to_csv(tmp_path / "d.csv").open(newline="") as stream:
        assert {row["time_s"] for row in csv.DictReader(stream)} == {""}


def test_no_detection_gives_valid_empty_files(tmp_path: Path):
    empty = VideoPredictions.from_clips([], INFO, CLASSES)
    assert json.loads(empty.to_coco(tmp_path / "p.json").read_text()) == []
    assert empty.to_mot(tmp_path / "t.txt").read_text() == ""
    assert empty.to_csv(tmp_path / "d.csv").read_text().splitlines() == [
        "frame,time_s,track_id,category_id,class,score,x1,y1,x2,y2"
    ]


def test_columns_must_have_one_length():
    found = predictions()
    with pytest.raises(ValueError, match="scores has 2 rows, frame_index has 6"):
        VideoPredictions(found.info, CLASSES, found.frame_index, found.boxes, found.scores[:2], found.labels,
                         found.track_ids, found.tube_scores)  # fmt: skip


def write_annotations(path: Path) -> Path:
    size = {"width": 80, "height": 60}
    names = ("park", "v/park.mp4"), ("street", "v/street.avi")
    content = {
        "videos": [
            {"id": n, "name": name, "file_name": file, "length": 9, **size} for n, (name, file) in enumerate(names, 1)
        ],
        "images": [
            *({"id": 70 + f, "video_id": 2, "frame_id": f, **size} for f in (0, 1, 4)),
            {"id": 1, "video_id": 1, "frame_id": 0, **size},
        ],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    path.write_text(json.dumps(content))
    return path


def test_image_ids_of_an_annotation_file(tmp_path: Path):
    annotations = write_annotations(tmp_path / "val.json")
    ids = image_ids_of(annotations, "somewhere/street.mp4")
    assert ids == {0: 70, 1: 71, 4: 74}
    results = json.loads(predictions().to_coco(tmp_path / "p.json", image_ids=ids).read_text())
    assert [result["image_id"] for result in results] == [70, 71, 74]  # frames without a record are left out
    assert image_ids_of(annotations, "park.mp4") == {0: 1}
    with pytest.raises(ValueError, match=r"has no video named stret.mp4; did you mean 'street'\?"):
        image_ids_of(annotations, "stret.mp4")
    with pytest.raises(FileNotFoundError, match=r"annotations=.* does not exist"):
        image_ids_of(tmp_path / "none.json", "street.mp4")
    (tmp_path / "bad.json").write_text('{"videos": []}')
    with pytest.raises(ValueError, match=r"bad\.json"):
        image_ids_of(tmp_path / "bad.json", "street.mp4")
