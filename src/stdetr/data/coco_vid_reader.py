"""Reads a CocoVID JSON file into a :class:`~stdetr.data.coco_vid.CocoVid`, and says clearly what is wrong with it.

Shape legend
    V videos     I images     A annotations
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stdetr.data.coco_vid import DEGRADATIONS, CocoVid, PackedNames
from stdetr.structures import ClassNames

# Rounded annotations stick out by a fraction of a pixel; that is no mistake worth stopping for.
_BORDER_TOLERANCE = 1.0


def read_coco_vid(path: str | Path, *, strict: bool = True) -> CocoVid:
    """Load and check one annotation file.

    strict: a box that leaves its frame by more than a pixel is an error; otherwise boxes are clipped to the frame
    and those that lie wholly outside are dropped (``CocoVid.clipped`` counts both).

    Raises FileNotFoundError when the file is absent and ValueError, in one line that names file, record and fix,
    for anything else that is wrong with it.
    """
    path = Path(path)
    document = _load(path)
    return _Reader(path, document, strict).read()


def _load(path: Path) -> dict[str, Any]:
    if not path.exists():
        near = difflib.get_close_matches(path.name, _siblings(path), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise FileNotFoundError(f"annotation file {path} does not exist{hint}")
    if path.is_dir():
        raise ValueError(f"annotation file {path} is a folder; name the JSON file inside it")
    text = path.read_bytes()
    if not text.strip():
        raise ValueError(f"annotation file {path} is empty")
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"annotation file {path} is no JSON: {error}") from error
    if not isinstance(document, dict):
        kind = "a list (COCO results?)" if isinstance(document, list) else type(document).__name__
        raise ValueError(  # noqa: TRY004 - a mistake in a file, not in a call
            f"annotation file {path} must hold one JSON object with videos, images, ..., got {kind}"
        )
    return document


def _siblings(path: Path) -> list[str]:
    return [item.name for item in path.parent.glob("*.json")] if path.parent.is_dir() else []


class _Reader:
    """Checks and converts one section after the other."""

    def __init__(self, path: Path, document: dict[str, Any], strict: bool) -> None:
        self.path, self.document, self.strict = path, document, strict

    def _fail(self, what: str) -> ValueError:
        return ValueError(f"annotation file {self.path}: {what}")

    def _section(self, name: str) -> list[dict[str, Any]]:
        value = self.document.get(name)
        if value is None:
            near = difflib.get_close_matches(name, self.document, n=1)
            if near:
                hint = f"; it has {near[0]!r}"
            elif name == "videos":
                hint = "; convert plain COCO with: stdetr data action=convert format=coco"
            else:
                hint = ""
            raise self._fail(f"the section {name!r} is missing{hint}")
        if not isinstance(value, list):
            raise self._fail(f"the section {name!r} must be a list, got {type(value).__name__}")
        return value

    def _column(self, section: str, records: list[dict[str, Any]], key: str, kind: Callable = int) -> list[Any]:
        try:
            return [kind(record[key]) for record in records]
        except (KeyError, TypeError, ValueError):
            for number, record in enumerate(records):
                if not isinstance(record, dict):
                    raise self._fail(f"{section}[{number}] must be an object, got {record!r}") from None
                if key not in record:
                    raise self._fail(f"{section}[{number}] (id {record.get('id')}) has no {key!r}") from None
                try:
                    kind(record[key])
                except (TypeError, ValueError):
                    raise self._fail(
                        f"{section}[{number}].{key} must be {kind.__name__}, got {record[key]!r}"
                    ) from None
            raise

    def _ids(self, section: str, records: list[dict[str, Any]]) -> np.ndarray:
        ids = np.array(self._column(section, records, "id"), dtype=np.int64)
        values, counts = np.unique(ids, return_counts=True)
        if (counts > 1).any():
            raise self._fail(f"{section} has the id {values[counts > 1][0]} {counts.max()} times; ids must be unique")
        return ids

    def _lookup(
        self, ids: np.ndarray, wanted: np.ndarray, records: list, section: str, key: str, into: str
    ) -> np.ndarray:
        """Positions of ``wanted`` in ``ids``; an error names the record and the nearest id there is."""
        order = np.argsort(ids, kind="stable")
        if len(wanted) == 0:
            return np.zeros(0, dtype=np.int64)
        if len(ids) == 0:
            raise self._fail(f"{section} refer to {into}, but {into} is empty")
        place = np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)
        found = order[place]
        wrong = np.flatnonzero(ids[found] != wanted)
        if len(wrong):
            record = records[int(wrong[0])]
            nearest = int(ids[np.argmin(np.abs(ids - wanted[wrong[0]]))])
            more = f" ({len(wrong)} such records)" if len(wrong) > 1 else ""
            raise self._fail(
                f"{section} id {record.get('id')} has {key} {int(wanted[wrong[0]])}, which {into} lacks{more}; "
                f"nearest id there: {nearest}"
            )
        return found

    def read(self) -> CocoVid:
        classes = self._classes()
        videos = self._section("videos")
        if not videos:
            raise self._fail("'videos' is empty: there is nothing to read")
        video_ids = self._ids("videos", videos)
        order = np.argsort(video_ids, kind="stable")
        videos, video_ids = [videos[i] for i in order], video_ids[order]
        sizes = np.array(
            [self._column("videos", videos, "height"), self._column("videos", videos, "width")], dtype=np.int64
        ).T
        if (sizes < 1).any():
            number = int(np.flatnonzero((sizes < 1).any(axis=1))[0])
            height, width = sizes[number]
            raise self._fail(f"videos id {video_ids[number]} has the size {width}x{height}; both must be positive")
        lengths = np.array([int(video.get("length") or 0) for video in videos], dtype=np.int64)
        files = [str(video.get("file_name") or "") for video in videos]

        images = self._section("images")
        if not images:
            raise self._fail("'images' is empty: there is nothing to read")
        image_ids = self._ids("images", images)
        wanted = np.array(self._column("images", images, "video_id"), dtype=np.int64)
        video_of = self._lookup(video_ids, wanted, images, "images", "video_id", "videos")
        frame_ids = np.array(self._column("images", images, "frame_id"), dtype=np.int64)
        self._check_frames(video_of, frame_ids, lengths, image_ids, files)
        order = np.lexsort((frame_ids, video_of))
        images = [images[i] for i in order]
        image_ids, video_of, frame_ids = image_ids[order], video_of[order], frame_ids[order]
        twice = np.flatnonzero((np.diff(frame_ids) == 0) & (np.diff(video_of) == 0))
        if len(twice):
            row = int(twice[0])
            raise self._fail(
                f"images id {image_ids[row]} and {image_ids[row + 1]} are both frame_id {frame_ids[row]} "
                f"of video {video_ids[video_of[row]]}"
            )
        image_files = [str(image.get("file_name") or "") for image in images]
        for row, name in enumerate(image_files):
            if not name and not files[video_of[row]]:
                raise self._fail(f"images id {image_ids[row]} has no file_name and its video has none either")
        annotations = self._annotations(classes, image_ids, sizes[video_of])
        return CocoVid(
            path=self.path,
            classes=classes,
            video_ids=video_ids,
            video_sizes=sizes,
            video_lengths=lengths,
            video_names=PackedNames.pack(
                [str(video.get("name") or name or video["id"]) for video, name in zip(videos, files, strict=True)]
            ),
            video_files=PackedNames.pack(files),
            video_start=np.searchsorted(video_of, np.arange(len(videos) + 1)),
            image_ids=image_ids,
            frame_ids=frame_ids,
            image_files=PackedNames.pack(image_files),
            degradation=self._degradation(images),
            marks_degradation=any("degradation" in image for image in images),
            **annotations,
        )

    def _classes(self) -> ClassNames:
        categories = self._section("categories")
        ids = self._ids("categories", categories)
        if not len(ids):
            raise self._fail("'categories' is empty: there is no class to learn")
        names = self._column("categories", categories, "name", str)
        order = np.argsort(ids)
        return ClassNames(tuple(int(ids[i]) for i in order), tuple(names[i] for i in order))

    def _check_frames(
        self, video_of: np.ndarray, frame_ids: np.ndarray, lengths: np.ndarray, image_ids: np.ndarray, files: list[str]
    ) -> None:
        has_file = np.array([bool(name) for name in files])
        limit = np.where((lengths > 0) & has_file, lengths, np.iinfo(np.int64).max)[video_of]
        wrong = np.flatnonzero((frame_ids < 0) | (frame_ids >= limit))
        if len(wrong):
            row = int(wrong[0])
            length = int(lengths[video_of[row]])
            raise self._fail(
                f"images id {image_ids[row]} has frame_id {frame_ids[row]}, but frames count from 0 and its video has "
                f"length {length}"
            )

    def _degradation(self, images: list[dict[str, Any]]) -> np.ndarray:
        codes = {None: -1, **{name: code for code, name in enumerate(DEGRADATIONS)}}
        column = np.empty(len(images), dtype=np.int8)
        for row, image in enumerate(images):
            value = image.get("degradation")
            if value not in codes:
                known = ", ".join(DEGRADATIONS)
                raise self._fail(f"images id {image['id']} has degradation {value!r}; known are null, {known}")
            column[row] = codes[value]
        return column

    def _annotations(self, classes: ClassNames, image_ids: np.ndarray, sizes: np.ndarray) -> dict[str, Any]:
        """Columns of the annotations, sorted by image row; ``sizes`` I,2 (h, w) px."""
        records = self._section("annotations")
        self._ids("annotations", records)
        wanted = np.array(self._column("annotations", records, "image_id"), dtype=np.int64)
        rows = self._lookup(image_ids, wanted, records, "annotations", "image_id", "images")
        wanted = np.array(self._column("annotations", records, "category_id"), dtype=np.int64)
        labels = self._lookup(np.array(classes.ids), wanted, records, "annotations", "category_id", "categories")
        boxes = np.zeros((len(records), 4), dtype=np.float64)
        raw = self._column("annotations", records, "bbox", list)
        for number, box in enumerate(raw):
            if len(box) != 4 or not all(isinstance(value, (int, float)) for value in box):
                raise self._fail(f"annotations id {records[number]['id']} must have bbox [x, y, w, h], got {box!r}")
            boxes[number] = box
        wrong = np.flatnonzero(~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] < 0).any(axis=1))
        if len(wrong):
            number = int(wrong[0])
            raise self._fail(
                f"annotations id {records[number]['id']} has bbox {raw[number]}; numbers must be finite, w and h >= 0"
            )
        boxes[:, 2:] += boxes[:, :2]
        limits = sizes[rows][:, ::-1].astype(np.float64)
        outside = np.maximum((-boxes[:, :2]).max(axis=1), (boxes[:, 2:] - limits).max(axis=1))
        far = np.flatnonzero(outside > _BORDER_TOLERANCE)
        if self.strict and len(far):
            number = int(far[0])
            height, width = sizes[rows[number]]
            raise self._fail(
                f"annotations id {records[number]['id']} (image {image_ids[rows[number]]}) has bbox {raw[number]}, "
                f"outside its {width}x{height} frame ({len(far)} such boxes); correct them or set data.strict=false "
                "to clip them"
            )
        boxes = np.clip(boxes, 0, np.concatenate([limits, limits], axis=1))
        keep = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
        tracks = np.array([_integer(record.get("instance_id")) for record in records], dtype=np.int64)
        ignored = np.array(
            [bool(record.get("iscrowd", 0)) or bool(record.get("ignore", 0)) for record in records], dtype=bool
        )
        order = np.argsort(rows, kind="stable")
        order = order[keep[order]]
        return {
            "annotation_start": np.searchsorted(rows[order], np.arange(len(image_ids) + 1)),
            "boxes": boxes[order].astype(np.float32),
            "labels": labels[order].astype(np.int64),
            "tracks": tracks[order],
            "ignored": ignored[order],
            "clipped": int((outside > _BORDER_TOLERANCE).sum() + (~keep & (outside <= _BORDER_TOLERANCE)).sum()),
        }


def _integer(value: Any) -> int:
    return -1 if value is None else int(value)
