"""BDD100K multiple object tracking: one JSON file a video (Yu et al., 2020).

Following TrackEval's ``bdd100k``: other persons, trailers and other vehicles, and whatever is marked as a crowd, are
ignore regions for every class.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stdetr.datasets.converters import json_fields as fields
from stdetr.datasets.converters.annotation_files import FrameRoot, choose_splits, split_name
from stdetr.datasets.converters.json_stream import Record, iter_records
from stdetr.datasets.converters.media import image_size
from stdetr.datasets.converters.options import Options
from stdetr.datasets.converters.problems import MalformedField, Problems
from stdetr.datasets.converters.records import Box, Category, Frame, Video
from stdetr.datasets.converters.source_tree import SourceTree

CLASSES = ("pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
DISTRACTORS = frozenset({"other person", "trailer", "other vehicle"})
_LABELS = ("labels/box_track_20", "labels/track", "box_track_20", "labels")


class Bdd100kReader:
    """``labels/box_track_20/<split>/<video>.json`` with frames in ``images/track/<split>/<video>/``.

    A frame has ``name``, ``frameIndex`` (or ``index``) from 0 and ``labels``, each with ``id``, ``category``,
    ``box2d`` and ``attributes``.
    """

    accepted = frozenset({"split", "frame_size", "check_media"})
    one_id_space = True

    def __init__(self, tree: SourceTree, options: Options, problems: Problems, work: Path) -> None:
        self.tree, self.options, self.problems = tree, options, problems
        labels = tree.first_existing(_LABELS)
        if labels is None:
            raise FileNotFoundError(f"source={tree.root} has none of {', '.join(_LABELS)} (BDD100K tracking labels)")
        folders = {split_name(folder.name): folder for folder in tree.folders(labels)}
        self.files = [
            (split, folders[split].name, path)
            for split in choose_splits(folders, options)
            for path in tree.files(folders[split], frozenset({".json"}))
        ]
        if not self.files:
            raise FileNotFoundError(f"source={tree.root}: {tree.name(labels)} holds no <split>/<video>.json")

    def categories(self) -> list[Category]:
        return [Category(number, name) for number, name in enumerate(CLASSES, start=1)]

    def count(self) -> int:
        return len(self.files)

    def videos(self) -> Iterator[Video]:
        for split, source_split, path in self.files:
            shown = self.tree.name(path)
            folders = (f"images/track/{source_split}", f"track/{source_split}", f"images/{source_split}")
            root = FrameRoot(self.tree, folders, self.options.check_media)
            frames = sorted(self._frames(path, shown, root), key=lambda frame: frame.index)
            if not frames:
                self.problems.add(shown, 0, "no frames")
                continue
            width, height = self._size(frames[0], shown)
            yield Video(path.stem, width, height, frames[-1].index + 1, frames, shown, split=split)

    def _size(self, first: Frame, shown: str) -> tuple[int, int]:
        if self.options.frame_size is not None:
            return self.options.frame_size
        if not self.options.check_media:
            raise ValueError(f"frame_size is missing: {shown} tells no frame size, and check_media=false reads none")
        assert first.path is not None
        return image_size(first.path, self.tree.name(first.path))

    def _frames(self, path: Path, shown: str, root: FrameRoot) -> Iterator[Frame]:
        seen: set[int] = set()
        for record in iter_records(path, shown):
            if record.section not in ("", "frames") or record.index is None:
                continue
            try:
                frame = self._frame(path, shown, record, root)
            except MalformedField as error:
                self.problems.add(shown, record.where, str(error))
                continue
            if frame.index in seen:
                self.problems.add(shown, record.where, f"frame {frame.index} was already there")
                continue
            seen.add(frame.index)
            yield frame

    def _frame(self, path: Path, shown: str, record: Record, root: FrameRoot) -> Frame:
        value = record.value
        if not isinstance(value, dict):
            raise MalformedField(f"must be an object, it is {type(value).__name__}")
        index = fields.whole(value, "frameIndex" if "frameIndex" in value else "index")
        if index < 0:
            raise MalformedField(f"frame index {index} is negative")
        image = root.path(f"{path.stem}/{fields.text(value, 'name')}", shown, record.where)
        boxes: list[Box] = []
        for place, label in enumerate(value.get("labels") or []):
            where = f"{record.where}.labels[{place}]"
            try:
                boxes.append(_box(label, where))
            except MalformedField as error:
                self.problems.add(shown, where, str(error))
        return Frame(index, index, tuple(boxes), image)


def _box(label: Any, where: str) -> Box:
    if not isinstance(label, dict):
        raise MalformedField(f"must be an object, it is {type(label).__name__}")
    corners = label.get("box2d")
    if not isinstance(corners, dict):
        raise MalformedField(f"box2d is {corners!r}, not {{x1, y1, x2, y2}}")
    x1, y1, x2, y2 = (fields.number(corners, key) for key in ("x1", "y1", "x2", "y2"))
    xywh = (x1, y1, x2 - x1, y2 - y1)
    category = fields.text(label, "category")
    attributes = label.get("attributes") or {}
    crowd = bool(attributes.get("crowd", attributes.get("Crowd", False)))
    if category in DISTRACTORS or crowd:
        return Box(None, xywh, ignore=True, record=where)
    if category not in CLASSES:
        raise MalformedField(f"category {category!r} is none of BDD100K's {', '.join(CLASSES)}")
    return Box(CLASSES.index(category) + 1, xywh, fields.whole(label, "id"), record=where)
