"""EPIC-KITCHENS-55 object detection: one CSV for all videos (Damen et al., 2018).

``bounding_boxes`` is a list of ``(top, left, height, width)``: y before x, height before width.  A row with an empty
list says that the object was looked for on that frame and not found.  Frames are numbered from 1 in the original video
and annotated about every 30th; there are no tracks.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stdetr.datasets.converters.annotation_files import FrameRoot
from stdetr.datasets.converters.media import image_size
from stdetr.datasets.converters.options import Options
from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, Problems
from stdetr.datasets.converters.record_store import RecordStore, Stored
from stdetr.datasets.converters.records import Box, Category, Frame, Video
from stdetr.datasets.converters.source_tree import SourceTree
from stdetr.datasets.converters.tables import read_records

_LABELS = ("EPIC_train_object_labels.csv", "annotations/EPIC_train_object_labels.csv")
_NOUNS = ("EPIC_noun_classes.csv", "annotations/EPIC_noun_classes.csv")
_FRAMES = ("object_detection_images/train", "EPIC_KITCHENS_2018/object_detection_images/train", "train", "")


class EpicKitchensReader:
    """``EPIC_train_object_labels.csv`` and ``EPIC_noun_classes.csv`` with frames in
    ``object_detection_images/train/P01/P01_01/0000000001.jpg``.

    Noun ids are the category ids.  ``classes`` keeps only the nouns named.  Each annotated frame has an image record.
    """

    accepted = frozenset({"classes", "annotations", "frame_size", "check_media"})
    one_id_space = True

    def __init__(self, tree: SourceTree, options: Options, problems: Problems, work: Path) -> None:
        self.tree, self.options, self.problems = tree, options, problems
        self.labels = tree.require(options.annotations or self._find(_LABELS), "the object labels")
        self.nouns = tree.require(self._find(_NOUNS), "the noun classes")
        self.store = RecordStore(work / "epic.sqlite")
        self.video_ids: dict[str, int] = {}
        self.participants: dict[str, str] = {}

    def _find(self, candidates: tuple[str, ...]) -> str:
        path = self.tree.first_existing(candidates)
        return candidates[0] if path is None else self.tree.name(path)

    def categories(self) -> list[Category]:
        shown = self.tree.name(self.nouns)
        names: dict[int, str] = {}
        for line, row in read_records(self.nouns, shown, ("noun_id", "class_key"), self.problems):
            if not row["noun_id"].strip().isdigit():
                raise MalformedInputError(f"{shown}:{line}: noun_id is {row['noun_id']!r}, not a whole number")
            names[int(row["noun_id"])] = row["class_key"].strip()
        wanted = set(self.options.classes)
        for name in sorted(wanted - set(names.values())):
            raise ValueError(f"classes has {name!r}, which {shown} does not know")
        kept = {number: name for number, name in names.items() if not wanted or name in wanted}
        self._load(kept, set(names))
        return [Category(number, kept[number]) for number in sorted(kept)]

    def count(self) -> int:
        return len(self.video_ids)

    def _load(self, kept: dict[int, str], known: set[int]) -> None:
        """Rows of the CSV into the store: by video, ordered by frame."""
        shown = self.tree.name(self.labels)
        required = ("noun_class", "participant_id", "video_id", "frame", "bounding_boxes")
        number = 0
        for line, row in read_records(self.labels, shown, required, self.problems):
            try:
                noun, frame = _whole(row, "noun_class"), _whole(row, "frame")
                boxes = _boxes(row["bounding_boxes"])
                if noun not in known:
                    raise MalformedField(f"noun_class {noun} is not in {self.tree.name(self.nouns)}")
                if frame < 1:
                    raise MalformedField(f"frame is {frame}, frames count from 1")
            except MalformedField as error:
                self.problems.add(shown, line, str(error))
                continue
            if noun not in kept:
                self.problems.note("rows left out: noun not among classes")
                continue
            video = row["video_id"].strip()
            self.participants[video] = row["participant_id"].strip()
            parent = self.video_ids.setdefault(video, len(self.video_ids))
            number += 1
            self.store.add("rows", number, parent, frame, str(line), {"noun": noun, "frame": frame, "boxes": boxes})

    def videos(self) -> Iterator[Video]:
        shown = self.tree.name(self.labels)
        root = FrameRoot(self.tree, _FRAMES, self.options.check_media)
        for video, parent in sorted(self.video_ids.items()):
            frames = list(self._frames(video, parent, shown, root))
            if not frames:
                continue
            width, height = self._size(frames[0])
            # The length of the video is not in the data: it is known up to the last annotated frame.
            yield Video(video, width, height, frames[-1].index + 1, frames, shown, split="train")

    def _size(self, first: Frame) -> tuple[int, int]:
        if self.options.frame_size is not None:
            return self.options.frame_size
        if not self.options.check_media:
            # True of most videos, but a few of P12 are 1280x720 or 2560x1440.
            self.problems.note("videos taken as 1920x1080: their frames are not looked at, and there is no frame_size")
            return 1920, 1080
        assert first.path is not None
        return image_size(first.path, self.tree.name(first.path))

    def _frames(self, video: str, parent: int, shown: str, root: FrameRoot) -> Iterator[Frame]:
        rows: list[Stored] = []
        for stored in self.store.children("rows", parent):
            if rows and rows[0].value["frame"] != stored.value["frame"]:
                yield from self._frame(video, rows, shown, root)
                rows = []
            rows.append(stored)
        if rows:
            yield from self._frame(video, rows, shown, root)

    def _frame(self, video: str, rows: list[Stored], shown: str, root: FrameRoot) -> Iterator[Frame]:
        number = rows[0].value["frame"]
        line = int(rows[0].where)
        try:
            path = root.path(f"{self.participants[video]}/{video}/{number:010d}.jpg", shown, line)
        except MalformedField as error:
            self.problems.add(shown, line, str(error))
            return
        boxes = tuple(
            Box(row.value["noun"], (left, top, width, height), record=int(row.where))
            for row in rows
            for top, left, height, width in row.value["boxes"]
        )
        yield Frame(number - 1, number, boxes, path)


def _whole(row: dict[str, str], key: str) -> int:
    text = row[key].strip()
    if not text.isdigit():
        raise MalformedField(f"{key} is {text!r}, not a whole number")
    return int(text)


def _boxes(text: str) -> list[list[float]]:
    """The list of (top, left, height, width) as written in the file."""
    try:
        value: Any = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise MalformedField(f"bounding_boxes is {text!r}, not a list of (top, left, height, width)") from None
    good = isinstance(value, list) and all(isinstance(box, (tuple, list)) and len(box) == 4 for box in value)
    numbers = [side for box in value for side in box] if good else []
    finite = all(isinstance(side, (int, float)) and math.isfinite(side) for side in numbers)
    if not good or not finite:
        raise MalformedField(f"bounding_boxes is {text!r}, not a list of (top, left, height, width)")
    return [list(box) for box in value]
