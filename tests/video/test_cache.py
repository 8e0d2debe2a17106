"""Caches give the decoder's frames, bounded and safe against interruption."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from stdetr.video.cache import DiskCache, FrameCache, JpegCache, MemoryCache, NoCache, make_cache
from stdetr.video.open import open_source

INDICES = [7, 3, 3, 11]


@pytest.fixture
def video(encode: Callable[..., Path]) -> Path:
    return encode("cached.mp4", "-c:v", "libx264", "-g", "6", "-pix_fmt", "yuv420p", frames=12, size="32x16")


@pytest.mark.parametrize("make", [NoCache, MemoryCache, lambda: None], ids=["none", "memory", "disk"])
def test_all_caches_agree(make: Callable[[], FrameCache | None], video: Path, tmp_path: Path) -> None:
    cache = make() or DiskCache(tmp_path)
    truth = open_source(video).read(range(12))
    for _ in range(2):
        np.testing.assert_array_equal(cache.frames(video, INDICES, "decord"), truth[INDICES])
    again = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(again.frames(video, [0], "decord"), truth[[0]])
    with pytest.raises(ValueError, match=r"cached\.mp4: frame 12 does not exist, it has 12 frames"):
        cache.frames(video, [12], "decord")


def test_memory_decodes_once_and_forgets_the_oldest(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def counting(path: Path, *, backend: str, on_corrupt: str) -> object:
        opened.append(Path(path).name)
        return open_source(path, backend=backend, on_corrupt=on_corrupt)

    monkeypatch.setattr("stdetr.video.cache.open_source", counting)
    copies = [tmp_path / f"{name}.mp4" for name in "abc"]
    for copy in copies:
        copy.write_bytes(video.read_bytes())
    size = 12 * 16 * 32 * 3
    cache = MemoryCache(limit_gb=2.5 * size / 1e9)
    for name in "aabbaacabc":
        cache.frames(tmp_path / f"{name}.mp4", [0], "decord")
    # a, b are kept; c drops b (a was used last); b drops c; c drops a.
    assert [name[0] for name in opened] == ["a", "b", "c", "b", "c"]
    with pytest.raises(ValueError, match=r"more than data\.cache_limit_gb"):
        MemoryCache(limit_gb=0.9 * size / 1e9).frames(video, [0], "decord")


def test_disk_notices_a_changed_video(video: Path, tmp_path: Path, encode: Callable[..., Path]) -> None:
    cache, path = DiskCache(tmp_path / "cache"), tmp_path / "clip.mp4"
    path.write_bytes(video.read_bytes())
    before = cache.frames(path, [0], "decord")
    other = encode("other.mp4", "-vf", "negate", "-c:v", "libx264", "-pix_fmt", "yuv420p", frames=12, size="32x16")
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(1, 1))
    after = cache.frames(path, [0], "decord")
    assert np.abs(after[0].astype(int) - before[0]).mean() > 20
    np.testing.assert_array_equal(after, open_source(other).read([0]))


def test_disk_keeps_within_its_limit(video: Path, tmp_path: Path) -> None:
    copies = {name: tmp_path / f"{name}.mp4" for name in "abc"}
    for copy in copies.values():
        copy.write_bytes(video.read_bytes())
    size = 12 * 16 * 32 * 3
    cache = make_cache("disk", tmp_path / "cache", 2.5 * size / 1e9)
    truth = open_source(video).read([4])

    def kept() -> set[str]:
        return {file.name[0] for file in (tmp_path / "cache").glob("*.npy")}

    def read(name: str, second: int) -> None:
        np.testing.assert_array_equal(cache.frames(copies[name], [4], "decord"), truth)
        for file in (tmp_path / "cache").glob(f"{name}-*.npy"):
            os.utime(file, (second, second))

    for second, (name, wanted) in enumerate((("a", "a"), ("b", "ab"), ("a", "ab"), ("c", "ac"), ("b", "bc"))):
        read(name, second)
        assert kept() == set(wanted)
    # Each read is a use: without the times set by hand, the file read last has the latest time.
    cache.frames(copies["c"], [0], "decord")
    times = {file.name[0]: file.stat().st_mtime for file in (tmp_path / "cache").glob("*.npy")}
    assert times["c"] > times["b"]
    with pytest.raises(ValueError, match=r"c\.mp4 needs 0\.0 GB decoded, more than data\.cache_limit_gb"):
        DiskCache(tmp_path / "other", 0.5 * size / 1e9).frames(copies["c"], [0], "decord")
    with pytest.raises(ValueError, match="cache_limit_gb must be positive, got 0"):
        DiskCache(tmp_path, 0)


def test_disk_leaves_no_half_file(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        size, fps, name = (16, 32), 25.0, "x"

        def __len__(self) -> int:
            return 12

        def iterate(self) -> object:
            yield 0, np.zeros((16, 32, 3), np.uint8)
            raise ValueError("damaged")

        def close(self) -> None:
            return None

    monkeypatch.setattr("stdetr.video.cache.open_source", lambda *_, **__: Failing())
    with pytest.raises(ValueError, match=r"damaged"):
        DiskCache(tmp_path).frames(video, [0], "decord")
    assert list(tmp_path.iterdir()) == []


def test_the_key_names_the_cache(tmp_path: Path) -> None:
    assert isinstance(make_cache("none", None, 1), NoCache)
    assert isinstance(make_cache("memory", None, 1), MemoryCache)
    assert isinstance(make_cache("disk", tmp_path, 1), DiskCache)
    assert isinstance(make_cache("jpeg", tmp_path, 1), JpegCache)
    with pytest.raises(ValueError, match=r"data.cache=jpeg needs data.cache_dir"):
        make_cache("jpeg", None, 1)
    with pytest.raises(ValueError, match=r"data.cache=disk needs data.cache_dir"):
        make_cache("disk", None, 1)
    with pytest.raises(ValueError, match=r"must be none, memory, disk or jpeg, got 'memroy'; did you mean 'memory'"):
        make_cache("memroy", None, 1)
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4 does not exist"):
        DiskCache(tmp_path).frames(tmp_path / "gone.mp4", [0], "decord")


def _error(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference of brightness: colours have half the resolution, which is much of so small a picture."""
    weights = np.array([0.299, 0.587, 0.114])
    return float(np.abs(a @ weights - b @ weights).mean())


def test_jpeg_is_near_the_truth_and_better_with_quality(video: Path, tmp_path: Path) -> None:
    truth = open_source(video).read(INDICES)
    fine, coarse = (make_cache("jpeg", tmp_path, 1, quality) for quality in (98, 10))
    for _ in range(2):
        assert _error(np.stack(fine.frames(video, INDICES, "av")), truth) < 3
    worse = _error(np.stack(coarse.frames(video, INDICES, "av")), truth)
    assert worse > 1.5 * _error(np.stack(fine.frames(video, INDICES, "av")), truth)
    files = sorted(tmp_path.glob("*.jpegs"), key=lambda file: file.stat().st_size)
    assert len(files) == 2, "each quality has its own file"
    assert fine.frames(video, [0], "av")[0].shape == (16, 32, 3)
    again = pickle.loads(pickle.dumps(fine))
    np.testing.assert_array_equal(again.frames(video, [5], "av")[0], fine.frames(video, [5], "av")[0])
    with pytest.raises(ValueError, match=r"cached\.mp4: frame 12 does not exist, it has 12 frames"):
        fine.frames(video, [12], "av")


def test_jpeg_keeps_within_its_limit_and_leaves_no_half_file(video: Path, tmp_path: Path) -> None:
    JpegCache(tmp_path / "one").frames(video, [0], "av")
    size = next((tmp_path / "one").iterdir()).stat().st_size
    copies = [tmp_path / f"{name}.mp4" for name in "abc"]
    cache = JpegCache(tmp_path / "cache", 2.5 * size / 1e9)
    for second, copy in enumerate(copies):
        copy.write_bytes(video.read_bytes())
        cache.frames(copy, [3], "av")
        for file in (tmp_path / "cache").glob(f"{copy.stem}-*"):
            os.utime(file, (second, second))
    assert {file.name[0] for file in (tmp_path / "cache").iterdir()} == {"b", "c"}
    with pytest.raises(ValueError, match=r"a\.mp4 needs 0\.0 GB as JPEG, more than data\.cache_limit_gb"):
        JpegCache(tmp_path / "small", 0.5 * size / 1e9).frames(copies[0], [0], "av")
    assert list((tmp_path / "small").iterdir()) == []
    with pytest.raises(ValueError, match="cache_quality must lie between 1 and 100, got 0"):
        JpegCache(tmp_path, quality=0)


def test_processes_that_fill_one_jpeg_cache_at_the_same_time_agree(video: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_fill, video, tmp_path, number) for number in range(6)]
        sums = [job.result() for job in jobs]
    assert sums[0::2] == [sums[0]] * 3
    assert sums[1::2] == [sums[1]] * 3
    assert [file.suffix for file in tmp_path.iterdir()] == [".jpegs"]


def _fill(video: Path, directory: Path, number: int) -> int:
    return int(JpegCache(directory).frames(video, [number % 2 * 7], "av")[0].sum())
