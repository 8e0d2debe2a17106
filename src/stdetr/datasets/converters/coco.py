"""Plain COCO detection JSON: each image becomes a video of one frame.

The format is that of Lin et al., 2014.  Crowd regions (``iscrowd`` = 1) become ignore regions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import msgspec

from stdetr.data.json_file import Number, Positive, Text, Whole
from stdetr.datasets.converters.annotation_files import FrameRoot
from stdetr.datasets.converters.json_tables import CocoLikeReader, Loaded, Refers, Stored
from stdetr.datasets.converters.records import Box, Frame, Video


class Image(msgspec.Struct):
    """One image of a COCO file."""

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
    sections: ClassVar = {"images": (Image, None), "annotations": (Annotation, Refers("image_id", to="images"))}

    def videos(self) -> Iterator[Video]:
        for loaded in self.loaded:
            file, split = loaded.file, loaded.file.source_split
            folders = (split, f"images/{split}", "images", file.shown.rpartition("/")[0], "")
            root = FrameRoot(self.tree, folders, self.options.check_media)
            for where, image in loaded["images"]:
                path = self.problems.attempt(file.shown, where, root.path, image.file_name, file.shown, where)
                if path is not None:
                    frames = [Frame(0, 1, tuple(self._boxes(loaded, image.id)), path, id=image.id)]
                    size = image.width, image.height
                    yield Video(image.file_name, *size, 1, frames, file.shown, split=file.split, id=image.id)

    def _boxes(self, loaded: Loaded, image: int) -> Iterator[Box]:
        # A still image has no tracks: each box is separate.
        stored: Stored
        for place, stored in enumerate(loaded["annotations"].children(image), start=1):
            yield from self.box(loaded, stored, track=place)
