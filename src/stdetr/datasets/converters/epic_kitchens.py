"""EPIC-KITCHENS-55 object detection: one CSV for all videos (Damen et al., 2018).

``bounding_boxes`` is a list of ``(top, left, height, width)``: y before x, height before width.  A row with an empty
list means that the object was searched on that frame and not found.  Frames are numbered from 1 in the original video
and annotated about every 30th; there are no tracks.  The rows of this one file (30 MB) are held in memory.
"""

from __future__ import annotations

import ast
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, whole
from stdetr.datasets.converters.records import Box, Category, FrameRoot, Image, Reader, Video
from stdetr.datasets.converters.text_files import read_records

_LABELS = ("EPIC_train_object_labels.csv", "annotations/EPIC_train_object_labels.csv")
_NOUNS = ("EPIC_noun_classes.csv", "annotations/EPIC_noun_classes.csv")
_FRAMES = ("object_detection_images/train", "EPIC_KITCHENS_2018/object_detection_images/train", "train", "")


class _Row(NamedTuple):
    frame: int
    line: int
    noun: int
    boxes: tuple[tuple[float, ...], ...]
    participant: str
    video: str


class EpicKitchensReader(Reader):
    """``EPIC_train_object_labels.csv`` and ``EPIC_noun_classes.csv`` with frames in
    ``object_detection_images/train/P01/P01_01/0000000001.jpg``.

    Noun ids are the category ids.  ``classes`` keeps only the nouns named.  Each annotated frame has an image record.
    """

    accepted = frozenset({"classes", "annotations", "frame_size", "check_media"})

    def prepare(self) -> None:
        self.labels = self.tree.require(self.options.annotations or self._find(_LABELS), "the object labels")
        self.nouns = self.tree.require(self._find(_NOUNS), "the noun classes")

    def _find(self, candidates: tuple[str, ...]) -> str:
        path = self.tree.first_existing(*candidates)
        return candidates[0] if path is None else self.tree.name(path)

    def categories(self) -> list[Category]:
        shown, labels = self.tree.name(self.nouns), self.tree.name(self.labels)
        self.known: dict[int, str] = {}
        for line, row in read_records(self.nouns, shown, ("noun_id", "class_key"), self.problems):
            try:
                self.known[whole(row["noun_id"], "noun_id")] = row["class_key"].strip()
            except MalformedField as error:
                raise MalformedInputError(f"{shown}:{line}: {error}") from None
        selected = set(self.options.classes)
        for name in sorted(selected - set(self.known.values())):
            raise ValueError(f"classes has {name!r}, which {shown} does not know")
        kept = {number for number, name in self.known.items() if not selected or name in selected}
        required = ("noun_class", "participant_id", "video_id", "frame", "bounding_boxes")
        self.rows: dict[str, list[_Row]] = defaultdict(list)
        for row in self.problems.each(labels, read_records(self.labels, labels, required, self.problems), self._row):
            if row.noun in kept:
                self.rows[row.video].append(row)
            else:
                self.problems.note("rows left out: noun not among classes")
        self.total = len(self.rows)
        return [Category(number, self.known[number]) for number in sorted(kept)]

    def _row(self, line: int, cells: dict[str, str]) -> _Row:
        noun, frame = whole(cells["noun_class"], "noun_class"), whole(cells["frame"], "frame")
        boxes = _boxes(cells["bounding_boxes"])
        if noun not in self.known:
            raise MalformedField(f"noun_class {noun} is not in {self.tree.name(self.nouns)}")
        if frame < 1:
            raise MalformedField(f"frame is {frame}, frames count from 1")
        return _Row(frame, line, noun, boxes, cells["participant_id"].strip(), cells["video_id"].strip())

    def videos(self) -> Iterator[Video]:
        shown = self.tree.name(self.labels)
        root = FrameRoot(self, shown, _FRAMES)
        for video, rows in sorted(self.rows.items()):
            images: list[Image] = []
            boxes: list[Box] = []
            for frame, group in itertools.groupby(sorted(rows), key=lambda row: row.frame):
                annotated = list(group)
                first = annotated[0]
                if path := root.path(f"{first.participant}/{video}/{frame:010d}.jpg", first.line):
                    images.append(Image(frame, path))
                    boxes += [Box(frame, row.noun, xywh, record=row.line) for row in annotated for xywh in row.boxes]
            if not images:
                continue
            assert images[0].path is not None
            size = self.frame_size(images[0].path)
            if size is None:
                # True of most videos, but a few of P12 are 1280x720 or 2560x1440.
                self.problems.note("videos taken as 1920x1080: their frames are not read, and there is no frame_size")
            # The data does not give the length of the video: it is taken up to the last annotated frame.
            length, size = images[-1].frame, size or (1920, 1080)
            yield Video(video, *size, length, boxes, shown, images, first=1, split="train")


def _boxes(text: str) -> tuple[tuple[float, ...], ...]:
    """The boxes of a cell, as x, y, w, h."""
    try:
        value: Any = ast.literal_eval(text.strip())
        boxes = tuple((left, top, width, height) for top, left, height, width in value)
        if not all(math.isfinite(side) for box in boxes for side in box):
            raise ValueError
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, OverflowError):
        raise MalformedField(f"bounding_boxes is {text!r}, not a list of (top, left, height, width)") from None
    return boxes
