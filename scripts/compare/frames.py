"""What the scripts beside this one share: the frames of a CocoVID file, class names, COCO results.

They need OpenCV and NumPy, not stdetr: other detectors live in environments of their own.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Boxes = tuple[np.ndarray, np.ndarray, Sequence[str]]
"""Boxes n,4 xyxy in pixels, scores n, class names n of one frame."""


def options(about: str | None) -> argparse.Namespace:
    """The options of every script; ``--name theirs=ours`` may be repeated."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="CocoVID file, such as data/drone_vid/val.json")
    parser.add_argument("--root", type=Path, help="folder of its videos; default: the folder of the file")
    parser.add_argument("--weights", required=True, help="your weight file, or folder for transformers")
    parser.add_argument("--output", type=Path, required=True, help="COCO results to write")
    parser.add_argument("--size", type=int, default=640, help="side that the detector resizes to")
    parser.add_argument("--min-score", type=float, default=0.001)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", action="append", default=[], help="theirs=ours, where class names differ")
    given = parser.parse_args()
    given.root = given.root or given.annotations.parent
    return given


def frames(document: dict[str, Any], root: Path) -> Iterator[tuple[int, np.ndarray]]:
    """(image id, h,w,3 uint8 RGB) of every image record, in the order of videos and frames.

    Videos are decoded in order and frames counted, since seeking is not exact in OpenCV.  Raises ValueError where a
    file ends before its last annotated frame.
    """
    import cv2

    images = defaultdict(list)
    for image in document["images"]:
        images[image.get("video_id")].append(image)
    files = {video["id"]: video.get("file_name") for video in document.get("videos", [])}
    for video, records in images.items():
        if not files.get(video):
            for image in records:
                array = cv2.imread(str(root / image["file_name"]))
                if array is None:
                    raise ValueError(f"{root / image['file_name']} is not an image that OpenCV can read")
                yield image["id"], cv2.cvtColor(array, cv2.COLOR_BGR2RGB)
            continue
        wanted = {image["frame_id"]: image["id"] for image in records}
        capture = cv2.VideoCapture(str(root / files[video]))
        try:
            for number in range(max(wanted) + 1):
                there, array = capture.read()
                if not there:
                    raise ValueError(f"{root / files[video]} ends at frame {number}, before frame {max(wanted)}")
                if number in wanted:
                    yield wanted[number], cv2.cvtColor(array, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()


def write_results(given: argparse.Namespace, detect: Callable[[np.ndarray], Boxes]) -> None:
    """Run ``detect`` on every frame and write the detections of known classes as COCO results.

    Raises ValueError where no class of the detector is in the annotations.
    """
    document = json.loads(given.annotations.read_text())
    ids = {category["name"].casefold(): category["id"] for category in document["categories"]}
    renamed = dict(pair.split("=", 1) for pair in given.name)
    results: list[dict[str, Any]] = []
    seen, left_out, count = set(), set(), 0
    for image, frame in frames(document, given.root):
        count += 1
        for box, score, theirs in zip(*detect(frame), strict=True):
            name = renamed.get(theirs, theirs).casefold()
            if name not in ids:
                left_out.add(theirs)
                continue
            seen.add(name)
            if score >= given.min_score:
                x, y, right, bottom = (round(float(v), 2) for v in box)
                xywh = [x, y, round(right - x, 2), round(bottom - y, 2)]
                results.append(
                    {"image_id": image, "category_id": ids[name], "bbox": xywh, "score": round(float(score), 5)}
                )
    if left_out and not seen:
        raise ValueError(
            f"none of the detector's classes ({', '.join(sorted(left_out)[:8])}) is in {given.annotations} "
            f"({', '.join(ids)}); map them with --name theirs=ours"
        )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(results))
    print(f"{len(results)} detections on {count} frames written to {given.output}; other classes: {len(left_out)}")
