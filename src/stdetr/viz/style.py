"""Colours, fonts and scaling that every picture of the project shares."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

# Eighteen hues that differ clearly from their neighbours on dark and light frames; a track keeps its colour.
TRACK_COLOURS = (
    "#FF4D4D", "#2FBF71", "#3D8BFF", "#FFC53D", "#B36BFF", "#FF8A3D", "#22C7D6", "#FF5CA8", "#9BD23C",
    "#7A7DFF", "#00B894", "#E0A100", "#F06EFF", "#5BB8FF", "#C96A4B", "#66D9A3", "#D65C7A", "#B5B14A",
)  # fmt: skip
UNCONFIRMED = "#9AA0A6"
# Fine to coarse; far apart for colour-blind readers as well (Okabe and Ito's palette, reordered).
LEVEL_COLOURS = ("#56B4E9", "#F0E442", "#E69F00", "#D55E00", "#CC79A7", "#009E73")


def track_colour(track_id: int) -> str:
    """The hex colour of a track; grey for -1, a track without an id."""
    return UNCONFIRMED if track_id < 0 else TRACK_COLOURS[track_id % len(TRACK_COLOURS)]


def text_colour(background: str) -> str:
    """Black or white, whichever reads better on ``background`` (hex)."""
    red, green, blue = (int(background[i : i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#FFFFFF"


@cache
def font_path(bold: bool = True) -> str:
    """DejaVu Sans, which comes with matplotlib, so that every machine draws the same letters."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)


def display_scale(size: tuple[int, int], min_side: int) -> int:
    """The smallest integer factor that makes the short side of an (h, w) frame at least ``min_side`` pixels."""
    return max(1, math.ceil(min_side / min(size)))


def enlarge(frame: np.ndarray, scale: int) -> np.ndarray:
    """h,w,3 uint8 enlarged by an integer factor; always a copy that may be drawn on."""
    if scale == 1:
        return frame.copy()
    height, width = frame.shape[:2]
    enlarged = Image.fromarray(frame).resize((width * scale, height * scale), Image.Resampling.LANCZOS)
    return np.array(enlarged)
