"""Annotations and predictions of a clip next to each other, as one picture or as one video.

Shape legend
    N tubes or tracks     T frames of a clip     h, w pixels of the frame
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stdetr.atomic import replacing
from stdetr.structures import ClassNames, Tubes
from stdetr.viz.overlay import Overlay, frame_caption
from stdetr.viz.style import display_scale, font_path

_BACKGROUND, _INK = (255, 255, 255), (27, 31, 36)


def contact_sheet(
    frames: np.ndarray,
    rows: Sequence[tuple[str, Tubes]],
    classes: ClassNames | Sequence[str],
    path: str | Path,
    *,
    score_threshold: float = 0.4,
    columns: int = 6,
    cell: int = 300,
    title: str = "",
) -> Path:
    """One picture: a row for each of ``rows`` (heading, tubes), a column for each frame.

    frames: T,h,w,3 uint8 RGB; tubes of the same T frames, in pixels of them
    columns: at most this many frames, evenly spread; cell: minimum short side of a drawn frame in pixels

    Raises ValueError when there is nothing to show or a row is of another clip.
    """
    if not rows or not len(frames):
        raise ValueError("a contact sheet needs at least one row and one frame")
    for heading, tubes in rows:
        if len(tubes.frame_index) != len(frames):
            raise ValueError(f"row {heading!r} has {len(tubes.frame_index)} frames, the clip has {len(frames)}")
    shown = np.unique(np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int))
    scale = display_scale((frames.shape[1], frames.shape[2]), cell)
    height, width = frames.shape[1] * scale, frames.shape[2] * scale
    letters = max(14, round(min(height, width) / 17))
    big, small = (ImageFont.truetype(font_path(bold), letters) for bold in (True, False))
    gap, strip = max(4, letters // 3), round(letters * 1.9)
    top = strip if title else 0
    sheet = Image.new(
        "RGB",
        (gap + len(shown) * (width + gap), top + strip + len(rows) * (height + strip) + gap),
        _BACKGROUND,
    )
    canvas = ImageDraw.Draw(sheet)
    if title:
        canvas.text((gap, strip / 2), title, font=big, fill=_INK, anchor="lm")
    for column, t in enumerate(shown):
        middle = gap + column * (width + gap) + width / 2
        text = frame_caption(int(rows[0][1].frame_index[t]), 0.0)
        canvas.text((middle, top + strip / 2), text, font=small, fill=_INK, anchor="mm")
    for row, (heading, tubes) in enumerate(rows):
        y = top + strip + row * (height + strip)
        canvas.text((gap, y + strip / 2), heading, font=big, fill=_INK, anchor="lm")
        for column, t in enumerate(shown):
            picture = _painter(classes, score_threshold, cell, tubes).draw_tubes(frames[t], tubes, int(t))
            sheet.paste(Image.fromarray(picture), (gap + column * (width + gap), y + strip))
    with replacing(path) as draft:
        sheet.save(draft)
    return Path(path)


def side_by_side(
    frames: Iterator[np.ndarray] | np.ndarray,
    rows: Sequence[tuple[str, Tubes]],
    classes: ClassNames | Sequence[str],
    *,
    score_threshold: float = 0.4,
    fps: float = 0.0,
    min_side: int = 360,
    trail: int = 15,
) -> Iterator[np.ndarray]:
    """The frames of a clip drawn once for each of ``rows`` (heading, tubes), left to right below the headings."""
    painters = [_painter(classes, score_threshold, min_side, tubes, trail) for _, tubes in rows]
    for t, frame in enumerate(frames):
        scale = display_scale((frame.shape[0], frame.shape[1]), min_side)
        letters = max(13, round(min(frame.shape[:2]) * scale / 24))
        font = ImageFont.truetype(font_path(), letters)
        strip, gap = round(letters * 1.8), 6
        width, height = frame.shape[1] * scale, frame.shape[0] * scale
        sheet = Image.new("RGB", (len(rows) * (width + gap) - gap, height + strip), _BACKGROUND)
        canvas = ImageDraw.Draw(sheet)
        for column, ((heading, tubes), painter) in enumerate(zip(rows, painters, strict=True)):
            caption = frame_caption(int(tubes.frame_index[t]), fps) if column == 0 else ""
            picture = painter.draw_tubes(frame, tubes, t, caption=caption)
            x = column * (width + gap)
            canvas.text((x + gap, strip / 2), heading, font=font, fill=_INK, anchor="lm")
            sheet.paste(Image.fromarray(picture), (x, strip))
        yield np.asarray(sheet)


def _painter(
    classes: ClassNames | Sequence[str], threshold: float, min_side: int, tubes: Tubes, trail: int = 0
) -> Overlay:
    # Annotations have score 1 everywhere; writing it would say nothing.
    certain = bool(len(tubes)) and bool((tubes.scores[tubes.present] == 1).all())
    return Overlay(classes, score_threshold=threshold, trail=trail, min_side=min_side, show_scores=not certain)
