"""Result files: COCO results, MOTChallenge rows, a CSV table.  Each appears whole or not at all.

Boxes are written to a thousandth of a pixel and scores to six digits.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stdetr.inference.predictions import VideoPredictions

CSV_COLUMNS = (
    "frame", "time_s", "track_id", "category_id", "class", "score", "x1", "y1", "x2", "y2"
)  # fmt: skip


def write_coco(predictions: VideoPredictions, path: str | Path, *, image_ids: Mapping[int, int] | None = None) -> Path:
    """``[{image_id, category_id, bbox [x,y,w,h], score, track_id?}]``: what COCO's evaluation reads.

    image_ids: frame number -> image id; default frame + 1.  Frames that it does not name are left out: they have no
    annotation to be compared with.
    """
    return write_whole(path, json.dumps(coco_results(predictions, image_ids)))


def coco_results(predictions: VideoPredictions, image_ids: Mapping[int, int] | None = None) -> list[dict[str, Any]]:
    """The results of ``write_coco`` as a list."""
    results = []
    for frame, box, score, label, track in _rows(predictions):
        image = frame + 1 if image_ids is None else image_ids.get(frame)
        if image is None:
            continue
        result = {
            "image_id": image,
            "category_id": predictions.classes.ids[label],
            "bbox": [round(value, 3) for value in _xywh(box)],
            "score": round(score, 6),
        }
        results.append(result if track < 0 else {**result, "track_id": track})
    return results


def image_ids_of(annotations: str | Path, source: str) -> dict[int, int]:
    """Frame number -> image id of the video ``source`` in a CocoVID file.

    The video is the one whose ``file_name`` or ``name`` ends like ``source`` (with or without suffix), or the only one.
    Raises ValueError when none does, naming the nearest.
    """
    file = Path(annotations)
    if not file.is_file():
        raise FileNotFoundError(f"annotations={annotations} does not exist")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        videos, images = content["videos"], content["images"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"annotations={annotations} is not a CocoVID file (videos, images): {error!r}") from error
    names: dict[str, int] = {}
    for video in videos:
        for key in ("name", "file_name"):
            if video.get(key):
                names[Path(video[key]).name] = names[Path(video[key]).stem] = video["id"]
    wanted = Path(source)
    chosen = names.get(wanted.name, names.get(wanted.stem))
    if chosen is None and len(videos) == 1:
        chosen = videos[0]["id"]
    if chosen is None:
        near = difflib.get_close_matches(wanted.name, list(names), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"annotations={annotations} has no video named {wanted.name}{hint}")
    return {int(image["frame_id"]): int(image["id"]) for image in images if image["video_id"] == chosen}


def write_mot(predictions: VideoPredictions, path: str | Path) -> Path:
    """``frame,id,x,y,w,h,conf,-1,-1,-1``: the result rows of MOTChallenge, frames and ids counted from 1.

    x and y are the box's top left corner in pixels from the frame's corner.  The format has no class: rows of all
    classes are in one file.  Detections of no confirmed track are left out.
    """
    lines = []
    for frame, box, score, _, track in sorted(_rows(predictions), key=lambda row: (row[0], row[4])):
        if track >= 0:
            x, y, w, h = _xywh(box)
            lines.append(f"{frame + 1},{track},{x:.3f},{y:.3f},{w:.3f},{h:.3f},{score:.6f},-1,-1,-1\n")
    return write_whole(path, "".join(lines))


def write_csv(predictions: VideoPredictions, path: str | Path) -> Path:
    """A table for spreadsheets: frame from 0, time in seconds (empty without a clock), xyxy in pixels."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    fps, classes = predictions.info.fps, predictions.classes
    for frame, box, score, label, track in _rows(predictions):
        time = f"{frame / fps:.3f}" if fps > 0 else ""
        corners = [f"{value:.3f}" for value in box]
        identity = track if track >= 0 else ""
        writer.writerow([frame, time, identity, classes.ids[label], classes.names[label], f"{score:.6f}", *corners])
    return write_whole(path, text.getvalue())


def write_whole(path: str | Path, text: str) -> Path:
    """Write a text file so that a reader sees the old content or the new, never a part."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(target)
    return target


def _rows(predictions: VideoPredictions) -> list[tuple[int, Sequence[float], float, int, int]]:
    """(frame, xyxy, score, label, track id) of every detection as Python numbers."""
    columns = (
        predictions.frame_index,
        predictions.boxes,
        predictions.scores,
        predictions.labels,
        predictions.track_ids,
    )
    return list(zip(*(np.asarray(column).tolist() for column in columns), strict=True))


def _xywh(box: Sequence[float]) -> tuple[float, float, float, float]:
    return box[0], box[1], box[2] - box[0], box[3] - box[1]
