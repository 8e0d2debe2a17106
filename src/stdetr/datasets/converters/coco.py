"""Plain COCO detection JSON: each image becomes a video of one frame.

The format is that of Lin et al., 2014.  Crowd regions (``iscrowd`` = 1) become ignore regions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stdetr.datasets.converters import json_fields as fields
from stdetr.datasets.converters.annotation_files import AnnotationFile, FrameRoot, find_files
from stdetr.datasets.converters.coco_categories import CategoryUnion, keep_category
from stdetr.datasets.converters.options import Options
from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, Problems
from stdetr.datasets.converters.record_store import RecordStore, load_sections
from stdetr.datasets.converters.records import Box, Category, Frame, Video
from stdetr.datasets.converters.source_tree import SourceTree

_PATTERNS = ("annotations/instances_{split}.json", "{split}/_annotations.coco.json", "annotations/{split}.json")


class CocoReader:
    """``annotations/instances_<split>.json`` with images in ``<split>/``; or ``annotations=FILE``.

    Image, annotation and category ids are kept; an image's id is its video's id, too.
    """

    accepted = frozenset({"annotations", "split", "check_media"})

    def __init__(self, tree: SourceTree, options: Options, problems: Problems, work: Path) -> None:
        self.tree, self.options, self.problems = tree, options, problems
        self.files = find_files(tree, options, _PATTERNS, "COCO annotation file")
        self.stores = [RecordStore(work / f"{number}.sqlite") for number in range(len(self.files))]

    @property
    def one_id_space(self) -> bool:
        return len(self.files) == 1

    def categories(self) -> list[Category]:
        union = CategoryUnion()
        sections = {"categories": keep_category, "images": _keep_image, "annotations": _keep_annotation}
        for file, store in zip(self.files, self.stores, strict=True):
            load_sections(file.path, file.shown, store, sections, self.problems)
            union.add(file.shown, store)
            for orphan in store.orphans("annotations", "images"):
                self.problems.add(file.shown, orphan.where, f"image_id of annotation {orphan.id} is no image")
        return union.categories()

    def count(self) -> int:
        return sum(store.count("images") for store in self.stores)

    def videos(self) -> Iterator[Video]:
        for file, store in zip(self.files, self.stores, strict=True):
            folders = (file.source_split, f"images/{file.source_split}", "images", _parent(file), "")
            root = FrameRoot(self.tree, folders, self.options.check_media)
            for image in store.all("images"):
                try:
                    path = root.path(image.value["file_name"], file.shown, image.where)
                except MalformedField as error:
                    self.problems.add(file.shown, image.where, str(error))
                    continue
                boxes = tuple(self._boxes(file, store, image.id))
                yield Video(
                    image.value["file_name"],
                    image.value["width"],
                    image.value["height"],
                    1,
                    (Frame(0, 1, boxes, path, id=image.id),),
                    file.shown,
                    split=file.split,
                    id=image.id,
                )

    def _boxes(self, file: AnnotationFile, store: RecordStore, image: int) -> Iterator[Box]:
        for place, stored in enumerate(store.children("annotations", image), start=1):
            value = stored.value
            if not store.has("categories", value["category_id"]):
                self.problems.add(file.shown, stored.where, f"category_id {value['category_id']} is no category")
                continue
            # A still has no tracks: each box is its own.
            yield Box(
                value["category_id"],
                tuple(value["bbox"]),
                place,
                bool(value["iscrowd"]),
                stored.where,
                value["area"],
                stored.id,
            )


def _parent(file: AnnotationFile) -> str:
    return file.shown.rpartition("/")[0]


def _keep_image(value: dict[str, Any]) -> tuple[int, int, int, dict[str, Any]]:
    kept = {
        "file_name": fields.text(value, "file_name"),
        "width": fields.whole(value, "width"),
        "height": fields.whole(value, "height"),
    }
    return fields.whole(value, "id"), 0, 0, kept


def _keep_annotation(value: dict[str, Any]) -> tuple[int, int, int, dict[str, Any]]:
    kept = {
        "bbox": fields.box(value.get("bbox")),
        "category_id": fields.whole(value, "category_id"),
        "area": fields.number(value, "area") if value.get("area") is not None else None,
        "iscrowd": fields.whole(value, "iscrowd", 0) or fields.whole(value, "ignore", 0),
    }
    return fields.whole(value, "id"), fields.whole(value, "image_id"), 0, kept


def require_sections(file: AnnotationFile, others: dict[str, Any], names: tuple[str, ...]) -> None:
    """Raises MalformedInputError when the file lacks one of the sections: it is another format."""
    for name in names:
        if name not in others["sections"]:
            raise MalformedInputError(
                f"{file.shown}: no section {name!r}; it has {', '.join(sorted(others['sections']))}"
            )
