"""Draw the pictures of docs/evaluation.md into docs/img.  Every number in them comes from the evaluators.

python scripts/draw_evaluation.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stdetr.evaluation.boxes import paired_iou
from stdetr.evaluation.coco import CocoEvaluator
from stdetr.evaluation.curve import ScoredMatches
from stdetr.evaluation.evaluate import prepare
from stdetr.evaluation.motion import SPLITS, motion_iou
from stdetr.evaluation.streaming import shown_output, simulate
from stdetr.evaluation.track import TrackEvaluator
from stdetr.evaluation.tube import TubeEvaluator
from stdetr.evaluation.vid import VidEvaluator
from stdetr.evaluation.vid_mega import VidMegaEvaluator

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "img"
TRUTH, FOUND, BAD, GREY = "#2f9e44", "#0b4f8a", "#d6336c", "#868e96"


def document(lengths: list[int], boxes: list[tuple[int, list[float], int, int]], classes: int = 1) -> dict[str, Any]:
    """CocoVID; ``boxes``: (image id, xywh, category, instance)."""
    frames = [(v, f) for v, length in enumerate(lengths, 1) for f in range(length)]
    return {
        "videos": [
            {"id": v, "name": f"video {v}", "width": 640, "height": 480, "length": length, "fps": 10}
            for v, length in enumerate(lengths, 1)
        ],
        "images": [{"id": i, "video_id": v, "frame_id": f} for i, (v, f) in enumerate(frames, 1)],
        "categories": [{"id": c, "name": f"class {c}"} for c in range(1, classes + 1)],
        "annotations": [
            {"id": i, "image_id": image, "bbox": box, "category_id": kind, "instance_id": track}
            for i, (image, box, kind, track) in enumerate(boxes, 1)
        ],
    }


def result(image: int, box: list[float], score: float, kind: int = 1, track: int | None = None) -> dict[str, Any]:
    return {"image_id": image, "category_id": kind, "bbox": box, "score": score, "track_id": track}


def frame(axes: Axes, box: list[float], colour: str, text: str = "", dashed: bool = False) -> None:
    style = "--" if dashed else "-"
    axes.add_patch(Rectangle((box[0], box[1]), box[2], box[3], fill=False, ec=colour, lw=2.2, ls=style))
    if text:
        axes.text(box[0], box[1] - 0.6, text, color=colour, fontsize=9, va="bottom")


def box_conventions() -> Figure:
    truth, detected = [4.0, 4.0, 10.0, 10.0], [8.0, 4.0, 10.0, 10.0]
    inputs = prepare(document([1], [(1, truth, 1, 1)]), [result(1, detected, 0.9)])
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    rows = (
        ("coco", 0.0, 0.5, CocoEvaluator()),
        ("vid (devkit)", 1.0, 11 * 11 / (21 * 21), VidEvaluator(motion=False)),
        ("vid_mega", 2.0, 0.5, VidMegaEvaluator(motion=False)),
    )
    for place, (name, grow, threshold, evaluator) in enumerate(rows):
        axes = figure.add_subplot(1, 3, place + 1)
        for box, colour, dashed in ((truth, TRUTH, False), (detected, FOUND, True)):
            frame(axes, [box[0], box[1], box[2] + grow, box[3] + grow], colour, dashed=dashed)
        iou = paired_iou(np.array([detected]), np.array([truth]), grow)[0]
        value = evaluator.evaluate(inputs).metrics["AP50"]
        axes.set(xlim=(0, 24), ylim=(20, 0), aspect="equal", xticks=range(0, 25, 4), yticks=range(0, 21, 4))
        axes.grid(alpha=0.3)
        size = f"{10 + grow:g} x {10 + grow:g}"
        axes.set_title(
            f"{name}: boxes count {size}\nIoU {iou:.3f}, needs {threshold:.3f}: AP50 = {value:.0f}", fontsize=10
        )
    figure.suptitle("A 10 x 10 box (green) found 4 pixels too far right (blue, dashed)", fontsize=11)
    return figure


def threshold_by_size() -> Figure:
    side = np.arange(4, 61)
    inclusive = (side + 1.0) ** 2
    threshold = np.minimum(0.5, inclusive / (side + 11.0) ** 2)
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(side, threshold, color=FOUND, lw=2, label="vid: min(0.5, wh / ((w+10)(h+10))), w and h inclusive")
    axes.plot(side, np.full(len(side), 0.5), color=BAD, ls="--", lw=2, label="vid_mega, coco: 0.5")
    axes.set(
        xlabel="side of a square object in pixels", ylabel="IoU that a detection needs", ylim=(0, 0.6), xlim=(4, 60)
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    axes.set_title("The devkit is kinder to small objects", fontsize=11)
    return figure


def area_or_points() -> Figure:
    matches = ScoredMatches(
        np.array([True, False, True, False, False, True]),
        np.array([False, True, False, True, True, False]),
        np.zeros(6, dtype=int),
        np.array([4]),
    )
    recall, envelope = matches.precision_recall()
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    for place, (rule, name) in enumerate((("area", "vid, vid_mega: area"), ("101", "coco, tube: mean of 101 points"))):
        axes = figure.add_subplot(1, 2, place + 1)
        edges = np.concatenate([[0], recall])
        axes.stairs(envelope, edges, baseline=0, fill=rule == "area", color=TRUTH, alpha=0.35)
        axes.stairs(envelope, edges, baseline=None, color=TRUTH, lw=2)
        if rule == "101":
            points = np.linspace(0, 1, 101)
            value = np.append(envelope, 0)[np.searchsorted(recall, points)]
            axes.plot(points, value, ".", color=FOUND, ms=4)
        value = matches.average_precision("area" if rule == "area" else "101")
        axes.set(xlim=(0, 1.01), ylim=(0, 1.05), xlabel="recall", ylabel="precision (envelope)")
        axes.set_title(f"{name}: AP = {value:.4f}", fontsize=10)
    figure.suptitle("Four objects, six detections: right, wrong, right, wrong, wrong, right", fontsize=11)
    return figure


def motion() -> Figure:
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    frames = 21
    for name, step, colour in (("slow", 0.15, TRUTH), ("medium", 0.9, "#e07b1a"), ("fast", 4.0, BAD)):
        boxes = [(f + 1, [step * f, 0.0, 40.0, 40.0], 1, 1) for f in range(frames)]
        values = motion_iou(prepare(document([frames], boxes), []).gt)
        axes.plot(
            range(frames), values, "o-", color=colour, ms=4, label=f"40-pixel box, {step:g} pixels per frame: {name}"
        )
        low, high = SPLITS[name]
        axes.axhspan(low, high, color=colour, alpha=0.10)
        axes.text(frames - 0.6, (low + high) / 2, name, color=colour, va="center", fontsize=10)
        assert all(low <= value <= high for value in values), (name, values)
    axes.set(xlim=(-0.5, frames + 1.4), ylim=(0, 1.02), xlabel="frame", ylabel="motion IoU")
    axes.legend(loc="lower center", fontsize=9)
    axes.set_title("Motion IoU: mean IoU with the same track up to 10 frames before and after", fontsize=11)
    return figure


def ignored_by_motion() -> Figure:
    slow, stray = [24.0, 20.0, 9.0, 9.0], [12.0, 8.0, 8.0, 8.0]
    boxes = [(1, slow, 1, 1), (2, slow, 1, 1), (1, [2.0, 2.0, 7.0, 7.0], 2, 2), (2, [2.0, 22.0, 7.0, 7.0], 2, 2)]
    detected = [result(1, slow, 0.8), result(2, slow, 0.8), result(1, stray, 0.9)]
    inputs = prepare(document([2], boxes, classes=2), detected)
    vid = VidEvaluator().evaluate(inputs).metrics["AP50_slow"]
    mega = VidMegaEvaluator().evaluate(inputs).metrics["AP50_slow"]
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    axes = figure.add_subplot()
    frame(axes, slow, TRUTH, "class 1, slow: counts")
    frame(axes, [2.0, 2.0, 7.0, 7.0], GREY, "class 2, fast: ignored", dashed=True)
    frame(axes, stray, BAD, "stray detection, class 1")
    axes.set(xlim=(0, 58), ylim=(32, -1), aspect="equal", xticks=[], yticks=[])
    axes.text(
        57,
        15,
        "The stray detection overlaps nothing\n\n"
        f"vid: half of the frame's boxes\nare ignored, it counts 1/2\nAP50_slow = {vid:.3f}\n\n"
        f"vid_mega: no box of class 1\nis ignored, it counts 1\nAP50_slow = {mega:.3f}",
        ha="right",
        va="center",
        fontsize=9,
    )
    axes.set_title("The slow split: one frame of two, the slow object is found in both", fontsize=10)
    return figure


def tube() -> Figure:
    box = [0.0, 0.0, 40.0, 40.0]
    truth = [(f + 1, box, 1, 1) for f in range(6)]
    detected = [result(f + 1, box, 0.9, track=1) for f in range(1, 6)] + [result(7, box, 0.9, track=1)]
    inputs = prepare(document([8], truth), detected)
    metrics = TubeEvaluator().evaluate(inputs).metrics
    frames = CocoEvaluator().evaluate(inputs).metrics["AP50"]
    figure = Figure(figsize=(8.4, 2.8), layout="constrained")
    axes = figure.add_subplot()
    for f in range(8):
        axes.text(f + 0.45, -0.15, f"frame {f}", ha="center", fontsize=8)
        for row, colour, present in ((0, TRUTH, f < 6), (1, FOUND, f in (1, 2, 3, 4, 5, 6))):
            axes.add_patch(Rectangle((f, row), 0.9, 0.8, color=colour if present else "#f1f3f5"))
        word = "both" if 1 <= f <= 5 else "one" if f in (0, 6) else "-"
        axes.text(f + 0.45, 2.25, word, ha="center", fontsize=9)
    axes.text(-0.1, 0.4, "object", ha="right", va="center")
    axes.text(-0.1, 1.4, "tube", ha="right", va="center")
    axes.set(xlim=(-1.2, 8), ylim=(2.6, -0.5))
    axes.axis("off")
    axes.set_title(
        f"Tube IoU = 5 frames in both / 7 frames in either = {5 / 7:.3f}: right at 0.50 to 0.70, tube/AP = "
        f"{metrics['AP']:.2f}, tube/AP50 = {metrics['AP50']:.0f}\nper frame, coco/AP50 = {frames:.3f}",
        fontsize=10,
    )
    return figure


def track() -> Figure:
    box = [0.0, 0.0, 40.0, 40.0]
    truth = [(f + 1, box, 1, 1) for f in range(8)]
    detected = [result(f + 1, box, 0.9, track=1 + f // 4) for f in range(8)]
    inputs = prepare(document([8], truth), detected)
    metrics = TrackEvaluator().evaluate(inputs).metrics
    frames = CocoEvaluator().evaluate(inputs).metrics["AP"]
    figure = Figure(figsize=(8.4, 2.6), layout="constrained")
    axes = figure.add_subplot()
    for f in range(8):
        axes.add_patch(Rectangle((f, 0), 0.9, 0.8, color=TRUTH))
        axes.add_patch(Rectangle((f, 1), 0.9, 0.8, color=FOUND if f < 4 else BAD))
        axes.text(f + 0.45, 1.4, f"id {1 + f // 4}", ha="center", va="center", color="white")
        axes.text(f + 0.45, -0.15, f"frame {f}", ha="center", fontsize=8)
    axes.text(-0.1, 0.4, "object", ha="right", va="center")
    axes.text(-0.1, 1.4, "tracker", ha="right", va="center")
    axes.set(xlim=(-1.2, 8), ylim=(2.0, -0.5))
    axes.axis("off")
    names = ("DetA", "AssA", "HOTA", "MOTA", "IDF1")
    text = ", ".join(f"{name} = {metrics[name]:.3f}" for name in names)
    axes.set_title(
        f"Perfect boxes, one identity switch: coco/AP = {frames:.0f}\n{text}, IDSW = {metrics['IDSW']:.0f}", fontsize=10
    )
    return figure


def streaming() -> Figure:
    gt = prepare(document([9], []), []).gt
    rate = np.array([10.0])
    ready = simulate(gt, 0.15, rate)
    shown = shown_output(gt, ready, rate)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for f, time in enumerate(ready):
        axes.plot(f / 10, 1, "o", color=TRUTH)
        axes.text(f / 10, 1.12, f"{f}", ha="center", fontsize=9, color=TRUTH)
        if not np.isnan(time):
            axes.add_patch(Rectangle((time - 0.15, 0.35), 0.147, 0.3, color=FOUND, alpha=0.8))
            axes.text(time - 0.075, 0.5, f"frame {f}", ha="center", va="center", color="white", fontsize=8)
        word = "nothing" if shown[f] < 0 else f"out {shown[f]}"
        axes.text(f / 10, 0.02, word, ha="center", fontsize=8, color=BAD if shown[f] < 0 else "black")
    for y, name in ((1, "frames arrive"), (0.5, "detector, 150 ms"), (0.05, "scored against")):
        axes.text(-0.07, y, name, ha="right", va="center", fontsize=9)
    axes.set(
        xlim=(-0.3, 1.06),
        ylim=(-0.15, 1.3),
        yticks=[],
        xticks=np.arange(0, 1.1, 0.1),
        xlabel="seconds (10 frames per second)",
    )
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.set_title("Streaming: each frame is scored with the latest output that is ready when it arrives", fontsize=11)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "evaluation_boxes": box_conventions,
    "evaluation_threshold": threshold_by_size,
    "evaluation_area": area_or_points,
    "evaluation_motion": motion,
    "evaluation_ignored": ignored_by_motion,
    "evaluation_tube": tube,
    "evaluation_track": track,
    "evaluation_streaming": streaming,
}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        figure = draw()
        FigureCanvasAgg(figure)
        figure.savefig(FOLDER / f"{name}.png", dpi=100)
        print(f"docs/img/{name}.png")


if __name__ == "__main__":
    main()
