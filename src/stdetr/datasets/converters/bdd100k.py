"""BDD100K multiple object tracking: one JSON file per video (Yu et al., 2020).

Following TrackEval's ``bdd100k``: other persons, trailers and other vehicles, and everything marked as a crowd, are
ignore regions for every class.  The names that the toolkit used in 2020 mean the classes they were renamed to.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec

from stdetr.data.json_file import JsonFile, Number, Text
from stdetr.datasets.converters.coco_like import decode
from stdetr.datasets.converters.problems import MalformedField, whole
from stdetr.datasets.converters.records import Box, FrameRoot, Image, Reader, Video, split_name

DISTRACTORS = frozenset({"other person", "trailer", "other vehicle"})
RENAMED = {"person": "pedestrian", "bike": "bicycle", "motor": "motorcycle", "van": "car", "caravan": "car"}
_LABELS = ("labels/box_track_20", "labels/track", "box_track_20", "labels")
_Index = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]


class _Frame(msgspec.Struct):
    name: Text
    index: _Index | None = None
    frame_index: _Index | None = msgspec.field(name="frameIndex", default=None)
    labels: list[msgspec.Raw] | None = None


class _Corners(msgspec.Struct):
    x1: Number
    y1: Number
    x2: Number
    y2: Number


class _Label(msgspec.Struct):
    id: str | int
    category: Text
    box2d: _Corners
    attributes: dict[str, Any] | None = None


_FRAME, _LABEL = (msgspec.json.Decoder(kind, strict=False) for kind in (_Frame, _Label))


class Bdd100kReader(Reader):
    """``labels/box_track_20/<split>/<video>.json`` with frames in ``images/track/<split>/<video>/``.

    A frame has ``name``, ``frameIndex`` (or ``index``) from 0 and ``labels``, each with ``id``, ``category``,
    ``box2d`` and ``attributes``.
    """

    accepted = frozenset({"split", "frame_size", "check_media"})
    names = ("pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")

    def prepare(self) -> None:
        labels = self.tree.first_existing(*_LABELS)
        if labels is None:
            tried = ", ".join(_LABELS)
            raise FileNotFoundError(f"source={self.tree.root} has none of {tried} (BDD100K tracking labels)")
        folders = {split_name(folder.name): folder for folder in self.tree.folders(labels)}
        self.files = [
            (split, path) for split in self.choose_splits(folders) for path in self.tree.files(folders[split], ".json")
        ]
        if not self.files:
            where = self.tree.name(labels)
            raise FileNotFoundError(f"source={self.tree.root}: {where} holds no <split>/<video>.json")
        self.total = len(self.files)

    def videos(self) -> Iterator[Video]:
        for split, path in self.files:
            shown, source_split = self.tree.name(path), path.parent.name
            folders = (f"images/track/{source_split}", f"track/{source_split}", f"images/{source_split}")
            images, boxes = self._read(path, FrameRoot(self, shown, folders))
            if not images:
                self.problems.add(shown, 0, "no frames")
                continue
            assert images[0].path is not None
            size = self.frame_size(images[0].path)
            if size is None:
                told = f"{shown} tells no frame size, and check_media=false reads none"
                raise ValueError(f"frame_size is missing: {told}")
            yield Video(path.stem, *size, images[-1].frame + 1, boxes, shown, images, split=split)

    def _read(self, path: Path, root: FrameRoot) -> tuple[list[Image], list[Box]]:
        images: dict[int, Image] = {}
        boxes: list[Box] = []
        json = JsonFile(path, root.file)
        section = "" if isinstance(json.value, list) else "frames"
        for number, raw in enumerate(json.records(section)):
            where = json.where(section, number, raw)
            frame: _Frame | None = self.problems.attempt(root.file, where, decode, raw, _FRAME)
            if frame is None:
                continue
            index = frame.index if frame.frame_index is None else frame.frame_index
            if index is None or index in images:
                told = "frameIndex is missing" if index is None else f"frame {index} was already there"
                self.problems.add(root.file, where, told)
                continue
            # Some releases write the video's folder in front of the name.
            image = root.path(f"{path.stem}/{frame.name.removeprefix(f'{path.stem}/')}", where)
            if image is not None:
                images[index] = Image(index, image)
                labels = ((f"{where}.labels[{place}]", label) for place, label in enumerate(frame.labels or ()))
                boxes += self.problems.each(root.file, labels, partial(self._box, index))
        return [images[index] for index in sorted(images)], boxes

    def _box(self, frame: int, where: str, raw: msgspec.Raw) -> Box:
        label: _Label = decode(raw, _LABEL)
        corners, attributes = label.box2d, label.attributes or {}
        xywh = (corners.x1, corners.y1, corners.x2 - corners.x1, corners.y2 - corners.y1)
        if label.category in DISTRACTORS or attributes.get("crowd", attributes.get("Crowd", False)):
            return Box(frame, None, xywh, ignore=True, record=where)
        name = RENAMED.get(label.category, label.category)
        if name not in self.names:
            raise MalformedField(f"category {label.category!r} is none of BDD100K's {', '.join(self.names)}")
        return Box(frame, self.names.index(name) + 1, xywh, whole(str(label.id), "id"), record=where)
