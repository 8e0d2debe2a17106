"""Samples of an annotated split to look at: video with tracks beside the annotation, contact sheet, sampling figure.

Shape legend
    N tracks     T frames shown
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stdetr.data.coco_vid import CocoVid
from stdetr.inference.detector import Detector
from stdetr.inference.looking import can_record, draw_sampling, surest_window
from stdetr.inference.render import DEFAULT_FPS
from stdetr.structures import Tubes
from stdetr.video.frame_folder import FrameFolder
from stdetr.video.open import open_source
from stdetr.video.source import VideoSource
from stdetr.viz.overlay import write_clip
from stdetr.viz.report import contact_sheet, side_by_side


@dataclass(frozen=True)
class Sample:
    """The files of one video: overlay mp4, contact sheet PNG, sampling figure PNG (None: the model samples nothing)."""

    video: str
    overlay: Path
    sheet: Path
    sampling: Path | None


def draw_samples(
    detector: Detector,
    index: CocoVid,
    root: str | Path,
    folder: str | Path,
    *,
    count: int = 2,
    max_frames: int = 60,
    score_threshold: float = 0.4,
    sampling: Mapping[str, Any] | None = None,
    backend: str = "av",
) -> list[Sample]:
    """Run the detector on ``count`` videos of a split, spread over it, and draw what it says into ``folder``.

    root: the folder that the file names of ``index`` are relative to; sampling: keys of ``draw_sampling``
    """
    chosen = np.unique(np.linspace(0, index.videos - 1, min(count, index.videos)).round().astype(int))
    return [
        _draw_video(detector, index, Path(root), int(video), Path(folder), max_frames, score_threshold,
                    dict(sampling or {}), backend)
        for video in chosen
    ]  # fmt: skip


def open_video(index: CocoVid, root: Path, video: int, backend: str = "av") -> tuple[VideoSource, range]:
    """The source of video number ``video`` of an index, and its rows, whose frame numbers count in that source."""
    rows = index.rows(video)
    name = index.video_files[video]
    if name:
        return open_source(root / name, backend=backend), rows
    height, width = (int(side) for side in index.video_sizes[video])
    files = [root / index.image_files[row] for row in rows]
    return FrameFolder(index.video_names[video], files, annotated=(height, width)), rows


def annotated_tubes(index: CocoVid, rows: range, frames: np.ndarray) -> Tubes:
    """The annotations of consecutive ``rows`` as tubes with score 1 (xyxy px), one a track; ``frames`` T names them.

    Ignore regions are left out; a box without a track id is a track of its own.
    """
    found = index.annotations(np.arange(rows.start, rows.stop))
    kept = ~found.ignored
    image, boxes, labels = found.image[kept], found.boxes[kept], found.labels[kept]
    tracks = np.where(found.tracks[kept] >= 0, found.tracks[kept], -1 - np.arange(int(kept.sum())))
    ids, row = np.unique(tracks, return_inverse=True)
    shape = (len(ids), len(frames))
    dense, present, classes = torch.zeros(*shape, 4), torch.zeros(shape, dtype=torch.bool), torch.zeros(len(ids))
    where = torch.from_numpy(row), torch.from_numpy(image)
    dense[where], present[where] = torch.from_numpy(boxes), True
    classes[where[0]] = torch.from_numpy(labels).float()
    return Tubes(
        boxes=dense,
        scores=present.float(),
        labels=classes.long(),
        track_ids=torch.from_numpy(ids.astype(np.int64)).clamp_min(-1),
        frame_index=torch.from_numpy(frames.astype(np.int64)),
        tube_scores=torch.ones(len(ids)),
        present=present,
    )


def _draw_video(
    detector: Detector,
    index: CocoVid,
    root: Path,
    video: int,
    folder: Path,
    max_frames: int,
    score_threshold: float,
    sampling: dict[str, Any],
    backend: str,
) -> Sample:
    source, rows = open_video(index, root, video, backend)
    rows = rows[:max_frames]
    # Frames of an image folder are numbered by their place in it; of a video file by the decoder.
    numbered = bool(index.video_files[video])
    numbers = index.frame_ids[rows.start : rows.stop] if numbered else np.arange(len(rows))
    if len(numbers) > 1 and (np.diff(numbers) != 1).any():
        gap = int((np.diff(numbers) != 1).argmax()) + 1
        rows, numbers = rows[:gap], numbers[:gap]  # a stretch without a break, as the detector takes it
    predictions = detector.predict(source, start=int(numbers[0]), max_frames=len(numbers))
    sure = predictions.select(predictions.scores >= score_threshold)
    pixels = source.read(numbers.tolist())
    pair = [("annotated", annotated_tubes(index, rows, numbers)), ("detected", sure.tubes())]
    stem = Path(index.video_names[video] or f"video{index.video_ids[video]}").stem
    names = detector.classes
    fps = source.fps if source.fps > 0 else DEFAULT_FPS
    drawn = side_by_side(iter(pixels), pair, names, score_threshold=score_threshold, fps=source.fps)
    overlay = write_clip(folder / f"{stem}_overlay.mp4", drawn, fps)
    sheet = contact_sheet(
        pixels, pair, names, folder / f"{stem}_sheet.png", score_threshold=score_threshold, title=stem
    )
    figure = None
    if can_record(detector):
        window = surest_window(predictions, detector.clip_length)
        figure = draw_sampling(detector, source, window, folder / f"{stem}_sampling.png", predictions=predictions,
                               **sampling)  # fmt: skip
    return Sample(stem, overlay, sheet, figure)
