"""How fast clips come off the disk: raw decoders, video sources, whole loaders, and memory over many reads.

Shape legend
    T frames of a clip     h, w height and width in pixels

``stdetr bench suite=loader`` writes what :func:`run` returns.  Throughput is measured in one pass after a warm-up,
so on a busy machine the ratios say more than the figures.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from stdetr.data.coco_vid_reader import read_coco_vid
from stdetr.data.dataset import ClipDataset
from stdetr.data.frame_cache import FrameCache, NoCache, make_cache
from stdetr.data.loader import build_loader
from stdetr.data.sampling import ClipSampler, CoveringWindows, RandomWindows
from stdetr.data.toy.encode import encode_h264
from stdetr.data.toy.settings import ToyEncoder
from stdetr.data.transforms import ClipTransform
from stdetr.data.video_source import open_source


@dataclass(frozen=True)
class LoaderBench:
    """The keys of ``loader`` in ``conf/bench.yaml``.

    video:    a file to measure on; None: an H.264 film of ``length`` frames of ``size`` (w, h) px is made for it
    backends: of video files; ``frames`` stands for the same film as JPEG files
    frames:   T; workers: numbers of worker processes; batch_size: clips
    reads:    random clips read in a row while memory is watched
    limit:    frames that a measurement decodes at most
    """

    video: str | None = None
    size: tuple[int, int] = (640, 360)
    length: int = 600
    gop: int = 24
    backends: tuple[str, ...] = ("decord", "av", "frames")
    frames: int = 5
    batch_size: int = 1
    workers: tuple[int, ...] = (0, 1, 2)
    reads: int = 1000
    limit: int = 600

    def __post_init__(self) -> None:
        for key in ("length", "gop", "frames", "batch_size", "reads", "limit"):
            if getattr(self, key) < 1:
                raise ValueError(f"loader.{key} must be at least 1, got {getattr(self, key)}")
        known = ("decord", "av", "torchcodec", "frames")
        for backend in self.backends:
            if backend not in known:
                raise ValueError(f"loader.backends has {backend!r}; it may have {', '.join(known)}")


def run(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Measure and return a JSON-ready dictionary; ``cfg["loader"]`` holds the keys of :class:`LoaderBench`.

    Raises ValueError for keys that do not fit.
    """
    keys: dict[str, Any] = {
        str(key): tuple(value) if _is_list(value) else value for key, value in dict(cfg.get("loader") or {}).items()
    }
    unknown = sorted(set(keys) - set(LoaderBench.__dataclass_fields__))
    if unknown:
        raise ValueError(f"loader.{unknown[0]} is no key; there are {', '.join(LoaderBench.__dataclass_fields__)}")
    settings = LoaderBench(**keys)
    with tempfile.TemporaryDirectory(prefix="stdetr-bench-") as name:
        folder = Path(name)
        video = Path(settings.video) if settings.video else _make_film(folder, settings)
        source = open_source(video)
        length = min(len(source), settings.limit)
        _write_annotations(folder, video, length, source.size)
        backends = {
            backend: _measure_backend(backend, folder, video, length, settings) for backend in settings.backends
        }
        first = next((name for name in settings.backends if name != "frames"), settings.backends[0])
        caches = {kind: _measure_cache(kind, folder, first, settings) for kind in ("memory", "disk")}
        memory = _measure_memory(folder, first, settings)
    return {
        "suite": "loader",
        "machine": _machine(),
        "video": {
            "name": video.name if settings.video else "made",
            "size": list(source.size[::-1]),
            "frames": length,
        },
        "clip_frames": settings.frames,
        "backends": backends,
        "caches": caches,
        "memory": memory,
    }


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _make_film(folder: Path, settings: LoaderBench) -> Path:
    """A film with moving detail, so that decoding costs what decoding costs."""
    width, height = settings.size
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(height // 4 + 64, width // 4 + 64, 3)).astype(np.float32)
    canvas = np.kron(noise, np.ones((4, 4, 1), np.float32))
    canvas = np.clip(128 + 40 * canvas, 0, 255).astype(np.uint8)
    frames = np.empty((settings.length, height, width, 3), np.uint8)
    for t in range(settings.length):
        y, x = (int(128 * (0.5 + 0.5 * np.sin(phase + t / 17))) for phase in (0.0, 1.3))
        frames[t] = canvas[y : y + height, x : x + width]
    path = folder / "film.mp4"
    encode_h264(path, frames, ToyEncoder(crf=23, gop=settings.gop, preset="veryfast", fps=25))
    return path


def _write_annotations(folder: Path, video: Path, length: int, size: tuple[int, int]) -> None:
    """Two annotation files without boxes: one on the video file, one on its frames as JPEG files."""
    height, width = size
    (folder / "frames").mkdir()
    link = folder / ("video" + video.suffix)
    if not link.exists():
        link.symlink_to(video.resolve())
    for name in ("video", "frames"):
        record: dict[str, Any] = {"id": 1, "name": name, "width": width, "height": height, "length": length}
        if name == "video":
            record["file_name"] = link.name
        images = [
            {
                "id": t,
                "video_id": 1,
                "frame_id": t,
                **({"file_name": f"frames/{t:06d}.jpg"} if name == "frames" else {}),
            }
            for t in range(length)
        ]
        document = {"videos": [record], "images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
        (folder / f"{name}.json").write_text(json.dumps(document))


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rate(frames: int, seconds: float, clip: int) -> dict[str, float]:
    return {"frames_per_s": round(frames / seconds, 2), "clips_per_s": round(frames / clip / seconds, 2)}


def _raw(backend: str, video: Path, folder: Path, length: int) -> float:
    """Seconds to decode ``length`` frames in order with the bare decoder."""
    began = time.perf_counter()
    if backend == "frames":
        for t in range(length):
            with Image.open(folder / "frames" / f"{t:06d}.jpg") as image:
                np.asarray(image.convert("RGB"))
    elif backend == "av":
        import av

        with av.open(str(video)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for number, picture in enumerate(container.decode(video=0)):
                picture.to_ndarray(format="rgb24")
                if number + 1 == length:
                    break
    elif backend == "decord":
        import decord

        reader = decord.VideoReader(str(video), ctx=decord.cpu(0), num_threads=1)
        for _ in range(length):
            reader.next().asnumpy()
    else:
        source = open_source(video, backend=backend)
        for _ in source.iterate(0, length):
            pass
    return time.perf_counter() - began


def _dataset(folder: Path, backend: str, sampler: ClipSampler, cache: FrameCache | None = None) -> ClipDataset:
    name = "frames" if backend == "frames" else "video"
    transform = ClipTransform(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    decoder = "decord" if backend == "frames" else backend
    return ClipDataset(read_coco_vid(folder / f"{name}.json"), folder, sampler, transform, cache=cache, backend=decoder)


def _loader_seconds(dataset: ClipDataset, workers: int, batch_size: int) -> tuple[float, int]:
    """Seconds and frames of one pass, worker start left out: the clock starts with the first batch."""
    loader = build_loader(dataset, batch_size, shuffle=False, num_workers=workers, persistent=False)
    batches = iter(loader)
    next(batches)
    began, frames = time.perf_counter(), 0
    for batch in batches:
        frames += int(batch.frame_mask.sum())
    return time.perf_counter() - began, frames


def _measure_backend(backend: str, folder: Path, video: Path, length: int, settings: LoaderBench) -> dict[str, Any]:
    if backend == "frames":
        for index, frame in open_source(video).iterate(0, length):
            Image.fromarray(frame).save(folder / "frames" / f"{index:06d}.jpg", quality=92)
    clip, result = settings.frames, {}
    with _one_thread():
        raw = length / min(_raw(backend, video, folder, length) for _ in range(2))
        result["raw_sequential"] = {"frames_per_s": round(raw, 2)}
        dataset = _dataset(folder, backend, CoveringWindows(clip))
        rows = [dataset.sampler.clip(dataset.index, 0, number).rows for number in range(len(dataset))]
        began = time.perf_counter()
        for window in rows:
            dataset._frames(np.array(window))
        result["source_contiguous"] = _rate(length, time.perf_counter() - began, clip)
        for workers in settings.workers:
            seconds, frames = _loader_seconds(
                _dataset(folder, backend, CoveringWindows(clip)), workers, settings.batch_size
            )
            result[f"loader_contiguous_workers_{workers}"] = _rate(frames, seconds, clip)
        sampler = RandomWindows(clip, frames_per_epoch=max(length // 2, 2 * clip * settings.batch_size))
        seconds, frames = _loader_seconds(_dataset(folder, backend, sampler), 0, settings.batch_size)
        result["loader_random_workers_0"] = _rate(frames, seconds, clip)
    for entry in result.values():
        entry["ratio_to_raw"] = round(entry["frames_per_s"] / raw, 3)
    return result


def _measure_cache(kind: str, folder: Path, backend: str, settings: LoaderBench) -> dict[str, Any]:
    cache = make_cache(kind, folder / "cache", 4.0)
    sampler = RandomWindows(settings.frames, frames_per_epoch=200 * settings.frames)
    dataset = _dataset(folder, backend, sampler, cache)
    with _one_thread():
        began = time.perf_counter()
        dataset[0]
        filled = time.perf_counter() - began
        began = time.perf_counter()
        for number in range(len(dataset)):
            dataset[number]
        seconds = time.perf_counter() - began
    return {"fill_s": round(filled, 3), **_rate(len(dataset) * settings.frames, seconds, settings.frames)}


def resident_mb() -> float:
    """Resident memory of this process in MB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _measure_memory(folder: Path, backend: str, settings: LoaderBench) -> dict[str, Any]:
    """Resident memory while random clips are read one after the other, without a cache."""
    dataset = _dataset(folder, backend, RandomWindows(settings.frames, frames_per_epoch=10**9), NoCache())
    marks: list[list[float]] = []
    peak = before = resident_mb()
    every = max(1, settings.reads // 20)
    with _one_thread():
        for number in range(settings.reads):
            dataset[number]
            peak = max(peak, resident_mb())
            if (number + 1) % every == 0:
                marks.append([number + 1, round(resident_mb(), 1)])
    late = np.array(marks[len(marks) // 4 :])
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0] * 1000) if len(late) > 1 else 0.0
    return {
        "backend": backend,
        "reads": settings.reads,
        "before_mb": round(before, 1),
        "peak_mb": round(peak, 1),
        "after_mb": marks[-1][1],
        "slope_mb_per_1000_reads": round(slope, 3),
        "marks": marks,
    }


def _machine() -> dict[str, Any]:
    import av
    import decord

    return {
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "decord": decord.__version__,
        "av": av.__version__,
    }
