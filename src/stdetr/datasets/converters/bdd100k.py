"""BDD100K multiple object tracking: one JSON file per video (Yu et al., 2020).

Following TrackEval's ``bdd100k``: other persons, trailers and other vehicles, and everything marked as a crowd, are
ignore regions for every class.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from stdetr.data.json_file import JsonFile, Number, Text, explain
from stdetr.datasets.converters.annotation_files import FrameRoot, choose_splits, split_name
from stdetr.datasets.converters.problems import MalformedField, whole
from stdetr.datasets.converters.records import Box, Frame, Reader, Video

DISTRACTORS = frozenset({"other person", "trailer", "other vehicle"})
_LABELS = ("labels/box_track_20", "labels/track", "box_track_20", "labels")
_Index = Annotated[int, msgspec.Meta(ge=0)]


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

    @property
    def ignore(self) -> bool:
        attributes = self.attributes or {}
        return self.category in DISTRACTORS or bool(attributes.get("crowd", attributes.get("Crowd", False)))


class Bdd100kReader(Reader):
    """``labels/box_track_20/<split>/<video>.json`` with frames in ``images/track/<split>/<video>/``.

    A frame has ``name``, ``frameIndex`` (or ``index``) from 0 and ``labels``, each with ``id``, ``category``,
    ``box2d`` and ``attributes``.
    """

    accepted = frozenset({"split", "frame_size", "check_media"})
    names = ("pedestrian", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")

    def prepare(self) -> None:
        labels = self.tree.first_existing(_LABELS)
        if labels is None:
            tried = ", ".join(_LABELS)
            raise FileNotFoundError(f"source={self.tree.root} has none of {tried} (BDD100K tracking labels)")
        folders = {split_name(folder.name): folder for folder in self.tree.folders(labels)}
        self.files = [
            (split, folders[split].name, path)
            for split in choose_splits(folders, self.options)
            for path in self.tree.files(folders[split], frozenset({".json"}))
        ]
        if not self.files:
            where = self.tree.name(labels)
            raise FileNotFoundError(f"source={self.tree.root}: {where} holds no <split>/<video>.json")
        self.total = len(self.files)

    def videos(self) -> Iterator[Video]:
        for split, source_split, path in self.files:
            shown = self.tree.name(path)
            folders = (f"images/track/{source_split}", f"track/{source_split}", f"images/{source_split}")
            root = FrameRoot(self.tree, folders, self.options.check_media)
            frames = sorted(self._frames(path, shown, root), key=lambda frame: frame.index)
            if not frames:
                self.problems.add(shown, 0, "no frames")
                continue
            assert frames[0].path is not None
            size = self.frame_size(frames[0].path)
            if size is None:
                told = f"{shown} tells no frame size, and check_media=false reads none"
                raise ValueError(f"frame_size is missing: {told}")
            yield Video(path.stem, *size, frames[-1].index + 1, frames, shown, split=split)

    def _frames(self, path: Path, shown: str, root: FrameRoot) -> Iterator[Frame]:
        seen: set[int] = set()
        json = JsonFile(path, shown)
        section = "" if isinstance(json.value, list) else "frames"
        for number, raw in enumerate(json.records(section)):
            where = json.where(section, number, raw)
            frame = self.problems.attempt(shown, where, self._frame, path, shown, where, raw, root)
            if frame is None:
                continue
            if frame.index in seen:
                self.problems.add(shown, where, f"frame {frame.index} was already there")
                continue
            seen.add(frame.index)
            yield frame

    def _frame(self, path: Path, shown: str, where: str, raw: msgspec.Raw, root: FrameRoot) -> Frame:
        value = _decode(raw, _Frame)
        index = value.index if value.frame_index is None else value.frame_index
        if index is None:
            raise MalformedField("frameIndex is missing")
        image = root.path(f"{path.stem}/{value.name}", shown, where)
        boxes = (
            self.problems.attempt(shown, f"{where}.labels[{place}]", self._box, label, f"{where}.labels[{place}]")
            for place, label in enumerate(value.labels or ())
        )
        return Frame(index, index, tuple(box for box in boxes if box is not None), image)

    def _box(self, raw: msgspec.Raw, where: str) -> Box:
        label = _decode(raw, _Label)
        corners = label.box2d
        xywh = (corners.x1, corners.y1, corners.x2 - corners.x1, corners.y2 - corners.y1)
        if label.ignore:
            return Box(None, xywh, ignore=True, record=where)
        if label.category not in self.names:
            raise MalformedField(f"category {label.category!r} is none of BDD100K's {', '.join(self.names)}")
        return Box(self.names.index(label.category) + 1, xywh, whole(str(label.id), "id"), record=where)


def _decode(raw: msgspec.Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise MalformedField(explain(error, raw)) from None
