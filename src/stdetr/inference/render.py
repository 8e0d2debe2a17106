"""The overlay video of a video's predictions: the source is read a second time, so nothing has to be kept."""

from __future__ import annotations

import sys
from pathlib import Path

from tqdm import tqdm

from stdetr.inference.predictions import VideoPredictions
from stdetr.video.open import open_source
from stdetr.video.source import VideoSource
from stdetr.viz.overlay import Overlay, frame_caption
from stdetr.viz.video import VideoWriter

# Image folders have no clock.
DEFAULT_FPS = 10.0


def render_video(
    predictions: VideoPredictions,
    path: str | Path,
    *,
    overlay: Overlay | None = None,
    source: VideoSource | None = None,
    crf: int = 20,
    progress: bool = False,
) -> Path:
    """Draw the frames that were looked at, at the source's speed; returns ``path``.

    source: where to read the frames if not from ``predictions.info.source``.  Raises ValueError when no frame was
    looked at.
    """
    info = predictions.info
    if not info.frame_index:
        raise ValueError(f"{info.name} has no frame to draw")
    painter = overlay if overlay is not None else Overlay(predictions.classes)
    painter.reset()
    frames = list(info.frame_index)
    step = frames[1] - frames[0] if len(frames) > 1 else 1
    opened = source if source is not None else open_source(info.source)
    fps = (info.fps if info.fps > 0 else DEFAULT_FPS) / step
    shown = tqdm(
        opened.iterate(frames[0], frames[-1] + 1, step),
        total=len(frames), desc="overlay", unit="frame", disable=not (progress and sys.stderr.isatty()),
    )  # fmt: skip
    with VideoWriter(path, fps, crf=crf) as writer:
        for index, frame in shown:
            writer.write(painter.draw(frame, **predictions.on_frame(index), caption=frame_caption(index, info.fps)))
    return Path(path)
