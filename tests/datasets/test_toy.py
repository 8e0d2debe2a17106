"""The toy benchmark keeps the promises that its users rely on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from stdetr.data.coco_vid import read_coco_vid
from stdetr.datasets.toy import SPRITE_CLASSES, ToyBenchmark, ToyDegradation, ToyEncoder, ToyObjects, ToySplit
from stdetr.datasets.toy.degradation import draw_schedule
from stdetr.datasets.toy.motion import draw_path
from stdetr.datasets.toy.sprites import draw_sprite, outline_boxes, render_sprite
from stdetr.video.encode import write_video
from stdetr.video.open import open_source


def _digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_equal_seeds_give_equal_bytes(small_benchmark: ToyBenchmark, small_toy: Path, tmp_path: Path) -> None:
    again = small_benchmark.prepare(tmp_path)
    assert _digest(again) == _digest(small_toy)
    assert len(_digest(again)) == 6 + 2 + 2 + 4
    assert [path.name for path in tmp_path.iterdir()] == [again.name]


def test_one_stream_on_every_processor(tmp_path: Path) -> None:
    """Whole numbers, so that nothing but the encoder decides.  Without ``cpu-independent`` AVX-512 code gives two
    streams in turn for these frames, AVX2 code a third.  The hash belongs to the locked libx264.
    """
    frames = np.random.default_rng(0).integers(0, 256, (24, 96, 96, 3)).astype(np.uint8)
    streams = set()
    for number in range(8):
        write_video(tmp_path / f"{number}.mp4", frames, **asdict(ToyEncoder()))
        streams.add(hashlib.sha256((tmp_path / f"{number}.mp4").read_bytes()).hexdigest()[:16])
    assert streams == {"082c7a68b86c44ea"}


def test_the_default_benchmark_is_the_published_one() -> None:
    """Boxes, classes and degradations of six videos; pixels may differ by rounding between processors, these not."""
    splits = {"train": ToySplit(320, 1), "val": ToySplit(40, 2), "test": ToySplit(60, 3)}
    benchmark = ToyBenchmark(splits=splits)
    digest = hashlib.sha256()
    for split in splits:
        for number in (0, 7):
            scene = benchmark.scene(split, number)
            digest.update(np.round(scene.boxes, 1).astype("<f4").tobytes())
            digest.update(scene.labels.astype("<i8").tobytes())
            digest.update(json.dumps(scene.degradation).encode())
    assert digest.hexdigest()[:16] == "1a5422966ce37c69"


def test_any_setting_changes_the_folder(small_benchmark: ToyBenchmark) -> None:
    names = {
        small_benchmark.fingerprint,
        replace(small_benchmark, classes=3).fingerprint,
        replace(small_benchmark, objects=ToyObjects(turn=4.0)).fingerprint,
        replace(small_benchmark, splits={**small_benchmark.splits, "test": ToySplit(2, 99)}).fingerprint,
    }
    assert len(names) == 4


def test_an_interrupted_generation_leaves_nothing(
    small_benchmark: ToyBenchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ToyBenchmark, "_write_split", stop)
        with pytest.raises(KeyboardInterrupt):
            small_benchmark.prepare(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_annotations_are_what_was_painted(small_benchmark: ToyBenchmark, small_toy: Path) -> None:
    index = read_coco_vid(small_toy / "train.json")
    assert index.videos == 6
    assert index.images == 72
    assert index.classes.names == tuple(kind.name for kind in SPRITE_CLASSES[:4])
    scene = small_benchmark.scene("train", 2)
    found = index.annotations(np.array(index.rows(2)))
    tracks, frames = np.nonzero(scene.annotated)
    assert len(found.boxes) == len(tracks)
    for track, frame in zip(tracks, frames, strict=True):
        (place,) = np.flatnonzero((found.image == frame) & (found.tracks == track + 1))
        np.testing.assert_allclose(found.boxes[place], scene.boxes[track, frame], atol=0.02)
        assert found.labels[place] == scene.labels[track]
    decoded = open_source(small_toy / index.video_files[2]).read(range(12)).astype(int)
    error = np.abs(decoded - scene.frames).mean(axis=(1, 2, 3))
    clean = np.array([kind is None for kind in scene.degradation])
    assert error[clean].max() < 6
    codes = index.degradation[np.array(index.rows(2))]
    assert [code >= 0 for code in codes] == [kind is not None for kind in scene.degradation]


def test_never_more_than_two_degraded_of_five() -> None:
    rng, settings = np.random.default_rng(0), ToyDegradation()
    share, kinds = [], set()
    for _ in range(300):
        schedule = draw_schedule(rng, settings, 24)
        hit = np.array([kind is not None for kind in schedule])
        kinds |= {kind for kind in schedule if kind}
        assert max(hit[t : t + 5].sum() for t in range(20)) <= 2
        share.append(hit.mean())
    assert np.mean(share) == pytest.approx(0.24, abs=0.01)
    assert kinds == {"blur", "defocus", "noise", "blank"}


@pytest.mark.parametrize("kind", SPRITE_CLASSES, ids=lambda kind: kind.name)
def test_boxes_are_tight_to_the_pixels(kind: object) -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        path = draw_path(rng, ToyObjects(), 24, 96)
        sprite = draw_sprite(rng, kind, ToyObjects(), ToySplit(1, 1))  # pyright: ignore[reportArgumentType]
        layer, boxes = render_sprite(sprite, path), outline_boxes(sprite, path)
        for t in range(24):
            y, x = np.nonzero(layer.alpha[t] > 0.5)
            top, left = layer.corner[t]
            painted = [left + x.min(), top + y.min(), left + x.max() + 1, top + y.max() + 1]
            # Half a pixel of rounding, and a tip thinner than a pixel covers no pixel by half.
            np.testing.assert_allclose(painted, boxes[t], atol=1.6)


def test_objects_move_and_return_under_their_id() -> None:
    splits = {"train": ToySplit(1, 1), "val": ToySplit(1, 2), "test": ToySplit(1, 3)}
    benchmark = ToyBenchmark(splits=splits)
    speed, returned, counts = [], 0, []
    for number in range(40):
        scene = benchmark.scene("train", number)
        counts.append(len(scene.labels))
        centre = (scene.boxes[..., :2] + scene.boxes[..., 2:]) / 2
        step = np.linalg.norm(np.diff(centre, axis=1), axis=2)
        speed.append(step[scene.annotated[:, 1:] & scene.annotated[:, :-1]])
        for track in range(len(scene.labels)):
            seen = np.flatnonzero(scene.annotated[track])
            gap = np.flatnonzero(np.diff(seen) > 1)
            returned += len(gap) > 0
        assert (scene.boxes >= 0).all()
        assert (scene.boxes <= 96).all()
        assert (scene.visibility[scene.annotated] >= 0.2).all()
    assert returned >= 8
    assert 1.5 < np.median(np.concatenate(speed)) < 4
    assert {min(counts), max(counts)} == {1, 4}


def test_degraded_frames_hide_the_texture() -> None:
    """Detail finer than about two pixels inside a box: there on clean frames, gone on degraded ones."""
    splits = {"train": ToySplit(1, 1), "val": ToySplit(1, 2), "test": ToySplit(1, 3)}
    match: dict[str, list[float]] = {}
    for number in range(6):
        clean = ToyBenchmark(splits=splits, degradation=ToyDegradation(rate=0.0)).scene("train", number)
        spoilt = ToyBenchmark(splits=splits).scene("train", number)
        np.testing.assert_array_equal(clean.boxes, spoilt.boxes)
        for t, kind in enumerate(spoilt.degradation):
            luma, reference = (scene.frames[t].astype(float).mean(axis=2) for scene in (spoilt, clean))
            detail, wanted = (image - ndimage.gaussian_filter(image, 2.0) for image in (luma, reference))
            for track in np.flatnonzero(clean.annotated[:, t]):
                x1, y1, x2, y2 = np.rint(clean.boxes[track, t]).astype(int)
                inside = np.s_[y1:y2, x1:x2]
                likeness = float(np.corrcoef(detail[inside].ravel(), wanted[inside].ravel())[0, 1])
                match.setdefault(kind or "clean", []).append(likeness)
    assert set(match) == {"clean", "blur", "defocus", "noise", "blank"}
    assert np.min(match["clean"]) > 0.99
    for kind in ("blur", "defocus", "noise", "blank"):
        assert np.mean(match[kind]) < 0.4, kind


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_size": 95}, "frame_size must be even"),
        ({"classes": 9}, "classes must be 1 to 5, got 9"),
        ({"frames": 0}, "frames must be at least 1"),
        ({"splits": {"train": ToySplit(1, 1), "val": ToySplit(1, 1), "test": ToySplit(1, 2)}}, "different seeds"),
        ({"splits": {"train": ToySplit(1, 1)}}, "missing or too much"),
    ],
)
def test_settings_that_make_no_benchmark(small_benchmark: ToyBenchmark, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(small_benchmark, **change)


def test_wrong_ranges_and_kinds_are_named() -> None:
    with pytest.raises(ValueError, match=r"objects\.size must be \[low, high\]"):
        ToyObjects(size=(30, 20))
    with pytest.raises(ValueError, match=r"degradation\.kinds has 'fog'"):
        ToyDegradation(kinds=("fog",))
    with pytest.raises(ValueError, match=r"degradation\.rate must lie in \[0, 0\.30\]"):
        ToyDegradation(rate=0.5)
