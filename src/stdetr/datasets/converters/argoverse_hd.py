"""Argoverse-HD: COCO JSON with sequences, for streaming perception (Li et al., 2020).

``images`` carry ``sid`` (index into ``sequences`` and ``seq_dirs``), ``fid`` (frame in the sequence, from 0) and
``name``; ``annotations`` carry ``track``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import msgspec

from stdetr.data.json_file import Positive, Text, Whole
from stdetr.datasets.converters.annotation_files import FrameRoot
from stdetr.datasets.converters.coco import Annotation
from stdetr.datasets.converters.json_tables import CocoLikeReader, Loaded, Refers, Stored
from stdetr.datasets.converters.problems import MalformedInputError
from stdetr.datasets.converters.records import NO_TRACK, Category, Frame, Video

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
            root = FrameRoot(self.tree, _ROOTS, self.options.check_media)
            for sid, (name, folder) in enumerate(self._sequences(loaded)):
                images = list(loaded["images"].children(sid))
                if not images:
                    self.problems.note("sequences left out: no image")
                    continue
                size = images[0].value.width, images[0].value.height
                frames, length = self._frames(loaded, images, folder, root), images[-1].value.fid + 1
                split = loaded.file.split
                yield Video(name, *size, length, frames, loaded.file.shown, split=split, id=sid + 1)

    @staticmethod
    def _sequences(loaded: Loaded) -> list[tuple[str, str]]:
        """Name and folder of each sequence."""
        try:
            names, folders = (
                msgspec.json.decode(loaded.json.value[section], type=list[str]) for section in ("sequences", "seq_dirs")
            )
        except msgspec.ValidationError:
            raise MalformedInputError(f"{loaded.file.shown}: sequences and seq_dirs must be lists of text") from None
        if len(names) != len(folders):
            raise MalformedInputError(f"{loaded.file.shown}: {len(names)} sequences, but {len(folders)} seq_dirs")
        return list(zip(names, folders, strict=True))

    def _frames(self, loaded: Loaded, images: list[Stored], folder: str, root: FrameRoot) -> Iterator[Frame]:
        shown = loaded.file.shown
        for where, image in images:
            path = self.problems.attempt(shown, where, root.path, f"{folder}/{image.name}", shown, where)
            if path is not None:
                annotations = loaded["annotations"].children(image.id)
                boxes = tuple(box for stored in annotations for box in self.box(loaded, stored, stored.value.track))
                yield Frame(image.fid, image.fid, boxes, path, id=image.id)
