"""Argoverse-HD: COCO JSON with sequences, for streaming perception (Li et al., 2020).

``images`` carry ``sid`` (index into ``sequences`` and ``seq_dirs``), ``fid`` (frame in the sequence, from 0) and
``name``; ``annotations`` carry ``track``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import msgspec

from stdetr.data.json_file import Positive, Text, Whole
from stdetr.datasets.converters.coco import Annotation
from stdetr.datasets.converters.coco_like import CocoLikeReader, Loaded, Refers
from stdetr.datasets.converters.problems import MalformedInputError
from stdetr.datasets.converters.records import NO_TRACK, Category, FrameRoot, Image, Video

_ROOTS = ("", "Argoverse-1.1", "Argoverse-1.1/tracking", "Argoverse-1.1/images", "images")


class _Image(msgspec.Struct):
    id: Whole
    sid: Whole
    fid: Annotated[int, msgspec.Meta(ge=0)]
    name: Text
    width: Positive
    height: Positive


class _Annotation(Annotation):
    track: Whole = NO_TRACK


class ArgoverseHdReader(CocoLikeReader):
    """``Argoverse-HD/annotations/<split>.json`` with frames in ``Argoverse-1.1/tracking/``.

    Image, annotation and category ids are kept; a video's id is its ``sid`` + 1.
    """

    accepted = frozenset({"annotations", "split", "check_media"})
    patterns = ("Argoverse-HD/annotations/{split}.json", "annotations/{split}.json")
    counted = "images"
    what = "Argoverse-HD annotation file"
    sections: ClassVar = {
        "images": (_Image, Refers("sid", order="fid")),
        "annotations": (_Annotation, Refers("image_id", to="images")),
    }
    required = ("categories", "images", "sequences", "seq_dirs")

    def categories(self) -> list[Category]:
        categories = super().categories()
        self.total = sum(len(self._sequences(loaded)) for loaded in self.loaded)
        return categories

    def videos(self) -> Iterator[Video]:
        for loaded in self.loaded:
            root = FrameRoot(self, loaded.shown, _ROOTS)
            for sid, (name, folder) in enumerate(self._sequences(loaded)):
                held = list(loaded["images"].children(sid))
                if not held:
                    self.problems.note("sequences left out: no image")
                    continue
                images = [
                    Image(image.fid, path, image.id)
                    for where, image in held
                    if (path := root.path(f"{folder}/{image.name}", where))
                ]
                boxes = (box for image in images for box in self.boxes(loaded, image))
                size, length = (held[0][1].width, held[0][1].height), held[-1][1].fid + 1
                yield Video(name, *size, length, boxes, loaded.shown, images, split=loaded.split, id=sid + 1)

    @staticmethod
    def _sequences(loaded: Loaded) -> list[tuple[str, str]]:
        """Name and folder of each sequence."""
        sections = (loaded.json.value[section] for section in ("sequences", "seq_dirs"))
        try:
            names, folders = (msgspec.json.decode(section, type=list[str]) for section in sections)
        except msgspec.ValidationError:
            raise MalformedInputError(f"{loaded.shown}: sequences and seq_dirs must be lists of text") from None
        if len(names) != len(folders):
            raise MalformedInputError(f"{loaded.shown}: {len(names)} sequences, but {len(folders)} seq_dirs")
        return list(zip(names, folders, strict=True))
