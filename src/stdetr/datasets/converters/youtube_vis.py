"""YouTube-VIS 2019, 2021 and 2022, and OVIS: boxes of instance tracks; masks are left behind.

An annotation is a track: ``bboxes`` has one box or null for each frame of ``videos[].file_names`` (Yang et al., 2019;
Qi et al., 2022).  Where only masks are there (``segmentations``), their bounding boxes are taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from stdetr.datasets.converters import json_fields as fields
from stdetr.datasets.converters.annotation_files import AnnotationFile, FrameRoot, find_files
from stdetr.datasets.converters.coco import require_sections
from stdetr.datasets.converters.coco_categories import CategoryUnion, keep_category
from stdetr.datasets.converters.options import Options
from stdetr.datasets.converters.problems import MalformedField, Problems
from stdetr.datasets.converters.record_store import RecordStore, Stored, load_sections
from stdetr.datasets.converters.records import Box, Category, Frame, Video
from stdetr.datasets.converters.source_tree import SourceTree

_PATTERNS = (
    "{split}.json",
    "{split}/instances.json",
    "annotations/{split}.json",
    "annotations/instances_{split}.json",
    "annotations_{split}.json",
    "{split}_instances.json",
    "annotations/{split}_instances.json",
    "Annotations/{split}_instances.json",
)


class YoutubeVisReader:
    """``<split>.json`` or ``<split>/instances.json`` with frames in ``<split>/JPEGImages/<video>/``.

    Video, category and track ids are kept (a track's annotation id is its ``instance_id``).  Splits without
    annotations (``valid``, ``test``) give images without boxes.
    """

    accepted = frozenset({"annotations", "split", "check_media"})

    def __init__(self, tree: SourceTree, options: Options, problems: Problems, work: Path) -> None:
        self.tree, self.options, self.problems = tree, options, problems
        self.files = find_files(tree, options, _PATTERNS, "YouTube-VIS annotation file")
        self.stores = [RecordStore(work / f"{number}.sqlite") for number in range(len(self.files))]

    @property
    def one_id_space(self) -> bool:
        return len(self.files) == 1

    def categories(self) -> list[Category]:
        union = CategoryUnion()
        sections = {"categories": keep_category, "videos": self.keep_video, "annotations": _keep_track}
        for file, store in zip(self.files, self.stores, strict=True):
            others = load_sections(file.path, file.shown, store, sections, self.problems)
            require_sections(file, others, ("categories", "videos"))
            union.add(file.shown, store)
            for orphan in store.orphans("annotations", "videos"):
                self.problems.add(file.shown, orphan.where, f"video_id of annotation {orphan.id} is no video")
        return union.categories()

    def count(self) -> int:
        return sum(store.count("videos") for store in self.stores)

    def videos(self) -> Iterator[Video]:
        for file, store in zip(self.files, self.stores, strict=True):
            split = file.source_split
            candidates = (f"{split}/JPEGImages", f"JPEGImages/{split}", "JPEGImages", split, f"images/{split}", "")
            root = FrameRoot(self.tree, candidates, self.options.check_media)
            for stored in store.all("videos"):
                yield self._video(file, store, stored, root)

    def _video(self, file: AnnotationFile, store: RecordStore, stored: Stored, root: FrameRoot) -> Video:
        names = stored.value["file_names"]
        boxes: list[list[Box]] = [[] for _ in names]
        classes: set[int] = set()
        for track in store.children("annotations", stored.id):
            if not store.has("categories", track.value["category_id"]):
                reason = f"category_id {track.value['category_id']} is no category"
                self.problems.add(file.shown, track.where, reason)
                continue
            if len(track.value["bboxes"]) != len(names):
                reason = f"{len(track.value['bboxes'])} bboxes for the {len(names)} frames of video {stored.id}"
                self.problems.add(file.shown, track.where, reason)
                continue
            classes.add(track.value["category_id"])
            for frame, box in _boxes_of(track):
                boxes[frame].append(box)
        return Video(
            stored.value["name"],
            stored.value["width"],
            stored.value["height"],
            len(names),
            self._frames(file, stored, names, boxes, root),
            file.shown,
            split=file.split,
            id=stored.id,
            extra=self.federation(file, stored, classes),
        )

    def _frames(
        self, file: AnnotationFile, stored: Stored, names: list[str], boxes: list[list[Box]], root: FrameRoot
    ) -> Iterator[Frame]:
        for index, name in enumerate(names):
            try:
                path = root.path(name, file.shown, stored.where)
            except MalformedField as error:
                self.problems.add(file.shown, stored.where, str(error))
                continue
            yield Frame(index, index, tuple(boxes[index]), path)

    def keep_video(self, value: dict[str, Any]) -> tuple[int, int, int, dict[str, Any]]:
        """A video for the store."""
        names = fields.array(value, "file_names")
        if not names or not all(isinstance(name, str) and name for name in names):
            raise MalformedField("file_names must be a list of frame names")
        if "length" in value and fields.whole(value, "length") != len(names):
            raise MalformedField(f"length is {value['length']}, but there are {len(names)} file_names")
        names = [self.frame_name(name) for name in names]
        kept: dict[str, Any] = {
            "name": names[0].rpartition("/")[0] or str(value.get("id")),
            "file_names": names,
            "width": fields.whole(value, "width"),
            "height": fields.whole(value, "height"),
        }
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if key in value:
                kept[key] = fields.wholes(value, key)
        return fields.whole(value, "id"), 0, 0, kept

    def frame_name(self, name: str) -> str:
        """The frame name as a path with forward slashes."""
        return name

    def federation(self, file: AnnotationFile, stored: Stored, classes: set[int]) -> dict[str, Any]:
        """What the file says of classes looked for and not found, or found and not all annotated."""
        keys = ("neg_category_ids", "not_exhaustive_category_ids")
        return {key: stored.value[key] for key in keys if key in stored.value}


def _boxes_of(track: Stored) -> Iterator[tuple[int, Box]]:
    value = track.value
    for frame, xywh in enumerate(value["bboxes"]):
        if xywh is not None:
            area = value["areas"][frame] if value["areas"] else None
            crowd = bool(value["iscrowd"])
            yield frame, Box(value["category_id"], tuple(xywh), track.id, crowd, track.where, area)


def _keep_track(value: dict[str, Any]) -> tuple[int, int, int, dict[str, Any]]:
    if "bboxes" in value:
        listed = [None if box is None else fields.box(box, "bboxes") for box in fields.array(value, "bboxes")]
    else:
        listed = [_box_of_mask(mask) for mask in fields.array(value, "segmentations")]
    areas = value.get("areas")
    if areas is not None and (not isinstance(areas, list) or len(areas) != len(listed)):
        raise MalformedField("areas must be a list as long as bboxes")
    kept = {
        "category_id": fields.whole(value, "category_id"),
        "bboxes": listed,
        "areas": areas,
        "iscrowd": fields.whole(value, "iscrowd", 0),
    }
    return fields.whole(value, "id"), fields.whole(value, "video_id"), 0, kept


def _box_of_mask(mask: Any) -> list[float] | None:
    """Bounding box of one run-length mask; None for an absent or empty one."""
    if mask is None:
        return None
    try:
        height, width = mask["size"]
        counts = mask["counts"]
        encoded = coco_mask.frPyObjects(mask, height, width) if isinstance(counts, list) else mask
        x, y, w, h = (float(side) for side in coco_mask.toBbox(encoded))
    except (KeyError, TypeError, ValueError):
        raise MalformedField("segmentations must be run-length masks {size, counts}, or null") from None
    return [x, y, w, h] if w > 0 and h > 0 else None
