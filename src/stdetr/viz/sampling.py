"""The figure of where a tube sampled: its points over the frames of a clip.

Shape legend
    Q tubes    T frames of the clip    H heads, F sampled frames, L levels, K points    h, w pixels of the source frame

A row is a tube.  Its first column shows where in the frame it is; the others show, for every frame of the clip, the
part around the tube with the points that the last decoder layer sampled there *on behalf of one frame* (marked), the
colour telling the level, the area the attention weight, and the reference box that the sampling started from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stdetr.atomic import replacing
from stdetr.structures import SamplingRecord
from stdetr.viz.style import LEVEL_COLOURS, TRACK_COLOURS

BACKGROUND, FOREGROUND, MUTED = "#FFFFFF", "#1B1F24", "#6A737D"


@dataclass(frozen=True)
class SampledPoints:
    """The points of one tube on one frame of the clip: xy n,2 in pixels; weight n, sums to 1 over the clip; level n."""

    xy: np.ndarray
    weight: np.ndarray
    level: np.ndarray


def points_on_frame(
    record: SamplingRecord, tube: int, seen_from: int, frame: int, size: tuple[int, int]
) -> SampledPoints:
    """Everything that ``tube``, in its state of frame ``seen_from``, sampled on ``frame``; size (h, w) in pixels."""
    slots = (record.frames[seen_from] == frame).nonzero().flatten()
    heads = record.weights.shape[2]
    locations = record.locations[tube, seen_from][:, slots]  # H,f,L,K,2
    weights = record.weights[tube, seen_from][:, slots]
    levels = torch.arange(locations.shape[2])[None, None, :, None].expand(locations.shape[:-1])
    scale = torch.tensor([size[1], size[0]], dtype=torch.float32)
    return SampledPoints(
        (locations.float() * scale).reshape(-1, 2).numpy(),
        weights.float().reshape(-1).numpy() / heads,
        levels.reshape(-1).numpy(),
    )


def sampling_figure(
    frames: np.ndarray,
    record: SamplingRecord,
    path: str | Path,
    *,
    tubes: Sequence[int],
    titles: Sequence[str] = (),
    colours: Sequence[str] | None = None,
    boxes: Tensor | None = None,
    seen_from: int | None = None,
    frame_index: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    title: str = "",
    points: int = 256,
    columns: int = 7,
    dpi: int = 130,
) -> Path:
    """Draw the figure into ``path`` (PNG, SVG or PDF by its suffix) and return it.

    frames:      T,h,w,3 uint8 RGB
    tubes:       the rows, as indices into the record's Q, most confident first
    titles:      one line per row, such as ``#3 dog 0.91``
    colours:     one hex colour per row, such as its track's; default one after the other
    boxes:       optional Q,T,4 cxcywh in [0,1]: the final boxes, drawn dashed beside the references
    seen_from:   the frame, of the T, that samples (default: the middle one)
    frame_index: T source frame numbers for the column heads
    strides:     pixels a level's cell covers, for the legend
    points:      at most this many points per picture, those with the largest weights
    columns:     at most this many frames, evenly spread over the clip around ``seen_from``

    Raises ValueError when the record does not belong to the frames or a tube does not exist.
    """
    import matplotlib as mpl

    mpl.use("Agg", force=False)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    length, height, width = frames.shape[:3]
    if record.frames.shape[0] != length or record.boxes.shape[1] != length:
        raise ValueError(f"the record is of a clip of {record.frames.shape[0]} frames, got {length} frames")
    for tube in tubes:
        if not 0 <= tube < record.boxes.shape[0]:
            raise ValueError(f"tube {tube} does not exist, the record has {record.boxes.shape[0]}")
    if not tubes:
        raise ValueError("no tube to draw: no detection of the clip is above the threshold; lower score_threshold")
    asking = length // 2 if seen_from is None else seen_from
    numbers = list(range(length)) if frame_index is None else [int(number) for number in frame_index]

    shown = _columns(length, asking, columns)
    samples = {
        tube: [points_on_frame(record, tube, asking, t, (height, width)) for t in range(length)] for tube in tubes
    }
    largest = max(float(sample.weight.max(initial=0)) for row in samples.values() for sample in row) or 1.0
    legend = _legend_items(record.locations.shape[4], strides, boxes is not None, largest)

    cell, gap, between = 1.75, 0.08, 0.34
    total_w = (len(shown) + 1) * (cell + gap) + 0.3
    per_line = max(1, int(total_w / 1.4))
    head, foot = (0.82 if title else 0.5), 0.25 + 0.2 * math.ceil(len(legend) / per_line)
    total_h = len(tubes) * (cell + between) + head + foot - between
    figure = Figure(figsize=(total_w, total_h), dpi=dpi, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)

    for row, tube in enumerate(tubes):
        colour = TRACK_COLOURS[row % len(TRACK_COLOURS)] if colours is None else colours[row]
        window = _window(record.boxes[tube], samples[tube], (height, width))
        bottom = (foot + (len(tubes) - 1 - row) * (cell + between)) / total_h
        for column in range(len(shown) + 1):
            place = (0.15 + column * (cell + gap)) / total_w, bottom, cell / total_w, cell / total_h
            axes: Any = figure.add_axes(place)
            axes.set(xticks=[], yticks=[], facecolor="#EEF1F4")
            for spine in axes.spines.values():
                spine.set_color("#D0D7DE")
            if column == 0:
                _context(axes, frames[asking], window, colour)
                _row_title(axes, titles[row] if row < len(titles) else f"tube {tube}", colour)
                continue
            t = shown[column - 1]
            final = None if boxes is None else boxes[tube, t]
            _picture(axes, frames[t], (record.boxes[tube, t], final), samples[tube][t], window, colour, points, largest)
            if t == asking:
                for spine in axes.spines.values():
                    spine.set(color=FOREGROUND, linewidth=2.4)
            if row == 0:
                text = f"frame {numbers[t]}" + (" (query)" if t == asking else "")
                axes.text(0.5, 1.04, text, transform=axes.transAxes, ha="center", va="bottom", fontsize=9,
                          color=FOREGROUND, weight="bold" if t == asking else "normal")  # fmt: skip
    if title:
        figure.text(0.15 / total_w, 1 - 0.16 / total_h, title, fontsize=11, weight="bold", color=FOREGROUND, va="top")
    drawn = figure.legend(handles=legend, loc="lower center", ncol=min(per_line, len(legend)), frameon=False,
                          fontsize=8, handletextpad=0.4, columnspacing=1.2, borderpad=0.1)  # fmt: skip
    for text in drawn.get_texts():
        text.set_color(FOREGROUND)
    with replacing(path) as draft:
        figure.savefig(draft, facecolor=BACKGROUND)
    return Path(path)


def _columns(length: int, asking: int, most: int) -> list[int]:
    """Which of the clip's frames get a column: all, or ``most`` of them evenly spread, ``asking`` always among them."""
    if length <= most:
        return list(range(length))
    spread = np.linspace(0, length - 1, most).round().astype(int)
    spread[np.abs(spread - asking).argmin()] = asking
    return sorted({int(t) for t in spread})


def _window(boxes: Tensor, samples: Sequence[SampledPoints], size: tuple[int, int]) -> tuple[float, float, float]:
    """Centre and side of the square that the row shows: all reference boxes and nearly all sampled weight."""
    height, width = size
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    pixel = (boxes.float() * scale).numpy()
    low, high = pixel[:, :2] - pixel[:, 2:] / 2, pixel[:, :2] + pixel[:, 2:] / 2
    xy = np.concatenate([sample.xy for sample in samples])
    weight = np.concatenate([sample.weight for sample in samples])
    corners = [low.min(0), high.max(0)]
    if weight.sum() > 0:
        corners += [_quantile(xy, weight, 0.03), _quantile(xy, weight, 0.97)]
    first, last = np.min(corners, 0), np.max(corners, 0)
    side = float(np.clip((last - first).max() * 1.25, 0.12 * min(size), max(size)))
    centre = (first + last) / 2
    return float(centre[0]), float(centre[1]), side


def _quantile(xy: np.ndarray, weight: np.ndarray, part: float) -> np.ndarray:
    result = []
    for axis in range(2):
        order = np.argsort(xy[:, axis])
        total = np.cumsum(weight[order])
        result.append(xy[order[np.searchsorted(total, part * total[-1]).clip(0, len(order) - 1)], axis])
    return np.array(result)


def _context(axes: Any, frame: np.ndarray, window: tuple[float, float, float], colour: str) -> None:
    from matplotlib.patches import Rectangle

    height, width = frame.shape[:2]
    axes.imshow(frame, extent=(0, width, height, 0), interpolation="lanczos")
    x, y, side = window
    axes.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, fill=False, color="black", linewidth=3))
    axes.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, fill=False, color=colour, linewidth=1.6))
    reach = max(height, width) / 2
    axes.set_xlim(width / 2 - reach, width / 2 + reach)
    axes.set_ylim(height / 2 + reach, height / 2 - reach)


def _row_title(axes: Any, text: str, colour: str) -> None:
    axes.text(0.0, 1.04, "■", transform=axes.transAxes, ha="left", va="bottom", fontsize=9, color=colour)
    # The heading shares its line with the first column's: long class names are set smaller, then cut.
    shown = text if len(text) <= 30 else f"{text[:29]}…"
    axes.text(0.09, 1.04, shown, transform=axes.transAxes, ha="left", va="bottom", weight="bold", color=FOREGROUND,
              parse_math=False, fontsize=min(9.0, 9.0 * 22 / len(shown)))  # fmt: skip


def _picture(
    axes: Any,
    frame: np.ndarray,
    boxes: tuple[Tensor, Tensor | None],
    sample: SampledPoints,
    window: tuple[float, float, float],
    colour: str,
    most: int,
    largest: float,
) -> None:
    height, width = frame.shape[:2]
    x, y, side = window
    axes.imshow(frame, extent=(0, width, height, 0), interpolation="lanczos")
    # The frame is dimmed so that the points stand out.
    axes.add_patch(_rectangle((x, y, side * 2, side * 2), fill=True, color="black", alpha=0.28, linewidth=0))
    scale = np.array([width, height, width, height])
    reference, final = (None if box is None else tuple(box.float().numpy() * scale) for box in boxes)
    assert reference is not None
    axes.add_patch(_rectangle(reference, fill=False, color="black", linewidth=3.2))
    axes.add_patch(_rectangle(reference, fill=False, color=colour, linewidth=2.0))
    if final is not None:
        axes.add_patch(_rectangle(final, fill=False, color="white", linewidth=1.0, linestyle=(0, (3, 2))))
    heaviest = np.argsort(-sample.weight)[:most]
    # The largest weights first: small dots lie on large ones, not under them.
    heaviest = heaviest[sample.weight[heaviest] > 0]
    colours = [LEVEL_COLOURS[level % len(LEVEL_COLOURS)] for level in sample.level[heaviest]]
    axes.scatter(*sample.xy[heaviest].T, s=_area(sample.weight[heaviest], largest), c=colours, alpha=0.9,
                 linewidths=0.4, edgecolors="black")  # fmt: skip
    axes.set_xlim(x - side / 2, x + side / 2)
    axes.set_ylim(y + side / 2, y - side / 2)
    axes.text(0.97, 0.03, f"{float(sample.weight.sum()):.0%}", transform=axes.transAxes, ha="right", va="bottom",
              fontsize=7.5, color="white", weight="bold",
              bbox={"facecolor": "black", "alpha": 0.55, "pad": 1.5, "linewidth": 0})  # fmt: skip


def _rectangle(box: tuple[float, ...], **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    cx, cy, width, height = box
    return Rectangle((cx - width / 2, cy - height / 2), width, height, **style)


def _area(weight: np.ndarray, largest: float) -> np.ndarray:
    """Marker area in points squared, proportional to the weight, with a floor that keeps light points visible."""
    return 3.0 + 62.0 * weight / largest


def _legend_items(levels: int, strides: Sequence[int] | None, dashed: bool, largest: float) -> list[Any]:
    from matplotlib.lines import Line2D

    def dot(label: str, colour: str, area: float) -> Any:
        return Line2D([], [], marker="o", linestyle="none", label=label, markerfacecolor=colour, markersize=area**0.5,
                      markeredgecolor="black", markeredgewidth=0.4)  # fmt: skip

    items = []
    for level in range(levels):
        stride = f" (stride {strides[level]})" if strides is not None and level < len(strides) else ""
        items.append(dot(f"level {level}{stride}", LEVEL_COLOURS[level % len(LEVEL_COLOURS)], 36))
    for part in (0.25, 1.0):
        items.append(dot(f"weight {part * largest:.2g}", "#C8CED4", float(_area(np.array(part * largest), largest))))
    items.append(Line2D([], [], color=TRACK_COLOURS[0], linewidth=2.0, label="reference box"))
    if dashed:
        items.append(Line2D([], [], color=MUTED, linewidth=1.4, linestyle=(0, (3, 2)), label="final box"))
    items.append(Line2D([], [], linestyle="none", label="%: attention on that frame"))
    return items
