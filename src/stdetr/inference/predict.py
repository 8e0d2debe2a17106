"""``stdetr predict``: run a checkpoint on a video and write the predictions and pictures of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from stdetr import config as configs
from stdetr.config.names import did_you_mean, nearest_file
from stdetr.data.coco_vid import read_coco_vid
from stdetr.inference.detector import Detector
from stdetr.inference.predictions import VideoPredictions
from stdetr.inference.sampling import can_record, draw_sampling, most_confident_window
from stdetr.stitch.association import StitchRules
from stdetr.structures import Tubes
from stdetr.video.source import VideoSource

DETECTOR_KEYS = (
    "clip_length", "overlap", "step", "top_k", "score_threshold", "presence_threshold", "batch_size", "precision",
)  # fmt: skip


def run(cfg: DictConfig) -> VideoPredictions:
    """Predict as ``cfg`` (conf/predict.yaml) says; returns the predictions it wrote.

    Raises ValueError and FileNotFoundError with one line for a user's mistake; nothing is written before the checkpoint
    and the source are open.
    """
    for key, what in (
        ("checkpoint", "the run folder or checkpoint to use"),
        ("source", "a video file, a folder of frames or a glob pattern"),
        ("output_dir", "the folder to write into"),
    ):
        if not cfg.get(key):
            raise ValueError(f"{key} is missing: give {key}=..., {what}")
    # Fails early if the annotation file or the video's name in it is wrong.
    image_ids = image_ids_of(cfg.annotations, cfg.source) if cfg.annotations else None
    detector = Detector.from_checkpoint(
        cfg.checkpoint,
        device=cfg.device,
        rules=StitchRules(**configs.instantiate(cfg.stitch)),
        **{key: cfg[key] for key in DETECTOR_KEYS},
    )
    video = detector.open(cfg.source)
    folder = Path(cfg.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    configs.save_config(cfg, folder / "predict.yaml")

    started = time.perf_counter()
    clips = detector.stream(video, start=cfg.start, max_frames=cfg.max_frames)
    total = _frames_ahead(video, cfg.start, cfg.max_frames, detector.step)
    predictions = VideoPredictions.from_clips(
        _with_progress(clips, total), detector.info(cfg.source, video), detector.classes
    ).filled(cfg.fill_gap)
    speed = len(predictions.info.frame_index) / max(time.perf_counter() - started, 1e-9)
    print(f"{predictions.info.name}: {_counts(predictions)}, {speed:.1f} frames/s on {detector.device}", flush=True)
    if not predictions.info.frame_index:
        raise ValueError(f"source={cfg.source}: no frame at or after start={cfg.start}")

    written = [
        ("detections", predictions.to_coco(folder / "predictions.json", image_ids=image_ids)),
        ("detections", predictions.to_csv(folder / "detections.csv")),
        ("tracks", predictions.to_mot(folder / "tracks.txt")),
    ]
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
    return predictions


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
