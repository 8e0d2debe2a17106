"""Annotation files made from another: some windows of every video, or some classes only.

Frames of a video resemble each other, so for evaluations during development a few windows of each say nearly as much as
all.  Windows rather than single frames, since a clip needs its neighbours; a single-frame model sees the same frames.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

from stdetr.atomic import write_text


def thin(source: Path, target: Path, windows: int, frames: int) -> Path:
    """Write the CocoVID file ``target``: of each video of ``source`` only ``windows`` windows of ``frames`` images.

    The images of a video are cut into ``windows`` equal parts, and the middle of each is kept; a video without more
    images than that keeps all.  Videos, classes and ids stay.  Returns ``target``; raises ValueError for numbers below
    1.
    """
    if windows < 1 or frames < 1:
        raise ValueError(f"evaluation.thin=[{windows},{frames}] must be [windows,frames], both at least 1")
    document = json.loads(source.read_text(encoding="utf-8"))
    videos: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for image in document["images"]:
        videos[image["video_id"]].append(image)
    for images in videos.values():
        images.sort(key=lambda image: image.get("frame_id", 0))
    document["images"] = [images[n] for images in videos.values() for n in window_places(len(images), windows, frames)]
    kept = {image["id"] for image in document["images"]}
    document["annotations"] = [record for record in document["annotations"] if record["image_id"] in kept]
    return write_text(target, json.dumps(document))


def keep_classes(source: Path, target: Path, ids: Collection[int]) -> Path:
    """Write the CocoVID file ``target``: ``source`` with the categories ``ids`` and their annotations alone."""
    document = json.loads(source.read_text(encoding="utf-8"))
    document["categories"] = [record for record in document["categories"] if record["id"] in ids]
    # An ignore region of another class says nothing about the classes that are left.
    document["annotations"] = [record for record in document["annotations"] if record["category_id"] in ids]
    return write_text(target, json.dumps(document))


def window_places(count: int, windows: int, frames: int) -> list[int]:
    """Which of ``count`` images lie in ``windows`` evenly spaced windows of ``frames``."""
    if count <= windows * frames:
        return list(range(count))
    # In whole numbers: floor((2 w + 1) count / (2 windows) - frames / 2), the middle of part w.
    starts = [((2 * w + 1) * count - frames * windows) // (2 * windows) for w in range(windows)]
    return [start + n for start in starts for n in range(frames)]
