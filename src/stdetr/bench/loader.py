"""How fast clips come off the disk: raw decoders, video sources, whole loaders, and memory over many reads.

Shape legend
    T frames of a clip     h, w height and width in pixels

``stdetr bench suite=loader`` writes what :func:`run` returns.  Loaders give uint8 batches, as training takes them;
``loader_contiguous_normalised_on_cpu`` adds what a model on the CPU does with them first.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from stdetr.bench.report import draw_table, machine
from stdetr.config import instantiate
from stdetr.data.coco_vid import read_coco_vid
from stdetr.data.dataset import ClipDataset
from stdetr.data.loader import ClipLoader, build_loader
from stdetr.data.sampling import ClipSampler, CoveringWindows, RandomWindows
from stdetr.data.transforms import ClipTransform
from stdetr.video.cache import FrameCache, NoCache, make_cache
from stdetr.video.encode import write_video
from stdetr.video.open import open_source


@dataclass(frozen=True)
class LoaderBench:
    """The keys of ``loader`` in ``conf/bench.yaml``.

    video:    a file to measure on; None: an H.264 film of ``length`` frames of ``size`` (w, h) px is made for it
    backends: of video files; ``frames`` stands for the same film as JPEG files
    frames:   T; workers: numbers of worker processes; batch_size: clips
    reads:    random clips read in a row while memory is watched
    limit:    frames that a measurement decodes at most
    repeats:  measured turns; figures are medians
    """

    video: str | None = None
    size: Sequence[int] = (640, 360)
    length: int = 600
    gop: int = 24
    backends: Sequence[str] = ("av", "decord", "frames")
    frames: int = 5
    batch_size: int = 1
    workers: Sequence[int] = (0, 1, 2)
    reads: int = 1000
    limit: int = 600
    repeats: int = 3

    def __post_init__(self) -> None:
        for key in ("length", "gop", "frames", "batch_size", "reads", "limit", "repeats"):
            if getattr(self, key) < 1:
                raise ValueError(f"loader.{key} must be at least 1, got {getattr(self, key)}")
        known = ("av", "decord", "torchcodec", "frames")
        for backend in self.backends:
            if backend not in known:
                raise ValueError(f"loader.backends has {backend!r}; it may have {', '.join(known)}")


def run(cfg: DictConfig) -> dict[str, Any]:
    """Measure and return a JSON-ready dictionary; ``cfg.loader`` holds the keys of :class:`LoaderBench`.

    Raises ValueError for keys that do not fit.
    """
    settings: LoaderBench = instantiate(cfg.loader)
    with tempfile.TemporaryDirectory(prefix="stdetr-bench-") as name:
        folder = Path(name)
        video = Path(settings.video) if settings.video else _make_film(folder, settings)
        source = open_source(video)
        length = min(len(source), settings.limit)
        _write_annotations(folder, video, length, source.size)
        backends = {
            backend: _measure_backend(backend, folder, video, length, settings) for backend in settings.backends
        }
        files = [name for name in settings.backends if name != "frames"] or list(settings.backends[:1])
        caches = {kind: _measure_cache(kind, folder, files[0], settings) for kind in ("memory", "disk")}
        memory = {backend: _measure_memory(folder, backend, settings) for backend in files}
    return {
        "suite": "loader",
        "machine": _machine(),
        "video": {
            "name": video.name if settings.video else "made",
            "size": list(source.size[::-1]),
            "frames": length,
            "gop": None if settings.video else settings.gop,
        },
        "clip_frames": settings.frames,
        "backends": backends,
        "caches": caches,
        "memory": memory,
    }


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
    return write_video(folder / "film.mp4", frames, 25, crf=23, gop=settings.gop)


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


def _raw(backend: str, video: Path, folder: Path, length: int) -> None:
    """Decode ``length`` frames in order with the bare decoder."""
    if backend == "frames":
        for t in range(length):
            with Image.open(folder / "frames" / f"{t:06d}.jpg") as image:
                np.asarray(image.convert("RGB"))
    elif backend == "av":
        import av
        from av.video.reformatter import VideoReformatter

        converter = VideoReformatter()  # one for all frames: creating one per frame costs more than decoding
        with av.open(str(video)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for number, picture in enumerate(container.decode(video=0)):
                converter.reformat(picture, format="rgb24").to_ndarray()
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


def _dataset(folder: Path, backend: str, sampler: ClipSampler, cache: FrameCache | None = None) -> ClipDataset:
    name = "frames" if backend == "frames" else "video"
    transform = ClipTransform(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    decoder = "av" if backend == "frames" else backend
    return ClipDataset(read_coco_vid(folder / f"{name}.json"), folder, sampler, transform, cache=cache, backend=decoder)


@dataclass(frozen=True)
class _Pass:
    """One measured pass: seconds of the wall clock, seconds that this process computed, frames."""

    seconds: float
    cpu: float
    frames: int


def _timed(work: Callable[[], int]) -> _Pass:
    """Run ``work``, which returns how many frames it got."""
    began, cpu = time.perf_counter(), time.process_time()
    frames = work()
    return _Pass(time.perf_counter() - began, time.process_time() - cpu, frames)


def _drain(loader: ClipLoader, *, normalise: bool = False) -> int:
    """One pass over a loader; with ``normalise`` this process also makes each batch what a model on the CPU takes."""
    frames = 0
    for batch in loader:
        frames += int(batch.frame_mask.sum())
        if normalise:
            batch.normalised()
    return frames


def _measure_backend(backend: str, folder: Path, video: Path, length: int, settings: LoaderBench) -> dict[str, Any]:
    """Every way of reading in turn, ``repeats`` times after one turn to warm up."""
    if backend == "frames":
        for index, frame in open_source(video).iterate(0, length):
            Image.fromarray(frame).save(folder / "frames" / f"{index:06d}.jpg", quality=92)
    clip, size = settings.frames, settings.batch_size
    in_order = CoveringWindows(clip)

    def loader(sampler: ClipSampler, workers: int) -> ClipLoader:
        return build_loader(_dataset(folder, backend, sampler), size, shuffle=False, num_workers=workers)

    def raw() -> int:
        _raw(backend, video, folder, length)
        return length

    def source() -> int:
        dataset = _dataset(folder, backend, in_order)
        for number in range(len(dataset)):
            dataset._frames(np.array(dataset.sampler.clip(dataset.index, 0, number)))
        return length

    contiguous = {workers: loader(in_order, workers) for workers in settings.workers}
    here = contiguous.get(0) or loader(in_order, 0)
    scattered = loader(RandomWindows(clip, frames_per_epoch=max(length // 2, 2 * clip * size)), 0)
    ways: dict[str, Callable[[], int]] = {"raw_sequential": raw, "source_contiguous": source}
    for workers, one in contiguous.items():
        ways[f"loader_contiguous_workers_{workers}"] = lambda one=one: _drain(one)
    ways["loader_contiguous_normalised_on_cpu"] = lambda: _drain(here, normalise=True)
    ways["loader_random_workers_0"] = lambda: _drain(scattered)
    passes: dict[str, list[_Pass]] = {name: [] for name in ways}
    with _one_thread():
        for turn in range(settings.repeats + 1):
            for name, work in ways.items():
                measured = _timed(work)
                if turn:
                    passes[name].append(measured)
    return _summary(passes, clip)


def _summary(passes: Mapping[str, Sequence[_Pass]], clip: int) -> dict[str, Any]:
    """Medians over the turns, of the rates and of their ratios to ``raw_sequential`` in the same turn.

    How fast a shared machine is changes from turn to turn; a ratio within a turn changes less.  What other processes
    take from this one shows in the wall clock, but not in the time that it computed (``cpu_*``); where workers decode,
    that says nothing and is left out.
    """
    raw = passes["raw_sequential"]
    result: dict[str, Any] = {}
    for name, kept in passes.items():
        rates = [measured.frames / measured.seconds for measured in kept]
        entry = {
            "frames_per_s": round(median(rates), 2),
            "clips_per_s": round(median(rates) / clip, 2),
            "ratio_to_raw": round(
                median(rate * bare.seconds / bare.frames for rate, bare in zip(rates, raw, strict=True)), 3
            ),
        }
        if "_workers_" not in name or name.endswith("_workers_0"):
            costs = [measured.cpu / measured.frames for measured in kept]
            entry["cpu_ms_per_frame"] = round(1000 * median(costs), 3)
            entry["cpu_ratio_to_raw"] = round(
                median(bare.cpu / bare.frames / cost for cost, bare in zip(costs, raw, strict=True)), 3
            )
        result[name] = entry
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

    return {**machine(), "decord": decord.__version__, "av": av.__version__}


def table(result: Mapping[str, Any]) -> str:
    """Throughput, caches and memory as text."""
    keys = ("frames_per_s", "clips_per_s", "ratio_to_raw", "cpu_ms_per_frame", "cpu_ratio_to_raw")
    rows = [
        [backend, name, *(entry.get(key) for key in keys)]
        for backend, ways in result["backends"].items()
        for name, entry in ways.items()
    ]
    rows += [["cache", kind, entry["frames_per_s"], entry["clips_per_s"]] + [None] * 3
             for kind, entry in result["caches"].items()]  # fmt: skip
    film = result["video"]
    return (
        f"{film['name']} film, {film['size'][0]}x{film['size'][1]}, {film['frames']} frames, "
        f"clips of {result['clip_frames']}\n"
        + draw_table(["backend", "way", "frames/s", "clips/s", "to raw", "CPU ms/frame", "CPU to raw"], rows)
        + "".join(
            f"\nmemory over {memory['reads']} random clips ({backend}): {memory['before_mb']:.0f} MB before, "
            f"{memory['peak_mb']:.0f} MB at most, {memory['slope_mb_per_1000_reads']:+.2f} MB per 1000 clips"
            for backend, memory in result["memory"].items()
        )
    )
