"""The detector on squares whose place is known: boxes, ids, classes, windows, memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from stdetr.config import compose, instantiate
from stdetr.data.transforms import ClipTransform, ResizeShortSide
from stdetr.inference.detector import Detector, default_overlap
from stdetr.inference.load import choose_device
from stdetr.models.detector import ClipDetector
from stdetr.models.postprocess import to_tubes
from stdetr.stitch.association import StitchRules
from stdetr.stitch.stitching import visible_frames
from stdetr.structures import ClassNames, Tubes

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CLASSES = ClassNames((7, 3, 5), ("red", "green", "blue"))


def make(colour_detector, transforms=(), **settings) -> Detector:
    transform = ClipTransform(list(transforms), mean=MEAN, std=STD)
    return Detector(colour_detector(0.25), CLASSES, transform, **{"clip_length": 5, "overlap": 2, **settings})


def journey(length: int) -> list:
    """Red moves right; green is there on frames 4..9 and again from 14; blue never."""
    return [((5 + 2 * t, 10, 12), (50 - t, 40, 10) if 4 <= t < 10 or t >= 14 else None, None) for t in range(length)]


def test_boxes_ids_and_classes_are_exact(colour_detector, squares, array_source):
    places = journey(22)
    predictions = make(colour_detector).predict(array_source(squares(places)))
    assert predictions.info.frame_index == tuple(range(22))
    ids = {}
    for frame, (red, green, _) in enumerate(places):
        found = predictions.on_frame(frame)
        expected = {0: red} | ({1: green} if green else {})
        assert sorted(found["labels"].tolist()) == sorted(expected)
        for label, box, track in zip(found["labels"], found["boxes"], found["track_ids"], strict=True):
            left, top, side = expected[int(label)]
            assert box.tolist() == pytest.approx([left, top, left + side, top + side], abs=1e-3)
            ids.setdefault(int(label), set()).add(int(track))
    assert {label: len(tracks) for label, tracks in ids.items()} == {0: 1, 1: 1}
    assert ids[0] != ids[1]
    # The class score, by hand: sigmoid(3), the same for the tube and for its frame.
    assert predictions.on_frame(0)["scores"][0] == pytest.approx(0.952574, abs=1e-5)


def test_resized_and_padded_frames_give_boxes_in_source_pixels(colour_detector, squares, array_source):
    places = journey(6)
    detector = make(colour_detector, [ResizeShortSide(120)], pad_to=64)
    predictions = detector.predict(array_source(squares(places)))
    red = predictions.select(predictions.labels == 0)
    expected = np.array([[left, top, left + side, top + side] for (left, top, side), _, _ in places])
    assert np.abs(red.boxes - expected).max() <= 0.5  # half a source pixel: edges are blurred by the resize


@pytest.mark.parametrize(
    ("clip_length", "overlap", "batch_size"), [(1, 0, 1), (5, 0, 3), (5, 4, 2), (8, 3, 4), (40, 7, 1)]
)
def test_every_frame_comes_once_and_in_order(colour_detector, squares, array_source, clip_length, overlap, batch_size):
    detector = make(colour_detector, clip_length=clip_length, overlap=overlap, batch_size=batch_size)
    clips = list(detector.stream(array_source(squares(journey(23)))))
    assert torch.cat([clip.frame_index for clip in clips]).tolist() == list(range(23))
    reds = [int(i) for clip in clips for i, label in zip(clip.track_ids, clip.labels, strict=True) if label == 0]
    assert set(reds) == {reds[0]}


def test_start_step_and_max_frames(colour_detector, squares, array_source):
    detector = make(colour_detector, step=3)
    video = array_source(squares(journey(40)))
    predictions = detector.predict(video, start=2, max_frames=7)
    assert predictions.info.frame_index == (2, 5, 8, 11, 14, 17, 20)
    assert detector.model.windows == [(2, 5, 8, 11, 14), (8, 11, 14, 17, 20)]
    assert len({int(i) for i in predictions.track_ids[predictions.labels == 0]}) == 1


@pytest.mark.parametrize(
    ("overlap", "batch_size", "frames"), [(2, 1, 23), (4, 3, 23), (0, 2, 23), (2, 1, 6), (3, 1, 3)]
)
def test_the_backbone_runs_once_a_frame(colour_detector, squares, array_source, overlap, batch_size, frames):
    detector = make(colour_detector, overlap=overlap, batch_size=batch_size)
    detector.predict(array_source(squares(journey(frames))))
    assert detector.model.seen == frames


def clip_detector(*overrides: str) -> ClipDetector:
    """The small model, stirred, so that it reports something of everything."""
    torch.manual_seed(0)
    model = instantiate(compose("train", ["model=small", "model.classes=3", *overrides]).model.detector)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def of_model(model: ClipDetector, **settings) -> Detector:
    transform = ClipTransform([], mean=MEAN, std=STD)
    return Detector(
        model, CLASSES, transform, clip_length=5, overlap=2, score_threshold=0.02, presence_threshold=0.0, **settings
    )


@pytest.mark.parametrize("batch_size", [1, 2])
def test_reused_features_give_what_each_window_by_itself_gives(squares, array_source, batch_size):
    detector = of_model(clip_detector("model.encoder_layers=1"), batch_size=batch_size)
    video = array_source(squares(journey(12)))
    pieces = list(detector.follow(detector._batches(video, video.iterate(), False)))
    assert pieces.pop().pairs is None
    starts = [0, 3, 6, 7]
    for piece, start, new in zip(pieces, starts, [5, 3, 3, 1], strict=True):
        window = tuple(range(start, start + 5))
        batch = detector.batch(window, video.read(window), video)
        with torch.no_grad():
            output = detector.model(batch.frames, batch.sizes, batch.frame_mask, batch.frame_index)
        (expected,) = to_tubes(output, batch.infos, 100, 0.0)
        assert piece.info.frame_index == window[-new:] == tuple(expected.frame_index[-new:].tolist())
        assert piece.pairs is not None and len(piece.pairs) > 5
        assert torch.equal(piece.pairs.labels, expected.labels)
        torch.testing.assert_close(piece.pairs.boxes, expected.boxes[:, -new:], atol=1e-3, rtol=0)
        torch.testing.assert_close(piece.pairs.scores, expected.scores[:, -new:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_causal_model_answers_frame_by_frame(squares, array_source, batch_size):
    model = clip_detector("model.causal=true", "model.encoder_layers=1")
    counted = []
    model.backbone.register_forward_pre_hook(lambda _, args: counted.append(len(args[0])))
    detector = of_model(model, batch_size=batch_size)
    frames = squares(journey(12))
    clips = list(detector.stream(array_source(frames)))
    assert [clip.frame_index.tolist() for clip in clips] == [[t] for t in range(12)]
    assert sum(counted) == 12
    assert min(map(len, clips)) > 3
    changed = frames.copy()
    changed[8:] = 255 - changed[8:]
    others = list(detector.stream(array_source(changed)))
    for a, b in zip(clips[:8], others[:8], strict=True):
        for name in ("boxes", "scores", "labels", "track_ids", "tube_scores", "present"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert not torch.equal(clips[8].boxes, others[8].boxes)


def test_clip_shorter_than_a_window(colour_detector, squares, array_source):
    predictions = make(colour_detector).predict(array_source(squares(journey(2))))
    assert predictions.info.frame_index == (0, 1)
    assert len(predictions) == 2


def test_empty_video_has_no_detections(colour_detector, squares, array_source, tmp_path):
    detector = make(colour_detector)
    predictions = detector.predict(array_source(np.zeros((0, 60, 80, 3), np.uint8)))
    assert (len(predictions), predictions.info.frame_index, len(predictions.tubes())) == (0, (), 0)
    nothing = detector.predict(array_source(np.full((7, 60, 80, 3), 30, np.uint8)))
    assert (len(nothing), len(nothing.info.frame_index)) == (0, 7)


def test_memory_is_flat_in_the_length_of_the_video(colour_detector):
    class Endless:
        name, size, fps = "endless", (60, 80), 10.0

        def __init__(self, length: int) -> None:
            self.length = length

        def __len__(self) -> int:
            return self.length

        def iterate(self, start=0, stop=None, step=1):
            for t in range(self.length):
                frame = np.full((60, 80, 3), 30, np.uint8)
                frame[10:22, t % 60 : t % 60 + 12, 0] = 230
                yield t, frame

    def peak(length: int) -> int:
        detector = make(colour_detector, clip_length=4, overlap=1)
        detector.model.detect = _quiet(detector.model)
        tracemalloc.start()
        for _ in detector.stream(Endless(length)):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(20)  # what is allocated once
    # Ten times the frames; all of them would be 14 kB x 180 = 2.6 MB more.
    assert peak(200) - peak(20) < 500_000


def _quiet(model):
    """The fake's detect without its notes, which would grow."""

    def detect(tokens, frame_mask=None, frame_index=None):
        return type(model).detect(model, tokens, frame_mask, None)

    return detect


def test_weak_detections_stay_but_get_no_id(colour_detector, squares, array_source):
    detector = make(colour_detector, rules=StitchRules(track_threshold=0.99))
    predictions = detector.predict(array_source(squares(journey(6))))
    assert set(predictions.track_ids.tolist()) == {-1}
    assert len(predictions) == 6 + 2
    assert len(predictions.tubes()) == 0


def test_dense_tubes_of_the_whole_video(colour_detector, squares, array_source):
    tubes = make(colour_detector).predict(array_source(squares(journey(22)))).tubes()
    assert tubes.boxes.shape == (2, 22, 4)
    green = tubes.select(tubes.labels == 1)
    assert green.present[0].nonzero().flatten().tolist() == [*range(4, 10), *range(14, 22)]
    assert float(green.tube_scores[0]) == pytest.approx(0.982014, abs=1e-5)  # sigmoid(4)


def test_from_checkpoint_reads_the_run(tmp_path, write_run, squares, array_source):
    run = write_run(tmp_path / "run")
    detector = Detector.from_checkpoint(run, device="cpu", top_k=10, overlap=None)
    assert (detector.clip_length, detector.overlap, detector.top_k, detector.collate.pad_to) == (5, 2, 10, 16)
    assert detector.classes == CLASSES
    assert float(detector.model.threshold) == 0.25
    assert len(detector.predict(array_source(squares(journey(6))))) == 8
    longer = Detector.from_checkpoint(run, clip_length=10, rules=StitchRules(max_gap=3))
    assert (longer.clip_length, longer.overlap, longer.rules.max_gap, longer.rules.track_threshold) == (10, 4, 3, 0.4)


def test_settings_are_checked(colour_detector, squares, array_source):
    for settings, message in (
        ({"overlap": 5}, r"overlap=5 must lie in \[0, clip_length - 1\] = \[0, 4\]"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"presence_threshold": 1.5}, r"presence_threshold=1.5 must lie in \[0, 1\]"),
        ({"precision": "half"}, "precision='half' is not one of fp32, bf16, fp16"),
    ):
        with pytest.raises(ValueError, match=message):
            make(colour_detector, **settings)
    with pytest.raises(ValueError, match="max_frames=0"):
        list(make(colour_detector).stream(array_source(squares(journey(6))), max_frames=0))
    with pytest.raises(ValueError, match="device='gpu' is unknown"):
        choose_device("gpu")
    assert [default_overlap(frames) for frames in (1, 2, 5, 8)] == [0, 0, 2, 3]


def tubes_of(boxes: list, labels: list, scores: list, tube_scores: list) -> Tubes:
    count, frames = len(boxes), len(scores[0])
    return Tubes(
        torch.tensor(boxes, dtype=torch.float32)[:, None].expand(count, frames, 4), torch.tensor(scores),
        torch.tensor(labels), torch.full((count,), -1), torch.arange(frames), torch.tensor(tube_scores),
        torch.ones(count, frames, dtype=torch.bool),
    )  # fmt: skip


def test_frames_without_the_object_are_not_present():
    tubes = tubes_of([[0.0, 0, 4, 4]] * 2, [0, 1], [[0.8, 0.2, 0.04], [0.03, 0.03, 0.03]], [0.9, 0.05])
    seen = visible_frames(tubes, score_threshold=0.05)
    assert seen.labels.tolist() == [0]
    assert seen.present.tolist() == [[True, True, False]]  # 0.04 < 0.05
