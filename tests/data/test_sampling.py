"""Which frames make a clip: coverage, order, stride, determinism."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdetr.data.coco_vid import CocoVid, read_coco_vid
from stdetr.data.sampling import CoveringWindows, KeyframeReferences, RandomWindows


def _index(folder: Path, *lengths: int) -> CocoVid:
    size = {"width": 8, "height": 8}
    videos = [{"id": v, "name": str(v), "length": n, "file_name": "x.mp4", **size} for v, n in enumerate(lengths)]
    images = [
        {"id": 1000 * v + t, "video_id": v, "frame_id": t, **size} for v, n in enumerate(lengths) for t in range(n)
    ]
    document = {"videos": videos, "images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    path = folder / ("-".join(map(str, lengths)) + ".json")
    path.write_text(json.dumps(document))
    return read_coco_vid(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sampling")


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 14), min_size=1, max_size=4), frames=st.integers(1, 6))
def test_covering_windows_show_every_frame_once(folder: Path, lengths: list[int], frames: int) -> None:
    index = _index(folder, *lengths)
    sampler = CoveringWindows(frames)
    clips = [sampler.clip(index, 0, number) for number in range(sampler.count(index))]
    assert all(1 <= len(clip) <= frames for clip in clips)
    assert all(len({index.video_of(row) for row in clip}) == 1 for clip in clips)
    assert [row for clip in clips for row in clip] == list(range(index.images))


def test_the_last_window_of_a_video_stays_short(folder: Path) -> None:
    index = _index(folder, 7, 2)
    assert [CoveringWindows(5).clip(index, 0, n) for n in range(3)] == [(0, 1, 2, 3, 4), (5, 6), (7, 8)]


def test_random_windows_are_windows(folder: Path) -> None:
    index = _index(folder, 30, 4, 1)
    sampler = RandomWindows(5, stride=(1, 2, 4), frames_per_epoch=5000)
    assert sampler.count(index) == 1000
    strides, lengths = Counter(), Counter()
    for number in range(1000):
        rows = sampler.clip(index, 3, number)
        assert len({index.video_of(row) for row in rows}) == 1
        lengths[len(rows)] += 1
        if len(rows) == 5:
            (step,) = set(np.diff(rows))
            strides[int(step)] += 1
    # 30 of 35 rows lie in the long video; the others give clips of 4 and 1 frames.
    assert lengths[5] == pytest.approx(1000 * 30 / 35, abs=40)
    assert lengths[4] == pytest.approx(1000 * 4 / 35, abs=40)
    assert set(lengths) == {1, 4, 5}
    assert set(strides) == {1, 2, 4}
    assert min(strides.values()) > 200


def test_every_frame_is_an_anchor_once_an_epoch(folder: Path) -> None:
    index = _index(folder, 30, 4, 1)
    sampler = RandomWindows(1)
    assert sampler.count(index) == 35
    assert sorted(sampler.clip(index, 2, number)[0] for number in range(35)) == list(range(35))


def test_equal_frames_are_seen_for_any_length(folder: Path) -> None:
    index = _index(folder, 40, 60)
    for frames in (1, 2, 5):
        sampler = RandomWindows(5, seed=1).with_frames(frames)
        assert sampler.count(index) * frames == 100
        assert {len(sampler.clip(index, 0, n)) for n in range(sampler.count(index))} == {frames}


def test_clips_depend_on_seed_epoch_and_number_alone(folder: Path) -> None:
    index = _index(folder, 30, 20)
    for make in (RandomWindows, KeyframeReferences):
        first = [make(3, seed=5).clip(index, 1, n) for n in range(16)]
        backwards = [make(3, seed=5).clip(index, 1, n) for n in reversed(range(16))][::-1]
        assert first == backwards
        assert first != [make(3, seed=5).clip(index, 2, n) for n in range(16)]
        assert first != [make(3, seed=6).clip(index, 1, n) for n in range(16)]


@pytest.mark.parametrize("causal", [False, True])
def test_key_frame_and_references(folder: Path, causal: bool) -> None:
    index = _index(folder, 30, 1)
    sampler = KeyframeReferences(4, reach=6, causal=causal, frames_per_epoch=31 * 4)
    keys = np.random.default_rng([0, 0]).permutation(31)
    for number, key in enumerate(keys):
        rows = sampler.clip(index, 0, number)
        assert key in rows
        assert list(rows) == sorted(set(rows))
        assert all(abs(row - key) <= 6 for row in rows)
        assert not causal or rows[-1] == key
        available = 0 if key == 30 else min(key, 6) + (0 if causal else min(29 - key, 6))
        assert len(rows) == 1 + min(3, available)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomWindows(0), "train_sampler.frames must be at least 1, got 0"),
        (lambda: RandomWindows(5, stride=(1, 0)), "train_sampler.stride must be at least 1"),
        (lambda: CoveringWindows(0), "eval_sampler.frames must be at least 1, got 0"),
        (lambda: KeyframeReferences(5, reach=0), "train_sampler.reach"),
    ],
)
def test_wrong_settings(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # pyright: ignore[reportCallIssue]
