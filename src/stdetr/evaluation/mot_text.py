"""MOTChallenge text as detections.

A row is ``frame,id,x,y,w,h,conf[,class,...]``: frames from 1, boxes xywh in pixels.  One file belongs to one video;
a folder holds one file per video, named after it.
"""

from __future__ import annotations

from pathlib import Path, PurePath

import numpy as np

from stdetr.evaluation.ground_truth import GroundTruth
from stdetr.evaluation.records import NO_TRACK


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
    image_rows = np.flatnonzero(gt.image_video == video)
    image_of = dict(zip(gt.frame_ids[image_rows].tolist(), gt.image_ids[image_rows].tolist(), strict=True))
    known, rows = gt.category_ids.tolist(), []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
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
        for name, value in zip(("frame", "id"), values[:2], strict=True):
            if not value.is_integer():
                raise ValueError(f"{where}: {name} {value} is not a whole number")
        if not np.isfinite(values[2:7]).all() or min(values[4:6]) < 0:
            raise ValueError(f"{where}: {line!r} has a negative width or height, or a number that is not finite")
        frame, category = int(values[0]) - 1, known[0] if len(known) == 1 else values[7] if len(values) > 7 else -1
        if category not in known:
            raise ValueError(f"{where}: class {category:g} is not a category id; the annotations have {known}")
        if frame not in image_of:
            near = min(image_of, key=lambda have: abs(have - frame))
            raise ValueError(f"{where}: frame {frame + 1} is not annotated; the nearest is {near + 1}")
        track = NO_TRACK if values[1] < 0 else int(values[1])
        rows.append((image_of[frame], int(category), values[2:6], values[6], track))
    kinds = enumerate((np.int64, np.int64, np.float64, np.float64, np.int64))
    images, categories, boxes, scores, tracks = (np.array([row[k] for row in rows], kind) for k, kind in kinds)
    return images, categories, boxes.reshape(-1, 4), scores, tracks
