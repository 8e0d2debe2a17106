"""Plain COCO detection JSON: each image becomes a video of one frame.

The format is that of Lin et al., 2014.  Crowd regions (``iscrowd`` = 1) become ignore regions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import msgspec

from stdetr.data.json_file import Number, Positive, Text, Whole
from stdetr.datasets.converters.coco_like import CocoLikeReader, Refers
from stdetr.datasets.converters.records import FrameRoot, Image, Video


class _Image(msgspec.Struct):
    id: Whole
    file_name: Text
    width: Positive
    height: Positive


class Annotation(msgspec.Struct):
    """One box of a COCO file."""

    id: Whole
    image_id: Whole
    category_id: Whole
    bbox: tuple[Number, Number, Number, Number]
    area: Number | None = None
    iscrowd: Whole | bool = 0
    ignore: Whole | bool = 0

    @property
    def crowd(self) -> bool:
        return bool(self.iscrowd or self.ignore)


class CocoReader(CocoLikeReader):
    """``annotations/instances_<split>.json`` with images in ``<split>/``; or ``annotations=FILE``.

    Image, annotation and category ids are kept; an image's id is its video's id, too.
    """

    accepted = frozenset({"annotations", "split", "check_media"})
    patterns = ("annotations/instances_{split}.json", "{split}/_annotations.coco.json", "annotations/{split}.json")
    counted = "images"
    what = "COCO annotation file"
    sections: ClassVar = {"images": (_Image, None), "annotations": (Annotation, Refers("image_id", to="images"))}

    def videos(self) -> Iterator[Video]:
        for loaded in self.loaded:
            split = loaded.source_split
            folders = (split, f"images/{split}", "images", loaded.shown.rpartition("/")[0], "")
            root = FrameRoot(self, loaded.shown, folders)
            for where, image in loaded["images"]:
                if path := root.path(image.file_name, where):
                    only, size = Image(1, path, image.id), (image.width, image.height)
                    # A still image has no tracks: each box is separate.
                    boxes = (replace(box, instance_id=n) for n, box in enumerate(self.boxes(loaded, only), start=1))
                    yield Video(
                        image.file_name, *size, 1, boxes, loaded.shown, [only], first=1, split=loaded.split, id=image.id
                    )
