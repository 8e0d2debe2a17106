"""MOTChallenge text as detections.

A row is ``frame,id,x,y,w,h,conf[,class,...]``: frames from 1, boxes xywh in pixels.  One file belongs to one video;
a folder holds one file per video, named after it.
"""

from __future__ import annotations

from pathlib import Path, PurePath

import numpy as np

from stdetr.datasets.converters.problems import MalformedField
from stdetr.datasets.converters.text_files import Row, read_lines
from stdetr.evaluation.ground_truth import GroundTruth
from stdetr.evaluation.records import NO_TRACK


def read_mot(path: Path, gt: GroundTruth) -> tuple[np.ndarray, ...]:
    """The columns of ``Detections`` from one file or a folder of files.

    The class is the row's eighth value where that is a category id of the annotations; annotations with a single
    category need none.  An id of -1 is a detection without a track.  Raises ValueError naming file and line.
    """
    files = [path]
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix in (".txt", ".csv") and not f.name.startswith("."))
    if not files:
        raise ValueError(f"predictions folder {path} has no .txt or .csv file")
    rows = []
    for file in files:
        own = gt.image_video == _video(file, gt)
        image_of = dict(zip(gt.frame_ids[own].tolist(), gt.image_ids[own].tolist(), strict=True))
        for line, text in read_lines(file, f"predictions file {file}"):
            if text.strip():
                try:
                    rows.append(_parse(Row(text.replace(",", " ").split()), image_of, gt))
                except MalformedField as error:
                    raise ValueError(f"predictions file {file}:{line}: {error}") from None
    kinds = enumerate((np.int64, np.int64, np.float64, np.float64, np.int64))
    images, categories, boxes, scores, tracks = (np.array([row[k] for row in rows], kind) for k, kind in kinds)
    return images, categories, boxes.reshape(-1, 4), scores, tracks


def _video(file: Path, gt: GroundTruth) -> int:
    names = [PurePath(name).stem for name in gt.video_names]
    if file.stem in names:
        return names.index(file.stem)
    if len(names) == 1:
        return 0
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise ValueError(f"predictions file {file} names no video of the annotations; name it <video>.txt: {shown}")


def _parse(row: Row, image_of: dict[int, int], gt: GroundTruth) -> tuple[int, int, tuple[float, ...], float, int]:
    """Image id, category id, box, score and track of a row; ``image_of`` names the image of each frame from 0."""
    row.require(7)
    frame, track, known = row.whole(0, "frame") - 1, row.whole(1, "id"), gt.category_ids.tolist()
    *box, score = row.numbers(2, "x", "y", "w", "h", "conf")
    if min(box[2:]) < 0:
        raise MalformedField(f"box [x, y, w, h] = {box} has a negative width or height")
    category = known[0] if len(known) == 1 else row.whole(7, "class") if len(row) > 7 else -1
    if category not in known:
        raise MalformedField(f"class {category} is not a category id; the annotations have {known}")
    if frame not in image_of:
        near = min(image_of, key=lambda have: abs(have - frame))
        raise MalformedField(f"frame {frame + 1} is not annotated; the nearest is {near + 1}")
    return image_of[frame], category, tuple(box), score, NO_TRACK if track < 0 else track
