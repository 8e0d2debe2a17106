"""Reading annotations, detections and tubes; one clear line for each mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from stdetr.evaluation import Detections, GroundTruth, TubeResults, detections, evaluate
from stdetr.evaluation.evaluate import prepare


@pytest.fixture
def scene(new_scene):
    scene = new_scene([3, 2], classes=2)
    scene.truth(1, [10, 10, 20, 20], instance=4)
    scene.truth(2, [12, 10, 20, 20], instance=4)
    scene.truth(4, [30, 30, 10, 10], category=2, instance=4)
    scene.found(1, [10, 10, 20, 20], 0.9, track=7)
    scene.found(2, [12, 10, 20, 20], 0.7, track=7)
    scene.found(4, [30, 30, 10, 10], 0.6, category=2)
    return scene


def refuse(match: str, document: dict, predictions: list, tubes: list | None = None) -> None:
    with pytest.raises(ValueError, match=re.escape(match)) as caught:
        evaluate(document, predictions, tubes, causal=False, seeds=1)
    assert "\n" not in str(caught.value)


def test_ground_truth_columns(scene) -> None:
    gt = GroundTruth.from_coco(scene.document)
    assert gt.video_lengths.tolist() == [3, 2]
    assert gt.image_video.tolist() == [0, 0, 0, 1, 1]
    assert gt.frame_positions.tolist() == [0, 1, 2, 0, 1]
    # instance_id is unique inside a video only: 4 in the other video is another track.
    assert gt.track.tolist() == [0, 0, 1]
    assert gt.category.tolist() == [0, 0, 1]
    assert gt.has_tracks


def test_subset_keeps_ids(scene) -> None:
    gt = GroundTruth.from_coco(scene.document)
    part = gt.subset(np.array([False, True, False, True, False]))
    assert part.image_ids.tolist() == [2, 4]
    assert part.annotation_ids.tolist() == [2, 3]
    assert part.image.tolist() == [0, 1]


def test_plain_coco_has_one_video_an_image(scene) -> None:
    document = {name: scene.document[name] for name in ("images", "annotations", "categories")}
    for record in (*document["images"], *document["annotations"]):
        record.pop("video_id")
        record.pop("instance_id", None)
    gt = GroundTruth.from_coco(document)
    assert len(gt.video_ids) == 5
    assert not gt.has_tracks
    values = evaluate(document, scene.predictions, causal=False, seeds=1).flat()
    assert values["coco/AP"] == pytest.approx(1)
    assert values["vid/AP50"] == pytest.approx(1)
    assert values["vid/AP50_slow"] is None
    assert values["tube/AP"] is None
    assert values["track/HOTA"] is None


def test_results_written_in_parts_are_what_was_read(scene, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(detections, "_PART", 2)
    found = Detections.from_results(scene.predictions)
    found.write_results(tmp_path / "new" / "predictions.json")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["predictions.json"]
    assert json.loads((tmp_path / "new" / "predictions.json").read_text()) == scene.predictions
    halves = [Detections.from_results(scene.predictions[:2]), Detections.from_results(scene.predictions[:1])]
    assert Detections.joined(halves).track_ids.tolist() == [7, 7, 7]
    assert Detections.joined([]).boxes.shape == (0, 4)
    Detections.empty().write_results(tmp_path / "none.json")
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_results_list_file_and_npz_are_the_same(scene, tmp_path: Path) -> None:
    listed = Detections.from_results(scene.predictions)
    (tmp_path / "predictions.json").write_text(json.dumps(scene.predictions, indent=1))
    loaded = Detections.load(tmp_path / "predictions.json")
    loaded.save(tmp_path / "predictions.npz")
    for other in (loaded, Detections.load(tmp_path / "predictions.npz")):
        for name in Detections.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(other, name), getattr(listed, name))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the file is empty"),
        ('{"a": 1}', "must hold a list of records; it holds an object with 'a'"),
        ('[{"a": 1}', ":1: not JSON: the file ends inside a value"),
        ('[{"a": 1}\n {"a": 2}]', ":2: not JSON: expected ',' or ']'"),
        ('[{"a": NaN}]', ":1: not JSON: invalid character"),
        ("not json", ":1: not JSON"),
    ],
)
def test_malformed_list(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(reason)) as caught:
        Detections.load(path)
    assert f"predictions file {path}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_list_file(tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("[ ]")
    assert len(Detections.load(tmp_path / "none.json")) == 0


def test_unknown_image_names_the_nearest(scene) -> None:
    scene.found(9, [0, 0, 5, 5], 0.5)
    refuse("predictions record 3: image_id 9 is not in the annotations; nearest valid image_id is 5", *both(scene))


def test_unknown_category_names_the_nearest(scene) -> None:
    scene.found(1, [0, 0, 5, 5], 0.5, category=7)
    refuse("category_id 7 is not in the annotations; nearest valid category_id is 2", *both(scene))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"bbox": [0, 0, float("nan"), 5]},
            "predictions record 3: bbox[2] must be a number, it is None (or not finite)",
        ),
        ({"bbox": [0, 0, -1, 5]}, "predictions record 3: bbox [0.0, 0.0, -1.0, 5.0] has a negative width or height"),
        ({"bbox": [0, 0, 5]}, "predictions record 3: bbox must be a list of length 4, it is [0, 0, 5]"),
        ({"bbox": "box"}, "predictions record 3: bbox must be a list, it is 'box'"),
        ({"score": float("inf")}, "predictions record 3: score must be a number, it is None (or not finite)"),
        ({"score": "high"}, "predictions record 3: score must be a number, it is 'high'"),
        ({"image_id": "1"}, "predictions record 3: image_id must be a whole number, it is '1'"),
        ({"image_id": 1.5}, "predictions record 3: image_id must be a whole number, it is 1.5"),
        ({"image_id": True}, "predictions record 3: image_id must be a whole number, it is True"),
        ({"track_id": "a"}, "predictions record 3: track_id must be a whole number or null, it is 'a'"),
        ({"track_id": 7}, "track_id 7 has two boxes in image_id 1"),
    ],
)
def test_bad_prediction(scene, change: dict, message: str) -> None:
    scene.predictions.append({"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5} | change)
    refuse(message, *both(scene))


def test_misspelt_key_names_the_nearest(scene) -> None:
    scene.predictions[1]["scores"] = scene.predictions[1].pop("score")
    refuse("predictions record 1: score is missing; there is 'scores'", *both(scene))


def test_a_record_that_is_no_object(scene) -> None:
    refuse("predictions record 0: must be an object, it is int", scene.document, [3])


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("annotations", {"bbox": [0, 0, None, 1]}, "annotations[0] (id 1): bbox[2] must be a number, it is None"),
        ("annotations", {"bbox": [0, 0, 1, -1]}, "annotations record 0: bbox [0.0, 0.0, 1.0, -1.0] has a negative"),
        ("annotations", {"image_id": 50}, "annotations[0] (id 1): image_id 50 is not among the images; the nearest id"),
        ("annotations", {"category_id": 3}, "category_id 3 is not among the categories; the nearest id is 2"),
        ("annotations", {"image_id": 2}, "annotations[1] (id 2): instance_id 4 has a second box on image 2"),
        ("annotations", {"iscrowd": 2}, "annotations[0] (id 1): iscrowd must be 0 or 1, it is 2"),
        ("annotations", {"area": -1}, "annotations[0] (id 1): area must be a number from 0"),
        ("annotations", {"category_id": 2}, "instance_id 4 is category 1 here, and 2 elsewhere in video 1"),
        ("annotations", {"video_id": 2}, "video_id is 2, but its image belongs to video 1"),
        ("annotations", {"instance_id": None, "track_id": 3}, "track_id 3, but no instance_id"),
        ("images", {"id": 2}, "images[1] (id 2): this id was already used"),
        ("images", {"file_name": "/etc/passwd"}, "file_name '/etc/passwd' leads outside the data set's folder"),
        ("videos", {"width": 0}, "videos[0] (id 1): width must be"),
        ("videos", {"name": 5}, "videos[0] (id 1): name must be text, it is 5"),
        ("videos", {"length": 1}, "images[1] (id 2): frame_id 1 is outside 0..0 of video 1"),
        ("images", {"frame_id": 1}, "frame_id 1 of video 1 has a second image record"),
        ("images", {"video_id": 9}, "video_id 9 is not among the videos; the nearest id is 2"),
        ("categories", {"id": 2}, "categories[1] (id 2): this id was already used"),
        ("categories", {"name": "class2"}, "name 'class2' was already used"),
    ],
)
def test_bad_annotation(scene, part: str, change: dict, message: str) -> None:
    document = json.loads(json.dumps(scene.document))
    document[part][0] |= change
    refuse(message, document, scene.predictions)


def test_a_missing_area_is_width_times_height(scene) -> None:
    scene.annotations[0]["area"] = 7
    del scene.annotations[1]["area"]
    assert GroundTruth.from_coco(scene.document).area.tolist() == [7, 400, 100]


def test_numpy_values_are_numbers(scene) -> None:
    for record in scene.predictions:
        record |= {"image_id": np.int64(record["image_id"]), "score": np.float32(0.5), "bbox": np.array(record["bbox"])}
    found = Detections.from_results(scene.predictions)
    assert found.scores.tolist() == [0.5, 0.5, 0.5]
    assert found.boxes[0].tolist() == [10, 10, 20, 20]


def test_incomplete_documents(scene) -> None:
    refuse("section 'categories' is missing", {"images": [], "annotations": []}, [])
    refuse("section 'images' is empty", {"images": [], "annotations": [], "categories": scene.categories}, [])
    refuse("videos[2] (id 1): this id was already used", scene.document | {"videos": scene.videos * 2}, [])


def test_missing_and_broken_files(scene, tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(scene.document))
    with pytest.raises(FileNotFoundError, match=r"anotations\.json does not exist; did you mean annotations\.json"):
        evaluate(tmp_path / "anotations.json", [], causal=False, seeds=1)
    for name in ("none.txt", "none.npz"):
        with pytest.raises(FileNotFoundError, match=f"predictions file .*{name} does not exist"):
            evaluate(tmp_path / "annotations.json", tmp_path / name, causal=False, seeds=1)
    with pytest.raises(FileNotFoundError, match="predictions file"):
        evaluate(tmp_path / "annotations.json", tmp_path / "none.json", causal=False, seeds=1)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json:1: not JSON: the file ends inside"):
        evaluate(tmp_path / "broken.json", [], causal=False, seeds=1)
    np.savez(tmp_path / "columns.npz", image_ids=np.zeros(1))
    with pytest.raises(ValueError, match="has no column 'category_ids'"):
        evaluate(tmp_path / "annotations.json", tmp_path / "columns.npz", causal=False, seeds=1)


def test_track_ids_may_repeat_where_nobody_reads_them(scene) -> None:
    scene.found(1, [10, 10, 20, 20], 0.1, track=7)
    values = evaluate(*both(scene), evaluators=("coco", "vid"), causal=False, seeds=1).flat()
    assert values["coco/AP"] == pytest.approx(1)


def test_shared_names_are_told_apart(scene) -> None:
    for video in scene.videos:
        video["name"] = "thing"
    assert GroundTruth.from_coco(scene.document).video_names == ("thing (1)", "thing (2)")


def test_unknown_evaluator(scene) -> None:
    with pytest.raises(ValueError, match="'tubes' is not an evaluator; did you mean 'tube'"):
        evaluate(scene.document, scene.predictions, evaluators=("tubes",), causal=False, seeds=1)


def test_tubes_from_track_ids(scene) -> None:
    scene.found(3, [14, 10, 20, 20], 0.5, category=2, track=7)
    inputs = prepare(scene.document, scene.predictions)
    tubes = inputs.tubes
    assert tubes is not None
    assert tubes.scores.tolist() == pytest.approx([0.7])
    assert tubes.category.tolist() == [0]  # two boxes of class 1, one of class 2
    assert tubes.video.tolist() == [0]
    assert tubes.image.tolist() == [0, 1, 2]


def test_equal_votes_go_to_the_higher_scores(new_scene) -> None:
    scene = new_scene([2], classes=2)
    scene.truth(1, [0, 0, 5, 5])
    scene.found(1, [0, 0, 5, 5], 0.4, category=1, track=0)
    scene.found(2, [0, 0, 5, 5], 0.5, category=2, track=0)
    tubes = prepare(scene.document, scene.predictions).tubes
    assert tubes is not None
    assert tubes.category.tolist() == [1]


def test_given_tubes_win_over_track_ids(scene) -> None:
    tubes = [{"video_id": 1, "category_id": 1, "score": 0.3, "bboxes": [[10, 10, 20, 20], None, None]}]
    inputs = prepare(scene.document, scene.predictions, tubes)
    assert inputs.tubes is not None
    assert inputs.tubes.scores.tolist() == [0.3]
    assert inputs.tubes.image.tolist() == [0]


def test_tubes_of_the_whole_video_when_only_some_frames_are_annotated(new_scene) -> None:
    scene = new_scene([2])
    scene.images[1]["frame_id"] = 5  # frames 0 and 5 of a video of 6
    scene.videos[0]["length"] = 6
    scene.truth(2, [10, 10, 20, 20])
    boxes = [None, [1, 1, 2, 2], None, None, None, [10, 10, 20, 20]]
    tubes = TubeResults.load(
        [{"video_id": 1, "category_id": 1, "score": 1, "bboxes": boxes}], GroundTruth.from_coco(scene.document)
    )
    assert tubes.image.tolist() == [1]
    assert tubes.boxes.tolist() == [[10, 10, 20, 20]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_id": 3}, "tubes record 0: video_id 3 is not in the annotations; nearest valid video_id is 2"),
        ({"bboxes": [None]}, "tubes record 0: 1 bboxes, but video_id 1 has 3 frames"),
        ({"bboxes": [None, None, [1, 2, 3]]}, "tubes record 0: bboxes[2] must be"),
        (
            {"bboxes": [None, None, [1, 2, float("nan"), 4]]},
            "tubes record 0: bboxes[2][2] must be a number, it is None",
        ),
        ({"bboxes": [None, None, [1, 2, -3, 4]]}, "tubes record 0: box [1.0, 2.0, -3.0, 4.0] has a negative width"),
        ({"bboxes": None}, "tubes record 0: bboxes must be a list, it is None"),
        ({"score": float("nan")}, "tubes record 0: score must be a number, it is None (or not finite)"),
    ],
)
def test_bad_tube(scene, change: dict, message: str) -> None:
    tube = {"video_id": 1, "category_id": 1, "score": 0.3, "bboxes": [None, None, [1, 2, 3, 4]]}
    refuse(message, scene.document, scene.predictions, [tube | change])


def test_a_tube_of_a_video_without_frames(scene) -> None:
    scene.videos.append(scene.videos[0] | {"id": 3, "name": "empty"})
    tube = {"video_id": 3, "category_id": 1, "score": 0.3, "bboxes": [[1, 2, 3, 4]]}
    refuse("tubes record 0: 1 bboxes, but video_id 3 has 0 frames", *both(scene), [tube])


def test_mot_text(scene, tmp_path: Path) -> None:
    folder = tmp_path / "tracks"
    folder.mkdir()
    (folder / "vid1.txt").write_text("\ufeff1,7,10,10,20,20,0.9,1\n\n2,7,12,10,20,20,0.7,1\n")
    (folder / "vid2.txt").write_text("1,-1,30,30,10,10,0.6,2,-1,-1\n")
    gt = GroundTruth.from_coco(scene.document)
    mot, listed = Detections.load(folder, gt), Detections.from_results(scene.predictions)
    for name in Detections.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(mot, name), getattr(listed, name))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vid1.txt", "1,7,10,10,20\n", "vid1.txt:1: 5 columns, at least 7 are needed"),
        ("vid1.txt", "1,7,10,10,20,20,0.9,1\none,7,10,10,20,20,0.9\n", "vid1.txt:2: frame (column 1) is 'one', not"),
        ("vid1.txt", "9,7,10,10,20,20,0.9,1\n", "frame 9 is not annotated; the nearest is 3"),
        ("vid1.txt", "1.5,7,10,10,20,20,0.9,1\n", "vid1.txt:1: frame (column 1) is '1.5', not a whole number"),
        ("vid1.txt", "1,nan,10,10,20,20,0.9,1\n", "vid1.txt:1: id (column 2) is 'nan', not finite"),
        ("vid1.txt", "1,7,10,10,-2,20,0.9,1\n", "vid1.txt:1: box [x, y, w, h] = [10.0, 10.0, -2.0, 20.0] has a neg"),
        ("vid1.txt", "1,7,10,10,inf,20,0.9,1\n", "vid1.txt:1: w (column 5) is 'inf', not finite"),
        ("vid1.txt", "1,7,10,10,20,20,0.9,1.5\n", "class (column 8) is '1.5', not a whole number"),
        ("vid1.txt", "1,7,10,10,20,20,0.9\n", "class -1 is not a category id; the annotations have [1, 2]"),
        ("street.txt", "1,7,10,10,20,20,0.9,1\n", "names no video of the annotations"),
    ],
)
def test_bad_mot_text(scene, tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        Detections.load(tmp_path / name, GroundTruth.from_coco(scene.document))


def both(scene) -> tuple[dict, list]:
    return scene.document, scene.predictions
