"""Time and memory of the AP evaluators at the size of ImageNet VID val, and their speed against a plain Python port.

    python scripts/bench_evaluation.py output=benchmarks/evaluation.json

Keys: videos, frames, detections (per frame), subset_videos (for the plain port), output.  Everything is generated.
The plain port follows the same public rules in the way they are usually written: loops over images, detections and
ground truth, one pass for each motion range.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from stdetr.evaluation.coco import CocoEvaluator
from stdetr.evaluation.detections import BoundDetections, Detections
from stdetr.evaluation.ground_truth import GroundTruth
from stdetr.evaluation.motion import SPLITS, motion_iou, motion_splits
from stdetr.evaluation.protocol import Inputs
from stdetr.evaluation.vid import VidEvaluator
from stdetr.evaluation.vid_mega import VidMegaEvaluator

CLASSES, WIDTH, HEIGHT = 30, 1280, 720
Value = TypeVar("Value")


def ground_truth(videos: int, frames: int, seed: int) -> GroundTruth:
    """Tracks that drift and scale at three speeds; about one and a half boxes per frame, some frames empty."""
    rng = np.random.default_rng(seed)
    lengths = np.diff(np.concatenate([[0], np.sort(rng.choice(np.arange(1, frames), videos - 1, False)), [frames]]))
    image_video = np.repeat(np.arange(videos), lengths)
    starts = np.cumsum(lengths) - lengths
    image, category, boxes, track = [], [], [], []
    count = 0
    for video in range(videos):
        for _ in range(1 + rng.poisson(1.35)):
            first, last = np.sort(rng.integers(0, lengths[video] + 1, 2)) if rng.random() < 0.5 else (0, lengths[video])
            t = np.arange(first, last)
            size = np.exp(rng.uniform(math.log(20), math.log(400), 2))
            speed = rng.normal(size=2) * rng.choice([0.1, 2.0, 12.0])
            centre = rng.uniform([0, 0], [WIDTH, HEIGHT]) + np.cumsum(speed + rng.normal(size=(len(t), 2)), axis=0)
            centre = np.abs(np.mod(centre, [2 * WIDTH, 2 * HEIGHT]) - [WIDTH, HEIGHT])  # bounce off the borders
            image.append(starts[video] + t)
            boxes.append(np.concatenate([np.rint(centre - size / 2), np.broadcast_to(np.rint(size), (len(t), 2))], 1))
            category.append(np.full(len(t), rng.integers(CLASSES)))
            track.append(np.full(len(t), count))
            count += 1
    order = np.argsort(np.concatenate(image), kind="stable")
    values = np.concatenate(boxes)[order]
    return GroundTruth(
        video_ids=np.arange(videos),
        video_names=tuple(f"video{v}" for v in range(videos)),
        frame_rate=np.full(videos, 30.0),
        image_ids=np.arange(frames),
        image_video=image_video,
        frame_ids=np.arange(frames) - starts[image_video],
        degraded=None,
        category_ids=np.arange(1, CLASSES + 1),
        category_names=tuple(f"class{c}" for c in range(CLASSES)),
        annotation_ids=np.arange(len(values)),
        image=np.concatenate(image)[order],
        category=np.concatenate(category)[order],
        boxes=values,
        area=values[:, 2] * values[:, 3],
        crowd=np.zeros(len(values), dtype=bool),
        track=np.concatenate(track)[order],
        has_tracks=True,
    )


def detections(gt: GroundTruth, per_frame: int, seed: int) -> Detections:
    """``per_frame`` float32 boxes per frame: four around each annotated box, the rest anywhere with low scores."""
    rng = np.random.default_rng(seed)
    frames = len(gt.image_ids)
    n = frames * per_frame
    image = np.repeat(np.arange(frames, dtype=np.int32), per_frame)
    category = rng.integers(0, CLASSES, n, dtype=np.int16)
    boxes, scores = np.empty((n, 4), dtype=np.float32), np.empty(n, dtype=np.float32)
    for start in range(0, n, 1 << 22):
        part = slice(start, min(start + (1 << 22), n))
        size = part.stop - start
        boxes[part, :2] = rng.random((size, 2), dtype=np.float32) * np.array([WIDTH, HEIGHT], dtype=np.float32)
        boxes[part, 2:] = np.exp(rng.random((size, 2), dtype=np.float32) * 3 + 3)
        scores[part] = rng.random(size, dtype=np.float32) ** 8
    rank = np.arange(len(gt.image)) - np.searchsorted(gt.image, gt.image)
    for copy in range(4):
        row = gt.image * per_frame + 4 * rank + copy
        fits = 4 * rank + copy < per_frame
        noise = rng.normal(scale=0.05 + 0.05 * copy, size=(len(row), 4)) * np.tile(gt.boxes[:, 2:], 2)
        near = gt.boxes + noise
        near[:, 2:] = np.maximum(near[:, 2:], 1)
        boxes[row[fits]] = near[fits]
        category[row[fits]] = gt.category[fits]
        scores[row[fits]] = (rng.random(len(row)) ** (0.5 + copy))[fits]
    category += 1
    return Detections(image, category, boxes, scores)


def plain_port(gt: GroundTruth, predicted: BoundDetections, names: tuple[str, ...]) -> dict[str, float]:
    """The devkit rules in plain Python: AP50 of each motion range."""
    motion, out = motion_iou(gt), {}
    weights = {split.name: split.empty_weight for split in motion_splits(gt, ("all", "fast", "medium", "slow"))}
    gt_edges = np.searchsorted(gt.image, np.arange(len(gt.image_ids) + 1))
    det_edges = np.searchsorted(predicted.image, np.arange(len(gt.image_ids) + 1))
    for name in names:
        low, high = SPLITS[name]
        empty = 1.0 if name == "all" else weights[name]
        rows, positives = defaultdict(list), defaultdict(int)
        for image in range(len(gt.image_ids)):
            gt_rows = slice(gt_edges[image], gt_edges[image + 1])
            det_rows = slice(det_edges[image], det_edges[image + 1])
            truth, labels = gt.boxes[gt_rows].tolist(), gt.category[gt_rows].tolist()
            ignored = [not low <= value <= high for value in motion[gt_rows].tolist()]
            for label, out_of_range in zip(labels, ignored, strict=True):
                positives[label] += not out_of_range
            taken = [False] * len(truth)
            order = np.argsort(-predicted.scores[det_rows], kind="stable")
            scores = predicted.scores[det_rows][order].tolist()
            kinds = predicted.category[det_rows][order].tolist()
            for score, kind, box in zip(scores, kinds, predicted.boxes[det_rows][order].tolist(), strict=True):
                best, match, inside, outside = -1.0, -1, -1.0, -1.0
                for k, (x, y, w, h) in enumerate(truth):
                    wide = min(box[0] + box[2], x + w) - max(box[0], x) + 1
                    tall = min(box[1] + box[3], y + h) - max(box[1], y) + 1
                    area = (w + 1) * (h + 1)
                    inter = wide * tall if wide > 0 and tall > 0 else 0.0
                    iou = inter / ((box[2] + 1) * (box[3] + 1) + area - inter)
                    if ignored[k]:
                        outside = max(outside, iou)
                    else:
                        inside = max(inside, iou)
                    threshold = min(0.5, area / ((w + 11) * (h + 11)))
                    if labels[k] == kind and not taken[k] and iou >= threshold and iou > best:
                        best, match = iou, k
                if match >= 0:
                    taken[match] = True
                    rows[kind].append((score, 0 if ignored[match] else 1, 0.0))
                elif not truth:
                    rows[kind].append((score, 0, empty))
                elif inside != outside:
                    rows[kind].append((score, 0, float(inside > outside)))
                else:
                    rows[kind].append((score, 0, sum(ignored) / len(ignored)))
        values = [_area(rows[kind], positives[kind]) for kind in range(CLASSES) if positives[kind]]
        out[name] = float(np.mean(values))
    return out


def _area(rows: list[tuple[float, int, float]], positives: int) -> float:
    if not rows:
        return 0.0
    table = np.array(rows)
    table = table[np.argsort(-table[:, 0], kind="stable")]
    true, false = np.cumsum(table[:, 1]), np.cumsum(table[:, 2])
    precision = np.concatenate([[0], true / np.maximum(true + false, 1e-300), [0]])
    recall = np.concatenate([[0], true / positives, [1]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * precision[1:]).sum())


def timed(work: Callable[[], Value]) -> tuple[float, Value]:
    start = time.perf_counter()
    value = work()
    return time.perf_counter() - start, value


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def machine() -> dict[str, object]:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0].split(":")[1].strip() if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def main(arguments: list[str]) -> None:
    options = {"videos": "555", "frames": "176126", "detections": "300", "subset_videos": "4", "output": ""}
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key not in options or not value:
            raise SystemExit(f"error: {argument!r} is not one of {', '.join(f'{name}=...' for name in options)}")
        options[key] = value
    videos, frames, per_frame = int(options["videos"]), int(options["frames"]), int(options["detections"])

    part_frames = max(int(options["subset_videos"]) * frames // videos, 2 * int(options["subset_videos"]))
    part = ground_truth(int(options["subset_videos"]), part_frames, 1)
    some = detections(part, per_frame, 2).bind(part)
    plain_seconds, plain = timed(lambda: plain_port(part, some, ("all",)))
    ours_seconds, ours = timed(lambda: VidEvaluator(motion=False).evaluate(Inputs(part, some)))
    plain_split_seconds, plain_split = timed(lambda: plain_port(part, some, tuple(SPLITS)))
    ours_split_seconds, ours_split = timed(lambda: VidEvaluator().evaluate(Inputs(part, some)))
    for name, value in plain_split.items():
        key = "AP50" if name == "all" else f"AP50_{name}"
        assert abs(ours_split.metrics[key] - value) < 1e-9, (key, ours_split.metrics[key], value)
    assert abs(ours.metrics["AP50"] - plain["all"]) < 1e-9
    subset = {
        "frames": part_frames,
        "detections": len(some),
        "plain_port_seconds": {"all": plain_seconds, "all_and_motion": plain_split_seconds},
        "stdetr_seconds": {"all": ours_seconds, "all_and_motion": ours_split_seconds},
        "times_faster": {
            "all": plain_seconds / ours_seconds,
            "all_and_motion": plain_split_seconds / ours_split_seconds,
        },
        "numbers_agree_to": 1e-9,
    }
    print(json.dumps(subset, indent=1), flush=True)

    gt = ground_truth(videos, frames, 3)
    given = detections(gt, per_frame, 4)
    print(f"{len(gt.boxes)} boxes, {len(given)} detections generated, peak {peak_gib():.2f} GiB", flush=True)
    bind_seconds, bound = timed(lambda: given.bind(gt))
    inputs = Inputs(gt, bound)
    seconds, metrics = {"bind": bind_seconds}, {}
    cpu = time.process_time()
    for evaluator in (VidEvaluator(), VidMegaEvaluator(), CocoEvaluator()):
        seconds[evaluator.name], result = timed(lambda evaluator=evaluator: evaluator.evaluate(inputs))
        metrics |= {f"{evaluator.name}/{name}": value for name, value in result.metrics.items()}
        print(f"{evaluator.name}: {seconds[evaluator.name]:.1f} s, peak {peak_gib():.2f} GiB", flush=True)
    cpu = time.process_time() - cpu
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    report = {
        "command": "python scripts/bench_evaluation.py " + " ".join(arguments),
        "commit": commit,
        "machine": machine(),
        "videos": videos,
        "frames": frames,
        "classes": CLASSES,
        "boxes": len(gt.boxes),
        "detections": len(given),
        "seconds": seconds,
        "total_seconds": sum(seconds.values()),
        "processor_seconds": cpu,
        "load_average": os.getloadavg()[0],
        "peak_memory_gib": peak_gib(),
        "metrics": metrics,
        "subset": subset,
    }
    if options["output"]:
        path = Path(options["output"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"all AP variants with motion splits: {report['total_seconds']:.0f} s, {report['peak_memory_gib']:.2f} GiB")


if __name__ == "__main__":
    main(sys.argv[1:])
