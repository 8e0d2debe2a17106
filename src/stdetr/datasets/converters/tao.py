"""TAO: sparse frames (1 per second), 833 classes, federated annotation (Dave et al., 2020).

A video lists classes that are known to be absent (``neg_category_ids``) and classes of which not every object
was annotated (``not_exhaustive_category_ids``); both are kept.  Classes that the file declares merged are merged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import msgspec

from stdetr.data.json_file import Positive, Text, Whole
from stdetr.datasets.converters.annotation_files import FrameRoot
from stdetr.datasets.converters.coco import Annotation
from stdetr.datasets.converters.json_tables import CocoLikeReader, Loaded, Refers, Stored
from stdetr.datasets.converters.records import Box, Category, Frame, Video
from stdetr.datasets.converters.source_tree import IMAGE_SUFFIXES


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
    track_id: Whole


class TaoReader(CocoLikeReader):
    """``annotations/<split>.json`` with frames in ``frames/<split>/<data set>/<video>/``.

    All ids are kept.  Only annotated frames get an image record; ``frame_id`` is their ``frame_index`` in the video.
    """

    accepted = frozenset({"annotations", "split", "check_media"})
    patterns = ("annotations/{split}.json", "{split}.json")
    what = "TAO annotation file"
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
            folders = ("frames", f"frames/{loaded.file.source_split}", "")
            root = FrameRoot(self.tree, folders, self.options.check_media)
            for _, video in loaded["videos"]:
                frames = list(self._frames(loaded, merged, video, root))
                if not frames:
                    self.problems.note("videos left out: no annotated frame")
                    continue
                keys = ("neg_category_ids", "not_exhaustive_category_ids")
                extra = {key: sorted({merged.get(number, number) for number in getattr(video, key)}) for key in keys}
                size, length = (video.width, video.height), self._length(frames[-1])
                shown, split = loaded.file.shown, loaded.file.split
                yield Video(video.name, *size, length, frames, shown, split=split, id=video.id, extra=extra)

    def _frames(self, loaded: Loaded, merged: dict[int, int], video: _Video, root: FrameRoot) -> Iterator[Frame]:
        shown = loaded.file.shown
        for where, image in loaded["images"].children(video.id):
            path = self.problems.attempt(shown, where, root.path, image.file_name, shown, where)
            if path is not None:
                annotations = loaded["annotations"].children(image.id)
                boxes = tuple(box for stored in annotations for box in self._boxes(loaded, merged, stored))
                yield Frame(image.frame_index, image.frame_index, boxes, path, id=image.id)

    def _length(self, last: Frame) -> int:
        """Frames of the whole video, where its folder is there; else up to the last annotated one."""
        assert last.path is not None
        folder = last.path.parent
        held = sum(1 for _ in self.tree.files(folder, IMAGE_SUFFIXES)) if self.options.check_media else 0
        return max(held, last.index + 1)

    def _boxes(self, loaded: Loaded, merged: dict[int, int], stored: Stored) -> Iterator[Box]:
        value, shown = stored.value, loaded.file.shown
        value.category_id = merged.get(value.category_id, value.category_id)
        for box in self.box(loaded, stored, value.track_id):
            if value.track_id not in loaded["tracks"]:
                self.problems.add(shown, stored.where, f"track_id {value.track_id} is not among the tracks")
                continue
            kind = loaded["tracks"][value.track_id].value.category_id
            if merged.get(kind, kind) == value.category_id:
                yield box
            else:
                reason = f"category_id is {value.category_id}, but its track {value.track_id} has {kind}"
                self.problems.add(shown, stored.where, reason)
