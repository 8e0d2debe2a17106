"""Sample pictures of an annotated split: video with tracks next to annotations, contact sheet, sampling figure.

Shape legend
    N tracks     T frames shown
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stdetr.data.coco_vid import CocoVid
from stdetr.inference.detector import Detector
from stdetr.inference.sampling import can_record, draw_sampling, most_confident_window
from stdetr.video.encode import write_video
from stdetr.viz.annotations import annotated_tubes, open_video
from stdetr.viz.overlay import DEFAULT_FPS
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
    on_corrupt: str = "stop",
) -> list[Sample]:
    """Run the detector on ``count`` videos spread over a split and draw the predictions into ``folder``.

    root: the folder that the file names of ``index`` are relative to; sampling: keys of ``draw_sampling``
    """
    folder, samples = Path(folder), []
    chosen = np.unique(np.linspace(0, index.videos - 1, min(count, index.videos)).round().astype(int))
    for video in chosen.tolist():
        rows = index.rows(video)[:max_frames]
        source, numbers = open_video(index, Path(root), video, rows, backend, on_corrupt)
        if len(numbers) > 1 and (np.diff(numbers) != 1).any():
            gap = int((np.diff(numbers) != 1).argmax()) + 1
            rows, numbers = rows[:gap], numbers[:gap]  # the detector needs consecutive frames
        with closing(source):
            predictions = detector.predict(source, start=int(numbers[0]), max_frames=len(numbers))
            pixels = source.read(numbers.tolist())
            stem = Path(index.video_names[video] or f"video{index.video_ids[video]}").stem
            figure = None
            if can_record(detector):
                window = most_confident_window(predictions, detector.clip_length)
                figure = draw_sampling(detector, source, window, folder / f"{stem}_sampling.png",
                                       predictions=predictions, **(sampling or {}))  # fmt: skip
        confident = predictions.select(predictions.scores >= score_threshold)
        pair = [("annotated", annotated_tubes(index, rows, numbers)), ("detected", confident.tubes())]
        look: dict[str, Any] = {"classes": detector.classes, "score_threshold": score_threshold}
        drawn = side_by_side(pixels, pair, fps=source.fps, **look)
        overlay = write_video(folder / f"{stem}_overlay.mp4", drawn, source.fps if source.fps > 0 else DEFAULT_FPS)
        sheet = contact_sheet(pixels, pair, path=folder / f"{stem}_sheet.png", title=stem, **look)
        samples.append(Sample(stem, overlay, sheet, figure))
    return samples
