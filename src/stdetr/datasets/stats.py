"""``stdetr data action=stats``: boxes, tracks, sizes and motion speed of an annotation file, as a table and a figure.

Array legend
    A boxes that count (no ignore regions)     P pairs of consecutive boxes of one track
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stdetr.atomic import replacing
from stdetr.data.coco_vid import CocoVid, read_coco_vid
from stdetr.names import printable

# COCO's limits of small and medium, as the side of a square in pixels.
SMALL, MEDIUM = 32.0, 96.0
_BARS = 30


@dataclass(frozen=True)
class Statistics:
    """Columns over boxes and pairs; ``index`` names the classes.

    side A px (square root of the area), label A, speed_px P (centre, px per frame), speed_rel P (the same, in sides per
    frame), speed_label P, track_length per track (frames from first to last box), track_label per track
    """

    index: CocoVid
    ignored: int
    side: np.ndarray
    label: np.ndarray
    speed_px: np.ndarray
    speed_rel: np.ndarray
    speed_label: np.ndarray
    track_length: np.ndarray
    track_label: np.ndarray


def measure(path: Path) -> Statistics:
    """Read and measure one file.

    Speeds are taken between consecutive annotated boxes of one track, divided by the frames in between.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a CocoVID file.
    """
    index = read_coco_vid(path, strict=False)
    rows = np.repeat(np.arange(index.images), np.diff(index.annotation_start))
    video = np.searchsorted(index.video_start, rows, side="right") - 1
    valid = ~index.ignored
    boxes = index.boxes[valid].astype(np.float64)
    label, track = index.labels[valid], index.tracks[valid]
    frame, video = index.frame_ids[rows][valid], video[valid]
    size = boxes[:, 2:] - boxes[:, :2]
    side = np.sqrt(size.prod(axis=1))
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2

    tracked = np.flatnonzero(track >= 0)
    order = tracked[np.lexsort((frame[tracked], track[tracked], video[tracked]))]
    same = (np.diff(track[order]) == 0) & (np.diff(video[order]) == 0)
    steps = np.diff(frame[order])[same]
    first, second = order[:-1][same], order[1:][same]
    speed_px = np.linalg.norm(centre[second] - centre[first], axis=1) / steps
    starts = np.flatnonzero(np.concatenate([[True], ~same])) if len(order) else np.zeros(0, dtype=np.int64)
    stops = np.append(starts[1:], len(order)) - 1 if len(order) else starts
    return Statistics(
        index=index,
        ignored=int(index.ignored.sum()),
        side=side,
        label=label,
        speed_px=speed_px,
        speed_rel=speed_px / ((side[first] + side[second]) / 2),
        speed_label=label[first],
        track_length=frame[order[stops]] - frame[order[starts]] + 1,
        track_label=label[order[starts]],
    )


_COLUMNS = (
    ("boxes", 9),
    ("tracks", 8),
    ("small %", 9),
    ("medium %", 9),
    ("large %", 9),
    ("side px", 9),
    ("length", 8),
    ("px/frame", 10),
    ("sides/frame", 12),
)


def table(statistics: Statistics) -> str:
    """Lines of text: one row per class that has boxes, then all.  Sizes, lengths and speeds are medians."""
    index = statistics.index
    per_frame = len(statistics.side) / index.images
    lines = [
        f"{index.path}: {index.videos} videos, {index.images} frames, {len(statistics.side)} boxes "
        f"({per_frame:.2f} per frame), {statistics.ignored} ignore regions, {len(statistics.track_length)} tracks",
    ]
    width = max([len("class"), *(len(name) for name in index.classes.names)]) + 2
    lines.append("class".ljust(width) + "".join(name.rjust(space) for name, space in _COLUMNS))
    for number, name in enumerate(map(printable, index.classes.names)):
        if (statistics.label == number).any():
            lines.append(name.ljust(width) + _row(statistics, number))
    return "\n".join([*lines, "all".ljust(width) + _row(statistics, None)])


def _row(statistics: Statistics, number: int | None) -> str:
    def pick(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return values if number is None else values[labels == number]

    side = pick(statistics.side, statistics.label)
    length = pick(statistics.track_length, statistics.track_label)
    shares = [100 * share for share in size_shares(side)]
    values = [
        f"{len(side)}",
        f"{len(length)}",
        *(f"{share:.1f}" for share in shares),
        _median(side, 1),
        _median(length, 0),
    ]
    values.append(_median(pick(statistics.speed_px, statistics.speed_label), 2))
    values.append(_median(pick(statistics.speed_rel, statistics.speed_label), 3))
    return "".join(value.rjust(space) for value, (_, space) in zip(values, _COLUMNS, strict=True))


def size_shares(side: np.ndarray) -> tuple[float, float, float]:
    """Shares of small, medium and large boxes by COCO's areas (32^2 and 96^2); zeros without boxes."""
    if not len(side):
        return 0.0, 0.0, 0.0
    small, large = float((side < SMALL).mean()), float((side >= MEDIUM).mean())
    return small, 1.0 - small - large, large


def _median(values: np.ndarray, digits: int) -> str:
    return f"{np.median(values):.{digits}f}" if len(values) else "-"


def plot(statistics: Statistics, path: Path) -> Path:
    """Write the figure: boxes per class, box sides, track lengths, speeds.  The suffix chooses the format (.png)."""
    import matplotlib
    from matplotlib.figure import Figure

    if path.suffix.lower() not in (".png", ".pdf", ".svg", ".jpg"):
        raise ValueError(f"output={path}: the figure is a .png, .pdf, .svg or .jpg file")
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2)
    names = np.array(statistics.index.classes.names)
    counts = np.bincount(statistics.label, minlength=len(names))
    order = np.argsort(-counts, kind="stable")[:_BARS]
    panels[0, 0].bar(names[order], counts[order], color="#4477aa")
    panels[0, 0].set_xlim(-1, max(len(order), 3))
    panels[0, 0].tick_params(axis="x", rotation=60 if len(order) > 4 else 0)
    panels[0, 0].set(title=f"boxes per class{' (the 30 most frequent)' if len(names) > _BARS else ''}", ylabel="boxes")
    _histogram(panels[0, 1], statistics.side, "box side", "square root of the area, px", log=True)
    for limit in (SMALL, MEDIUM):
        panels[0, 1].axvline(limit, color="#bb5566", linestyle=":")
    _histogram(panels[1, 0], statistics.track_length, "track length", "frames from first to last box", log=True)
    _histogram(panels[1, 1], statistics.speed_rel, "motion", "centre speed, box sides per frame", log=False)
    with replacing(path) as draft, matplotlib.rc_context({"text.parse_math": False}):
        figure.savefig(draft, dpi=110)
    return path


def _histogram(panel: object, values: np.ndarray, title: str, label: str, log: bool) -> None:
    from matplotlib.ticker import ScalarFormatter

    panel.set(title=title, xlabel=label)  # type: ignore[attr-defined]
    if not len(values):
        panel.text(0.5, 0.5, "none", ha="center", transform=panel.transAxes)  # type: ignore[attr-defined]
        return
    low, high = float(values.min()), float(values.max())
    if log:
        bins = np.geomspace(max(low, 0.5), max(high, low * 1.01, 1.0), 40)
        panel.set_xscale("log")  # type: ignore[attr-defined]
        panel.xaxis.set_major_formatter(ScalarFormatter())  # type: ignore[attr-defined]
        panel.xaxis.set_minor_formatter(ScalarFormatter())  # type: ignore[attr-defined]
    else:
        # The far tail consists of a few annotation jumps; the last bin collects it.
        high = max(float(np.quantile(values, 0.995)), 1e-6)
        values, bins = np.minimum(values, high), np.linspace(0.0, high, 40)
    panel.hist(values, bins=bins, color="#4477aa")  # type: ignore[attr-defined]
    panel.set_ylabel("count")  # type: ignore[attr-defined]
