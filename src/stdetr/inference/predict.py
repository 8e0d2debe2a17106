"""``stdetr predict``: run a checkpoint on videos and write the predictions and pictures of them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from stdetr import checkpoint
from stdetr import config as configs
from stdetr.data.coco_vid import read_coco_vid
from stdetr.inference.detector import Detector
from stdetr.inference.journal import FINISHED, Journal, fingerprint
from stdetr.inference.predictions import VideoPredictions
from stdetr.inference.sampling import can_record, draw_sampling, most_confident_window
from stdetr.names import did_you_mean, nearest_file
from stdetr.stitch.association import StitchRules
from stdetr.structures import Tubes
from stdetr.video.open import list_sources, open_source
from stdetr.video.source import VideoSource

PROGRESS = ".progress.jsonl"
WRITE_SECONDS = 60.0  # from one writing of the results so far to the next
# Keys that may differ between an interrupted run and the one that goes on.
_FREE_KEYS = ("output_dir", "paths", "source", "shard", "on_error", "device", "trust")
DETECTOR_KEYS = (
    "clip_length", "overlap", "step", "top_k", "score_threshold", "presence_threshold", "batch_size", "precision",
)  # fmt: skip


def run(cfg: DictConfig) -> list[VideoPredictions]:
    """Predict as ``cfg`` (conf/predict.yaml) says; returns the predictions it wrote, one per video.

    Several videos have a folder each, named after them.  A video that cannot be read is reported at the end.  What an
    interrupted run of the same command has left is not done again.

    Raises ValueError and FileNotFoundError with one line for a user's mistake; nothing is written before the checkpoint
    and the source are open.
    """
    for key, what in (
        ("checkpoint", "the run folder or checkpoint to use"),
        ("source", "a video file, a folder of frames or videos, a glob pattern or a list of these"),
        ("output_dir", "the folder to write into"),
    ):
        if not cfg.get(key):
            raise ValueError(f"{key} is missing: give {key}=..., {what}")
    sources, root = list_sources(cfg.source), Path(cfg.output_dir)
    folders = [root] if len(sources) == 1 else [root / name for name in _names(sources)]
    rank, shards = _shard(cfg.shard)
    jobs = list(zip(sources, folders, strict=True))[rank::shards]
    # Fails early if the annotation file or a video's name in it is wrong.
    image_ids = {source: image_ids_of(cfg.annotations, source) for source, _ in jobs} if cfg.annotations else {}
    detector = Detector.from_checkpoint(
        cfg.checkpoint,
        device=cfg.device,
        trust=cfg.trust,
        rules=StitchRules(**configs.instantiate(cfg.stitch)),
        **{key: cfg[key] for key in DETECTOR_KEYS},
    )
    done, faults, journals = [], [], []
    for source, folder in jobs:
        try:
            done += _predict(cfg, detector, source, folder, image_ids.get(source), journals)
        except (ValueError, FileNotFoundError) as error:
            if len(sources) == 1:
                raise
            faults.append(f"{source}: {error}" if source not in str(error) else str(error))
            print(f"{faults[-1]}", flush=True)
    if faults:
        raise ValueError(f"{len(faults)} of {len(jobs)} videos failed, the others are done: {'; '.join(faults)}")
    for journal in journals:
        journal.close(remove=True)
    return done


def _predict(
    cfg: DictConfig,
    detector: Detector,
    source: str,
    folder: Path,
    image_ids: dict[int, int] | None,
    journals: list[Journal],
) -> list[VideoPredictions]:
    """Predict one video and write its files; empty where an interrupted run has done that."""
    video = open_source(source, on_corrupt=cfg.on_corrupt)
    settings = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in _FREE_KEYS])
    key = fingerprint(settings, checkpoint.find_weights(cfg.checkpoint), source)
    journal = Journal(folder / PROGRESS, key)
    journals.append(journal)
    if journal.finished:
        print(f"{source}: done by the run before", flush=True)
        return []
    configs.save_config(OmegaConf.merge(cfg, {"shard": None}), folder / "predict.yaml")  # pyright: ignore[reportArgumentType]
    if journal.records:
        print(f"{source}: goes on after {journal.records} windows of the run before", flush=True)

    def write(found: VideoPredictions) -> list[tuple[str, Path]]:
        return [
            ("detections", found.to_coco(folder / "predictions.json", image_ids=image_ids)),
            ("detections", found.to_csv(folder / "detections.csv")),
            ("tracks", found.to_mot(folder / "tracks.txt")),
        ]

    started, written_at = time.perf_counter(), time.perf_counter()
    total, info = _frames_ahead(video, cfg.start, cfg.max_frames, detector.step), detector.info(source, video)
    clips: list[Tubes] = []
    stream = detector.stream(video, start=cfg.start, max_frames=cfg.max_frames, on_error=cfg.on_error, journal=journal)
    fault = None
    try:
        for clip in _with_progress(stream, total):
            clips.append(clip)
            if time.perf_counter() - written_at > WRITE_SECONDS:
                write(VideoPredictions.from_clips(clips, info, detector.classes).filled(cfg.fill_gap))
                written_at = time.perf_counter()
    except ValueError as error:
        if not clips:
            raise
        fault = error
    predictions = VideoPredictions.from_clips(clips, info, detector.classes).filled(cfg.fill_gap)
    frames = predictions.info.frame_index
    if not frames:
        raise ValueError(f"source={source}: no frame at or after start={cfg.start}")
    speed = len(frames) / max(time.perf_counter() - started, 1e-9)
    said = f"{predictions.info.name}: {_counts(predictions)}, {speed:.1f} frames/s on {detector.device}"
    for count, what in ((total - len(frames), "left out"), (len(video.corrupt), "damaged and kept")):
        said += f", {count} frames {what}" if count and fault is None else ""
    print(said, flush=True)

    written = write(predictions)
    if cfg.sampling_figure and can_record(detector):
        window = most_confident_window(predictions, detector.clip_length)
        written.append(("sampled points", draw_sampling(detector, video, window, folder / "sampling.png",
                                                        predictions=predictions, **cfg.viz.sampling)))  # fmt: skip
    elif cfg.sampling_figure:
        print("sampling.png is not written: this model samples no points (dense attention)", flush=True)
    if cfg.overlay:
        painter = configs.instantiate(cfg.viz.overlay)(detector.classes)
        overlay = predictions.render(
            folder / "overlay.mp4", overlay=painter, source=video, crf=cfg.viz.crf, progress=True
        )
        written.insert(0, ("video", overlay))
    video.close()
    for what, path in written:
        print(f"  {what:15s} {path}", flush=True)
    if fault is not None:
        raise ValueError(
            f"{fault}: the results in {folder} end at frame {frames[-1]}; with on_error=skip the same command goes on "
            "and leaves such frames out"
        )
    journal.append(FINISHED)
    return [predictions]


def _names(sources: Sequence[str]) -> list[str]:
    """A folder name for each source: its stem, or its name where the stems are alike, or those with a number."""
    for name in (lambda path: path.stem, lambda path: path.name):
        names = [name(Path(source)) for source in sources]
        if len(set(names)) == len(names):
            return names
    return [f"{number}_{name}" for number, name in enumerate(names)]


def _shard(text: str | None) -> tuple[int, int]:
    """(i, n) of the key ``shard=i/n``; by default the rank of this process, if ``torchrun`` or ``srun`` started it."""
    if text is None:
        rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
        return int(rank), int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")))
    number, _, count = str(text).partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"shard={text} must be i/n with i from 0 to n - 1, as shard=0/4")
    return int(number), int(count)


def image_ids_of(annotations: str | Path, source: str) -> dict[int, int]:
    """Frame number -> image id of the video ``source`` in a CocoVID file.

    The video is the one whose ``file_name`` or ``name`` ends like ``source`` (with or without suffix), or the only one.
    Raises ValueError when none does, naming the nearest.
    """
    file = Path(annotations)
    if not file.is_file():
        raise FileNotFoundError(f"annotations={annotations} does not exist{nearest_file(file)}")
    index = read_coco_vid(file, strict=False)
    names: dict[str, int] = {}
    for video in range(index.videos):
        for name in filter(None, (index.video_names[video], index.video_files[video])):
            names[Path(name).name] = names[Path(name).stem] = video
    path = Path(source)
    chosen = names.get(path.name, names.get(path.stem, 0 if index.videos == 1 else None))
    if chosen is None:
        raise ValueError(f"annotations={annotations} has no video named {path.name}{did_you_mean(path.name, names)}")
    rows = slice(*index.video_start[chosen : chosen + 2])
    return dict(zip(index.frame_ids[rows].tolist(), index.image_ids[rows].tolist(), strict=True))


def _frames_ahead(video: VideoSource, start: int, most: int | None, step: int) -> int:
    left = len(range(start, len(video), step))
    return left if most is None else min(left, most)


def _with_progress(clips: Iterator[Tubes], total: int) -> Iterator[Tubes]:
    """The clips, with a progress bar that moves on a terminal and is printed every 15 s elsewhere."""
    every = 0.1 if sys.stderr.isatty() else 15.0
    with tqdm(total=total, desc="predict", unit="frame", dynamic_ncols=True, mininterval=every, delay=every) as bar:
        for clip in clips:
            bar.update(len(clip.frame_index))
            yield clip


def _counts(predictions: VideoPredictions) -> str:
    ids = {int(track) for track in predictions.track_ids if track >= 0}
    return f"{len(predictions.info.frame_index)} frames, {len(predictions)} detections, {len(ids)} tracks"
