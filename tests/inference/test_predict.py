"""``stdetr predict`` from configuration to files, and samples of an annotated split."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from stdetr import config as configs
from stdetr.data.coco_vid import read_coco_vid
from stdetr.inference.detector import Detector
from stdetr.inference.predict import run
from stdetr.inference.samples import draw_samples
from stdetr.inference.sampling import most_confident_window
from stdetr.video.encode import write_video
from stdetr.video.open import open_source
from stdetr.viz.annotations import annotated_tubes

LENGTH = 14


def journey(length: int = LENGTH) -> list:
    return [((6 + 2 * t, 10, 12), (60 - 2 * t, 40, 10) if 4 <= t < 10 else None, None) for t in range(length)]


@pytest.fixture
def video(tmp_path: Path, squares) -> Path:
    return write_video(tmp_path / "squares.mp4", squares(journey()), 12.0, crf=4)


@pytest.fixture
def trained(tmp_path: Path, write_run) -> Path:
    return write_run(tmp_path / "run")


def test_predict_writes_everything(tmp_path: Path, video: Path, trained: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    cfg = configs.compose("predict", [f"checkpoint={trained}", f"source={video}", f"output_dir={out}"])
    (predictions,) = run(cfg)

    names = {"overlay.mp4", "tracks.txt", "predictions.json", "detections.csv", "sampling.png", "predict.yaml"}
    assert {path.name for path in out.iterdir()} == names
    results = json.loads((out / "predictions.json").read_text())
    assert len(results) == len(predictions) == LENGTH + 6
    red = [result for result in results if result["category_id"] == 7]
    assert [result["image_id"] for result in red] == list(range(1, LENGTH + 1))
    for t, result in enumerate(red):
        assert result["bbox"] == pytest.approx([6 + 2 * t, 10, 12, 12], abs=1.01)  # the video is compressed
    assert len({result["track_id"] for result in red}) == 1
    assert len(np.loadtxt(out / "tracks.txt", delimiter=",")) == LENGTH + 6

    with av.open(str(out / "overlay.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, float(stream.average_rate)) == ("h264", 12.0)
        assert sum(1 for _ in container.decode(video=0)) == LENGTH
        assert (stream.height, stream.width) == (480, 640)  # 60 x 80 enlarged eight times
    assert Image.open(out / "sampling.png").size[0] > 500
    said = capsys.readouterr().out
    assert f"squares.mp4: {LENGTH} frames, {LENGTH + 6} detections, 2 tracks" in said
    for name in names - {"predict.yaml"}:
        assert str(out / name) in said


def test_options_reach_the_detector_and_the_files(tmp_path: Path, video: Path, write_run, capsys):
    trained = write_run(tmp_path / "dense", target="colour_models.ColourDetector")
    annotations = tmp_path / "val.json"
    size = {"width": 80, "height": 60}
    images = [{"id": 500 + f, "video_id": 9, "frame_id": f, **size} for f in range(LENGTH)]
    video_record = {"id": 9, "name": "squares", "file_name": "squares.mp4", "length": LENGTH, **size}
    content = {"videos": [video_record], "images": images, "annotations": [], "categories": [{"id": 7, "name": "red"}]}
    annotations.write_text(json.dumps(content))
    out = tmp_path / "out"
    cfg = configs.compose("predict", [
        f"checkpoint={trained}", f"source={video}", f"output_dir={out}", f"annotations={annotations}", "overlay=false",
        "max_frames=4", "start=3", "clip_length=2", "overlap=1", "device=cpu", "stitch.max_gap=3", "batch_size=2",
    ])  # fmt: skip
    (predictions,) = run(cfg)
    assert predictions.info.frame_index == (3, 4, 5, 6)
    assert {path.name for path in out.iterdir()} == {"tracks.txt", "predictions.json", "detections.csv", "predict.yaml"}
    assert "sampling.png is not written" in capsys.readouterr().out
    assert {result["image_id"] for result in json.loads((out / "predictions.json").read_text())} == {503, 504, 505, 506}


def test_frames_in_a_folder_and_nothing_found(tmp_path: Path, trained: Path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (80, 60), (30, 30, 30)).save(folder / f"{number}.png")
    out = tmp_path / "out"
    run(configs.compose("predict", [f"checkpoint={trained}", f"source={folder}", f"output_dir={out}"]))
    assert json.loads((out / "predictions.json").read_text()) == []
    assert (out / "tracks.txt").read_text() == ""
    assert (out / "overlay.mp4").stat().st_size > 0
    assert (out / "sampling.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ("checkpoint=", ValueError, "checkpoint is missing: give checkpoint=..."),
        ("checkpoint={tmp}/rum", FileNotFoundError, "did you mean"),
        ("source={tmp}/squares.mp5", FileNotFoundError, "did you mean"),
        ("source=", ValueError, "source is missing"),
        ("source={tmp}/run/config.yaml", ValueError, "config.yaml"),
        ("overlap=7", ValueError, "overlap=7 must lie in"),
        ("stitch.damping=2", ValueError, "stitch.damping=2 must lie in"),
        ("start=99", ValueError, "no frame at or after start=99"),
        ("annotations={tmp}/none.json", FileNotFoundError, "annotations="),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, video: Path, trained: Path, change: str, kind, message: str):
    given = [f"checkpoint={trained}", f"source={video}", f"output_dir={tmp_path / 'out'}", change.format(tmp=tmp_path)]
    with pytest.raises(kind) as caught:
        run(configs.compose("predict", given))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_most_confident_window_by_hand(tmp_path: Path, trained: Path, squares, array_source):
    predictions = Detector.from_checkpoint(trained).predict(array_source(squares(journey())))
    # Both squares are there on frames 4 to 9 only.
    assert most_confident_window(predictions, 6) == (4, 5, 6, 7, 8, 9)
    assert most_confident_window(predictions, 99) == tuple(range(LENGTH))


def cocovid(root: Path, first: int, as_images: bool, squares) -> Path:
    """The squares from frame ``first`` on as an annotated split; the last box is an ignore region."""
    places = journey()
    video: dict = {"id": 4, "name": "squares", "width": 80, "height": 60, "length": LENGTH}
    images, annotations = [], []
    if as_images:
        (root / "img").mkdir()
    else:
        video["file_name"] = "squares.mp4"
    for number, t in enumerate(range(first, LENGTH)):
        image = {"id": t + 1, "video_id": 4, "frame_id": number if as_images else t, "width": 80, "height": 60}
        if as_images:
            image["file_name"] = f"img/{t:03d}.png"
            Image.fromarray(squares([places[t]])[0]).save(root / image["file_name"])
        images.append(image)
        for colour, place in enumerate(places[t]):
            if place is not None:
                left, top, side = place
                annotations.append({
                    "id": len(annotations) + 1, "image_id": t + 1, "video_id": 4, "category_id": (7, 3, 5)[colour],
                    "instance_id": 30 + colour, "bbox": [left, top, side, side], "area": side * side,
                    "iscrowd": int(colour == 0 and t == LENGTH - 1),
                })  # fmt: skip
    categories = [{"id": i, "name": n} for i, n in ((7, "red"), (3, "green"), (5, "blue"))]
    content = {"videos": [video], "images": images, "annotations": annotations, "categories": categories}
    (root / "val.json").write_text(json.dumps(content))
    return root / "val.json"


@pytest.mark.parametrize("as_images", [False, True])
def test_samples_of_a_split(tmp_path: Path, video: Path, trained: Path, squares, as_images: bool):
    index = read_coco_vid(cocovid(tmp_path, 6, as_images, squares))
    truth = annotated_tubes(index, index.rows(0), index.frame_ids)
    assert truth.track_ids.tolist() == [30, 31]
    assert truth.present.sum(1).tolist() == [LENGTH - 7, 4]  # frames 6 to 12 and 6 to 9: the crowd box is left out
    assert truth.boxes[0, 0].tolist() == [18, 10, 30, 22]
    detector = Detector.from_checkpoint(trained)
    (sample,) = draw_samples(detector, index, tmp_path, tmp_path / "media", count=3, max_frames=5)
    assert sample.sampling is not None
    assert (sample.overlay.name, sample.sheet.name) == ("squares_overlay.mp4", "squares_sheet.png")
    source = open_source(sample.overlay)
    assert len(source) == 5
    assert source.size[1] > 2 * 6 * 80  # two pictures, enlarged
    assert Image.open(sample.sheet).size[0] > 1000


def test_a_model_without_samples_still_gives_pictures(tmp_path: Path, video: Path, write_run, squares):
    detector = Detector.from_checkpoint(write_run(tmp_path / "dense", target="colour_models.ColourDetector"))
    index = read_coco_vid(cocovid(tmp_path, 0, False, squares))
    (sample,) = draw_samples(detector, index, tmp_path, tmp_path / "media", max_frames=3)
    assert sample.sampling is None
    assert sample.sheet.is_file()
