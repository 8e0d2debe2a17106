"""TAO: sparse frames (1 a second), 833 classes, federated annotation (Dave et al., 2020).

A video lists classes that were looked for and are absent (``neg_category_ids``) and classes of which not every object
was annotated (``not_exhaustive_category_ids``); both are kept.  Classes that the file declares merged are merged.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stdetr.datasets.converters import json_fields as fields
from stdetr.datasets.converters.annotation_files import AnnotationFile, FrameRoot, find_files
from stdetr.datasets.converters.coco import require_sections
from stdetr.datasets.converters.coco_categories import CategoryUnion, keep_category
from stdetr.datasets.converters.options import Options
from stdetr.datasets.converters.problems import MalformedField, Problems
from stdetr.datasets.converters.record_store import RecordStore, Stored, load_sections
from stdetr.datasets.converters.records import Box, Category, Frame, Video
from stdetr.datasets.converters.source_tree import IMAGE_SUFFIXES, SourceTree

_PATTERNS = ("annotations/{split}.json", "{split}.json")


class TaoReader:
    """``annotations/<split>.json`` with frames in ``frames/<split>/<data set>/<video>/``.

    All ids are kept.  Only annotated frames get an image record; ``frame_id`` is their ``frame_index`` in the video.
    """

    accepted = frozenset({"annotations", "split", "check_media"})

    def __init__(self, tree: SourceTree, options: Options, problems: Problems, work: Path) -> None:
        self.tree, self.options, self.problems = tree, options, problems
        self.files = find_files(tree, options, _PATTERNS, "TAO annotation file")
        self.stores = [RecordStore(work / f"{number}.sqlite") for number in range(len(self.files))]
        self.merged: list[dict[int, int]] = []

    @property
    def one_id_space(self) -> bool:
        return len(self.files) == 1

    def categories(self) -> list[Category]:
        union = CategoryUnion()
        sections = {
            "categories": keep_category,
            "videos": _keep_video,
            "images": _keep_image,
            "tracks": _keep_track,
            "annotations": _keep_annotation,
        }
        gone: set[int] = set()
        for file, store in zip(self.files, self.stores, strict=True):
            others = load_sections(file.path, file.shown, store, sections, self.problems)
            require_sections(file, others, ("categories", "videos", "images"))
            union.add(file.shown, store)
            merged = {old: kept.id for kept in store.all("categories") for old in kept.value.get("merged", [])}
            self.merged.append(merged)
            gone.update(merged)
            for table, parents, key in (("images", "videos", "video_id"), ("annotations", "images", "image_id")):
                for orphan in store.orphans(table, parents):
                    self.problems.add(file.shown, orphan.where, f"{key} is not among the {parents}")
        return [category for category in union.categories() if category.id not in gone]

    def count(self) -> int:
        return sum(store.count("videos") for store in self.stores)

    def videos(self) -> Iterator[Video]:
        for file, store, merged in zip(self.files, self.stores, self.merged, strict=True):
            root = FrameRoot(self.tree, ("frames", f"frames/{file.source_split}", ""), self.options.check_media)
            for stored in store.all("videos"):
                yield from self._video(file, store, merged, stored, root)

    def _video(
        self, file: AnnotationFile, store: RecordStore, merged: dict[int, int], stored: Stored, root: FrameRoot
    ) -> Iterator[Video]:
        frames: list[Frame] = []
        for image in store.children("images", stored.id):
            try:
                path = root.path(image.value["file_name"], file.shown, image.where)
            except MalformedField as error:
                self.problems.add(file.shown, image.where, str(error))
                continue
            boxes = tuple(self._boxes(file, store, merged, image))
            frames.append(Frame(image.value["frame_index"], image.value["frame_index"], boxes, path, id=image.id))
        if not frames:
            self.problems.note("videos left out: no annotated frame")
            return
        extra = {
            key: sorted({_after_merge(merged, number) for number in stored.value[key]})
            for key in ("neg_category_ids", "not_exhaustive_category_ids")
        }
        yield Video(
            stored.value["name"],
            stored.value["width"],
            stored.value["height"],
            self._length(frames),
            frames,
            file.shown,
            split=file.split,
            id=stored.id,
            extra=extra,
        )

    def _length(self, frames: list[Frame]) -> int:
        """Frames of the whole video, where its folder is there; else up to the last annotated one."""
        last = frames[-1]
        assert last.path is not None
        folder = last.path.parent
        held = sum(1 for _ in self.tree.files(folder, IMAGE_SUFFIXES)) if self.options.check_media else 0
        return max(held, last.index + 1)

    def _boxes(self, file: AnnotationFile, store: RecordStore, merged: dict[int, int], image: Stored) -> Iterator[Box]:
        for stored in store.children("annotations", image.id):
            value = stored.value
            category = _after_merge(merged, value["category_id"])
            if not store.has("categories", category):
                self.problems.add(file.shown, stored.where, f"category_id {category} is no category")
                continue
            track = store.get("tracks", value["track_id"])
            if track is None:
                self.problems.add(file.shown, stored.where, f"track_id {value['track_id']} is no track")
                continue
            kind = track.value["category_id"]
            if _after_merge(merged, kind) != category:
                reason = f"category_id is {category}, but its track {track.id} has {kind}"
                self.problems.add(file.shown, stored.where, reason)
                continue
            crowd = bool(value["iscrowd"])
            yield Box(category, tuple(value["bbox"]), track.id, crowd, stored.where, value["area"], stored.id)


def _after_merge(merged: dict[int, int], category: int) -> int:
    return merged.get(category, category)


def _keep_video(value: dict[str, Any]) -> tuple[int, int, int, dict[str, Any]]:
    kept: dict[str, Any] = {
        "name": fields.text(value, "name"),
        "width": fields.whole(value, "width"),
        "height": fields.whole(value, "height"),
        "neg_category_ids": fields.wholes(value, "neg_category_ids"),
        "not_exhaustive_category_ids": fields.wholes(value, "not_exhaustive_category_ids"),
    }
    return fields.whole(value, "id"), 0, 0, kept


def _keep_image(value: dict[str, Any]) -> tuple[int, int, int, dict[str, Any]]:
    frame = fields.whole(value, "frame_index")
    if frame < 0:
        raise MalformedField(f"frame_index is {frame}, frames count from 0")
    kept = {"file_name": fields.text(value, "file_name"), "frame_index": frame}
    return fields.whole(value, "id"), fields.whole(value, "video_id"), frame, kept


def _keep_track(value: dict[str, Any]) -> tuple[int, int, int, dict[str, Any]]:
    kept = {"category_id": fields.whole(value, "category_id")}
    return fields.whole(value, "id"), fields.whole(value, "video_id"), 0, kept


def _keep_annotation(value: dict[str, Any]) -> tuple[int, int, int, dict[str, Any]]:
    kept = {
        "bbox": fields.box(value.get("bbox")),
        "category_id": fields.whole(value, "category_id"),
        "track_id": fields.whole(value, "track_id"),
        "area": fields.number(value, "area") if value.get("area") is not None else None,
        "iscrowd": fields.whole(value, "iscrowd", 0),
    }
    return fields.whole(value, "id"), fields.whole(value, "image_id"), 0, kept
