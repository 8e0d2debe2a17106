"""MOTChallenge text as detections.

A row is ``frame,id,x,y,w,h,conf[,class,...]``: frames from 1, boxes xywh in pixels.  One file belongs to one video;
a folder holds one file per video, named after it.
"""

from __future__ import annotations

from pathlib import Path, PurePath

import numpy as np

from .ground_truth import GroundTruth
from .records import NO_TRACK, check_boxes


def read_mot(path: Path, gt: GroundTruth) -> tuple[np.ndarray, ...]:
    """The columns of ``Detections`` from one file or a folder of files.

    The class is the row's eighth value where that is a category id of the annotations; annotations with a single
    category need none.  An id of -1 is a detection without a track.  Raises ValueError naming file and line.
    """
    files = sorted(f for f in path.iterdir() if f.suffix in (".txt", ".csv")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"predictions folder {path} has no .txt or .csv file")
    parts = [_read_file(file, _video(file, gt), gt) for file in files]
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def _video(file: Path, gt: GroundTruth) -> int:
    names = [PurePath(name).stem for name in gt.video_names]
    if file.stem in names:
        return names.index(file.stem)
    if len(names) == 1:
        return 0
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise ValueError(f"predictions file {file} names no video of the annotations; name it <video>.txt: {shown}")


def _read_file(file: Path, video: int, gt: GroundTruth) -> tuple[np.ndarray, ...]:
    frames, tracks, boxes, scores, categories = [], [], [], [], []
    known = set(gt.category_ids.tolist())
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"predictions file {file} line {number}"
        cells = line.replace(",", " ").split()
        try:
            values = [float(cell) for cell in cells]
        except ValueError:
            raise ValueError(f"{where}: {line!r} is not frame,id,x,y,w,h,conf") from None
        if len(values) < 7:
            raise ValueError(f"{where}: {len(values)} values, at least frame,id,x,y,w,h,conf are needed")
        category = int(gt.category_ids[0]) if len(known) == 1 else int(values[7]) if len(values) > 7 else -1
        if category not in known:
            raise ValueError(f"{where}: class {category} is not a category id; the annotations have {sorted(known)}")
        frames.append(int(values[0]) - 1)
        tracks.append(NO_TRACK if values[1] < 0 else int(values[1]))
        boxes.append(values[2:6])
        scores.append(values[6])
        categories.append(category)
    mine = np.flatnonzero(gt.image_video == video)
    place = {int(frame): int(image) for frame, image in zip(gt.frame_ids[mine], gt.image_ids[mine], strict=True)}
    for frame in frames:
        if frame not in place:
            near = min(place, key=lambda have: abs(have - frame))
            raise ValueError(f"predictions file {file}: frame {frame + 1} is not annotated; the nearest is {near + 1}")
    images = np.array([place[frame] for frame in frames], dtype=np.int64)
    values = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    check_boxes(values, f"predictions file {file}")
    return images, np.array(categories, dtype=np.int64), values, np.array(scores), np.array(tracks, dtype=np.int64)
