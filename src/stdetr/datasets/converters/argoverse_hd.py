"""Argoverse-HD: COCO JSON with sequences, for streaming perception (Li et al., 2020).

``images`` carry ``sid`` (index into ``sequences`` and ``seq_dirs``), ``fid`` (frame in the sequence, from 0) and
``name``; ``annotations`` carry ``track``.
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
from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, Problems
from stdetr.datasets.converters.record_store import RecordStore, Stored, load_sections
from stdetr.datasets.converters.records import NO_TRACK, Box, Category, Frame, Video
from stdetr.datasets.converters.source_tree import SourceTree

_PATTERNS = ("Argoverse-HD/annotations/{split}.json", "annotations/{split}.json")
_ROOTS = ("", "Argoverse-1.1", "Argoverse-1.1/tracking", "Argoverse-1.1/images", "images")


class ArgoverseHdReader:
    """``Argoverse-HD/annotations/<split>.json`` with frames in ``Argoverse-1.1/tracking/``.

    Image, annotation and category ids are kept; a video's id is its ``sid`` + 1.
    """

    accepted = frozenset({"annotations", "split", "check_media"})

    def __init__(self, tree: SourceTree, options: Options, problems: Problems, work: Path) -> None:
        self.tree, self.options, self.problems = tree, options, problems
        self.files = find_files(tree, options, _PATTERNS, "Argoverse-HD annotation file")
        self.stores = [RecordStore(work / f"{number}.sqlite") for number in range(len(self.files))]
        self.sequences: list[tuple[list[str], list[str]]] = []

    @property
    def one_id_space(self) -> bool:
        return len(self.files) == 1

    def categories(self) -> list[Category]:
        union = CategoryUnion()
        for file, store in zip(self.files, self.stores, strict=True):
            names: dict[str, list[str]] = {"sequences": [], "seq_dirs": []}
            self._load(file, store, names)
            union.add(file.shown, store)
            for orphan in store.orphans("annotations", "images"):
                self.problems.add(file.shown, orphan.where, f"image_id of annotation {orphan.id} is no image")
            self.sequences.append((names["sequences"], names["seq_dirs"]))
        return union.categories()

    def _load(self, file: AnnotationFile, store: RecordStore, names: dict[str, list[str]]) -> None:
        sections = {"categories": keep_category, "images": _keep_image, "annotations": _keep_annotation}
        others = load_sections(file.path, file.shown, store, sections, self.problems, texts=names)
        require_sections(file, others, ("categories", "images", "sequences", "seq_dirs"))
        if len(names["sequences"]) != len(names["seq_dirs"]):
            raise MalformedInputError(
                f"{file.shown}: {len(names['sequences'])} sequences, but {len(names['seq_dirs'])} seq_dirs"
            )

    def count(self) -> int:
        return sum(len(sequences) for sequences, _ in self.sequences)

    def videos(self) -> Iterator[Video]:
        for file, store, (sequences, folders) in zip(self.files, self.stores, self.sequences, strict=True):
            root = FrameRoot(self.tree, _ROOTS, self.options.check_media)
            for sid, (name, folder) in enumerate(zip(sequences, folders, strict=True)):
                images = list(store.children("images", sid))
                if not images:
                    self.problems.note("sequences left out: no image")
                    continue
                frames = self._frames(file, store, images, folder, root)
                size = images[0].value
                length = max(image.value["fid"] for image in images) + 1
                yield Video(
                    name,
                    size["width"],
                    size["height"],
                    length,
                    frames,
                    file.shown,
                    split=file.split,
                    id=sid + 1,
                )

    def _frames(
        self, file: AnnotationFile, store: RecordStore, images: list[Stored], folder: str, root: FrameRoot
    ) -> Iterator[Frame]:
        for image in images:
            try:
                path = root.path(f"{folder}/{image.value['name']}", file.shown, image.where)
            except MalformedField as error:
                self.problems.add(file.shown, image.where, str(error))
                continue
            boxes = tuple(self._boxes(file, store, image.id))
            yield Frame(image.value["fid"], image.value["fid"], boxes, path, id=image.id)

    def _boxes(self, file: AnnotationFile, store: RecordStore, image: int) -> Iterator[Box]:
        for stored in store.children("annotations", image):
            value = stored.value
            if not store.has("categories", value["category_id"]):
                self.problems.add(file.shown, stored.where, f"category_id {value['category_id']} is no category")
                continue
            crowd = bool(value["iscrowd"])
            xywh = tuple(value["bbox"])
            yield Box(value["category_id"], xywh, value["track"], crowd, stored.where, value["area"], stored.id)


def _keep_image(value: dict[str, Any]) -> tuple[int, int, int, dict[str, Any]]:
    frame = fields.whole(value, "fid")
    if frame < 0:
        raise MalformedField(f"fid is {frame}, frames count from 0")
    kept = {
        "name": fields.text(value, "name"),
        "fid": frame,
        "width": fields.whole(value, "width"),
        "height": fields.whole(value, "height"),
    }
    return fields.whole(value, "id"), fields.whole(value, "sid"), frame, kept


def _keep_annotation(value: dict[str, Any]) -> tuple[int, int, int, dict[str, Any]]:
    kept = {
        "bbox": fields.box(value.get("bbox")),
        "category_id": fields.whole(value, "category_id"),
        "track": fields.whole(value, "track", NO_TRACK),
        "area": fields.number(value, "area") if value.get("area") is not None else None,
        "iscrowd": fields.whole(value, "iscrowd", 0) or fields.whole(value, "ignore", 0),
    }
    return fields.whole(value, "id"), fields.whole(value, "image_id"), 0, kept
