"""TAO: sparse frames (1 per second), 833 classes, federated annotation (Dave et al., 2020).

A video lists classes that are known to be absent (``neg_category_ids``) and classes of which not every object
was annotated (``not_exhaustive_category_ids``); both are kept.  Classes that the file declares merged are merged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, ClassVar

import msgspec

from stdetr.data.json_file import Positive, Text, Whole
from stdetr.datasets.converters.coco import Annotation
from stdetr.datasets.converters.coco_like import CocoLikeReader, JsonCategory, Loaded, Refers
from stdetr.datasets.converters.records import Box, Category, FrameRoot, Image, Video
from stdetr.datasets.converters.source_tree import IMAGE_SUFFIXES


class _Merged(msgspec.Struct):
    id: Whole


class _Category(JsonCategory):
    merged: tuple[_Merged, ...] = ()


class _Video(msgspec.Struct):
    id: Whole
    name: Text
    width: Positive
    height: Positive
    neg_category_ids: list[Whole] = []
    not_exhaustive_category_ids: list[Whole] = []


class _Image(msgspec.Struct):
    id: Whole
    video_id: Whole
    file_name: Text
    frame_index: Annotated[int, msgspec.Meta(ge=0)]


class _Track(msgspec.Struct):
    id: Whole
    category_id: Whole
    video_id: Whole


class _Annotation(Annotation, kw_only=True):
    track: Whole = msgspec.field(name="track_id")


class TaoReader(CocoLikeReader):
    """``annotations/<split>.json`` with frames in ``frames/<split>/<data set>/<video>/``.

    All ids are kept.  Only annotated frames get an image record; ``frame_id`` is their ``frame_index`` in the video.
    """

    accepted = frozenset({"annotations", "split", "check_media"})
    patterns = ("annotations/{split}.json", "{split}.json")
    what = "TAO annotation file"
    category_type = _Category
    sections: ClassVar = {
        "videos": (_Video, None),
        "images": (_Image, Refers("video_id", to="videos", order="frame_index")),
        "tracks": (_Track, None),
        "annotations": (_Annotation, Refers("image_id", to="images")),
    }
    required = ("categories", "videos", "images")

    def categories(self) -> list[Category]:
        categories = super().categories()
        self.merged = [
            {old.id: value.id for _, value in loaded["categories"] for old in value.merged} for loaded in self.loaded
        ]
        gone = {number for merged in self.merged for number in merged}
        return [category for category in categories if category.id not in gone]

    def videos(self) -> Iterator[Video]:
        for loaded, merged in zip(self.loaded, self.merged, strict=True):
            root = FrameRoot(self, loaded.shown, ("frames", f"frames/{loaded.source_split}", ""))
            for _, video in loaded["videos"]:
                images = [
                    Image(image.frame_index, path, image.id)
                    for where, image in loaded["images"].children(video.id)
                    if (path := root.path(image.file_name, where))
                ]
                if not images:
                    self.problems.note("videos left out: no annotated frame")
                    continue
                keys = ("neg_category_ids", "not_exhaustive_category_ids")
                extra = {key: sorted({merged.get(number, number) for number in getattr(video, key)}) for key in keys}
                boxes = (box for image in images for box in self._boxes(loaded, merged, image))
                size, length = (video.width, video.height), self._length(images[-1])
                yield Video(
                    video.name, *size, length, boxes, loaded.shown, images, split=loaded.split, id=video.id, extra=extra
                )

    def _length(self, last: Image) -> int:
        """Frames of the whole video, where its folder is there; else up to the last annotated one."""
        assert last.path is not None
        held = len(list(self.tree.files(last.path.parent, *IMAGE_SUFFIXES))) if self.options.check_media else 0
        return max(held, last.frame + 1)

    def _boxes(self, loaded: Loaded, merged: dict[int, int], image: Image) -> Iterator[Box]:
        for box in self.boxes(loaded, image):
            assert box.category_id is not None
            category, track = merged.get(box.category_id, box.category_id), loaded["tracks"].get(box.instance_id)
            if track is None:
                told = f"track_id {box.instance_id} is not among the tracks"
            elif merged.get(track.category_id, track.category_id) != category:
                told = f"category_id is {category}, but its track {track.id} has {track.category_id}"
            else:
                yield replace(box, category_id=category)
                continue
            self.problems.add(loaded.shown, box.record, told)
