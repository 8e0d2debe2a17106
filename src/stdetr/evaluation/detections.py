"""Detections as numpy columns, read from COCO results, MOT text or a column file.

Shape legend
    n detections        M images of the annotations

Boxes are ``xywh`` in source pixels, as in the COCO results format.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stdetr.atomic import replacing
from stdetr.data.json_file import Whole
from stdetr.evaluation.ground_truth import GroundTruth
from stdetr.evaluation.mot_text import read_mot
from stdetr.evaluation.records import NO_TRACK, check_boxes, index_of, read_list

_PART = 100_000  # records written at a time: as Python objects they take ten times the memory of the columns


class DetectionRecord(msgspec.Struct, gc=False):
    """One detection in the COCO results format."""

    image_id: Whole
    category_id: Whole
    bbox: tuple[float, float, float, float]
    score: float
    track_id: Whole | None = None


@dataclass(frozen=True, repr=False)
class Detections:
    """Per-frame detections in the order given, which breaks ties of score.

    image_ids:    n integers, ids of the annotation file
    category_ids: n integers, ids of the annotation file
    boxes:        n,4 float32 or float64 xywh in pixels
    scores:       n float32 or float64
    track_ids:    n int64, ``NO_TRACK`` where a detection belongs to none; or None when no detection does

    Raises ValueError for lengths that disagree, boxes and scores that are not finite, negative widths or heights.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    track_ids: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.image_ids)
        if self.boxes.shape != (count, 4):
            raise ValueError(f"predictions: boxes have shape {self.boxes.shape}, {count} image ids want ({count}, 4)")
        for name in ("category_ids", "scores", "track_ids"):
            values = getattr(self, name)
            if values is not None and values.shape != (count,):
                raise ValueError(f"predictions: {name} has shape {values.shape}, {count} image ids want ({count},)")
        check_boxes(self.boxes, "predictions")
        finite = np.isfinite(self.scores)
        if not finite.all():
            index = int(np.flatnonzero(~finite)[0])
            raise ValueError(f"predictions record {index}: score {self.scores[index]} is not finite")

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        return f"Detections({len(self)}, tracks={self.track_ids is not None})"

    @classmethod
    def empty(cls) -> Detections:
        whole = np.zeros(0, dtype=np.int64)
        return cls(whole, whole.copy(), np.zeros((0, 4)), np.zeros(0))

    @classmethod
    def joined(cls, parts: Sequence[Detections]) -> Detections:
        """All parts one after the other; either all of them have track ids or none."""
        if not parts:
            return cls.empty()
        tracked = [part.track_ids for part in parts if part.track_ids is not None]
        assert len(tracked) in (0, len(parts))
        names = ("image_ids", "category_ids", "boxes", "scores")
        columns = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
        return cls(*columns, track_ids=np.concatenate(tracked) if tracked else None)

    def take(self, rows: np.ndarray) -> Detections:
        """The detections that the mask or positions ``rows`` name."""
        tracks = None if self.track_ids is None else self.track_ids[rows]
        return Detections(self.image_ids[rows], self.category_ids[rows], self.boxes[rows], self.scores[rows], tracks)

    @classmethod
    def _from_columns(cls, columns: Sequence[np.ndarray]) -> Detections:
        """The five columns in order, the last one ``NO_TRACK`` where a detection belongs to no track."""
        return cls(*columns[:4], track_ids=columns[4] if (columns[4] != NO_TRACK).any() else None)

    @classmethod
    def from_results(cls, source: Path | str | list[Any]) -> Detections:
        """A COCO results list, file or in memory: ``image_id, category_id, bbox [x,y,w,h], score``, optional
        ``track_id`` (or null).

        Raises FileNotFoundError, and ValueError naming the first record that does not fit.
        """
        records = read_list(source, DetectionRecord, "predictions")
        tracks = np.array([NO_TRACK if track is None else track for track in records["track_id"]], np.int64)
        scores = np.array(records["score"], np.float64)
        return cls._from_columns([records["image_id"], records["category_id"], records["bbox"], scores, tracks])

    @classmethod
    def load(cls, path: Path | str, gt: GroundTruth | None = None) -> Detections:
        """Read ``.json`` (COCO results), ``.npz`` (columns) or, with the annotations, MOT text.

        MOT text is a ``.txt`` or ``.csv`` file ``frame,id,x,y,w,h,conf[,class,...]`` with frames from 1, or a folder
        with one such file per video, named after the video.  Raises FileNotFoundError and ValueError.
        """
        path = Path(path)
        if path.is_dir() or (path.is_file() and path.suffix in (".txt", ".csv")):
            if gt is None:
                raise ValueError(f"predictions {path}: MOT text needs the annotations to name its frames")
            return cls._from_columns(read_mot(path, gt))
        return _from_npz(path) if path.is_file() and path.suffix == ".npz" else cls.from_results(path)

    def save(self, path: Path | str) -> None:
        """Write the columns to one ``.npz`` file, much smaller and faster to read than JSON."""
        columns = {name: getattr(self, name) for name in self.__dataclass_fields__ if getattr(self, name) is not None}
        with replacing(path) as draft, draft.open("wb") as stream:
            np.savez(stream, **columns)

    def write_results(self, path: Path | str) -> None:
        """Write a COCO results list, a part at a time; the file appears only when it is complete."""
        with replacing(path) as draft, draft.open("w") as stream:
            stream.write("[")
            for start in range(0, len(self), _PART):
                text = json.dumps(self._records(slice(start, start + _PART)))
                stream.write((", " if start else "") + text[1:-1])
            stream.write("]")

    def _records(self, part: slice) -> list[dict[str, Any]]:
        names = {"image_id": "image_ids", "category_id": "category_ids", "bbox": "boxes", "score": "scores"}
        columns = {key: getattr(self, name)[part].tolist() for key, name in names.items()}
        records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        if self.track_ids is not None:
            for record, track in zip(records, self.track_ids[part].tolist(), strict=True):
                if track != NO_TRACK:
                    record["track_id"] = track
        return records

    def bind(self, gt: GroundTruth) -> BoundDetections:
        """Positions instead of ids.  Raises ValueError naming an unknown image or category and the nearest valid."""
        image = index_of(gt.image_ids, self.image_ids, "image_id", "predictions", np.int32)
        category = index_of(gt.category_ids, self.category_ids, "category_id", "predictions", np.int32)
        return BoundDetections(image, category, self.boxes, self.scores, self.track_ids)


@dataclass(frozen=True, repr=False)
class BoundDetections:
    """Detections whose image and category are positions in a ``GroundTruth``; order as given.

    image: n int32      category: n int32       boxes: n,4 xywh     scores: n       tracks: n int64 or None
    """

    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    tracks: np.ndarray | None

    def __len__(self) -> int:
        return len(self.image)

    def subset(self, images: np.ndarray) -> BoundDetections:
        """Only detections of the images that the mask (M bool) names, as positions in ``GroundTruth.subset``."""
        part = self.take(images[self.image])
        return replace(part, image=(np.cumsum(images) - 1).astype(np.int32)[part.image])

    def take(self, rows: np.ndarray) -> BoundDetections:
        """The detections that the mask or positions ``rows`` name."""
        tracks = None if self.tracks is None else self.tracks[rows]
        return BoundDetections(self.image[rows], self.category[rows], self.boxes[rows], self.scores[rows], tracks)


def _from_npz(path: Path) -> Detections:
    with np.load(path, allow_pickle=False) as stored:
        required = ("image_ids", "category_ids", "boxes", "scores")
        missing = [name for name in required if name not in stored]
        if missing:
            raise ValueError(f"predictions file {path} has no column {missing[0]!r}; it has {sorted(stored.files)}")
        tracks = stored["track_ids"] if "track_ids" in stored.files else None
        return Detections(*(stored[name] for name in required), track_ids=tracks)
