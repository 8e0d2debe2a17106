"""YouTube-VIS 2019, 2021 and 2022, OVIS and LV-VIS: boxes of instance tracks, without masks.

An annotation is a track: ``bboxes`` has one box or null for each frame of ``videos[].file_names`` (Yang et al., 2019;
Qi et al., 2022).  Where there are only masks (``segmentations``), their bounding boxes are taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import msgspec

from stdetr.data.json_file import Number, Positive, Text, Whole
from stdetr.datasets.converters.coco_like import CocoLikeReader, Loaded, Refers
from stdetr.datasets.converters.records import Box, FrameRoot, Image, Video

_FEDERATION = ("neg_category_ids", "not_exhaustive_category_ids")


class _Video(msgspec.Struct):
    id: Whole
    width: Positive
    height: Positive
    file_names: Annotated[list[Text], msgspec.Meta(min_length=1)]
    length: Whole | None = None
    neg_category_ids: list[Whole] | None = None
    not_exhaustive_category_ids: list[Whole] | None = None

    def __post_init__(self) -> None:
        if self.length not in (None, len(self.file_names)):
            raise ValueError(f"length is {self.length}, but there are {len(self.file_names)} file_names")


class _Mask(msgspec.Struct):
    size: tuple[Positive, Positive]
    counts: str | list[Whole]


class _Track(msgspec.Struct):
    id: Whole
    video_id: Whole
    category_id: Whole
    bboxes: list[tuple[Number, Number, Number, Number] | None] | None = None
    segmentations: msgspec.Raw = msgspec.Raw(b"[]")
    areas: list[Number | None] | None = None
    iscrowd: Whole | bool = 0

    def __post_init__(self) -> None:
        self.bboxes = _boxes_of_masks(self.segmentations) if self.bboxes is None else self.bboxes
        if self.areas is not None and len(self.areas) != len(self.bboxes):
            raise ValueError("areas must be a list as long as bboxes")


class YoutubeVisReader(CocoLikeReader):
    """``<split>.json`` or ``<split>/instances.json`` with frames in ``<split>/JPEGImages/<video>/``.

    Video, category and track ids are kept (a track's annotation id is its ``instance_id``).  Splits without
    annotations (``valid``, ``test``) give images without boxes.
    """

    accepted = frozenset({"annotations", "split", "check_media"})
    patterns = (
        "{split}.json",
        "{split}/instances.json",
        "annotations/{split}.json",
        "annotations/instances_{split}.json",
        "annotations_{split}.json",
        "{split}_instances.json",
        "annotations/{split}_instances.json",
        "Annotations/{split}_instances.json",
    )
    what = "YouTube-VIS annotation file"
    sections: ClassVar = {"videos": (_Video, None), "annotations": (_Track, Refers("video_id", to="videos"))}
    required = ("categories", "videos")

    def videos(self) -> Iterator[Video]:
        for loaded in self.loaded:
            split = loaded.source_split
            candidates = (f"{split}/JPEGImages", f"JPEGImages/{split}", "JPEGImages", split, f"images/{split}", "")
            root = FrameRoot(self, loaded.shown, candidates)
            for where, value in loaded["videos"]:
                names = [self.frame_name(name) for name in value.file_names]
                boxes = list(self._boxes(loaded, value))
                images = (Image(at, path) for at, name in enumerate(names) if (path := root.path(name, where)))
                name, size = names[0].rpartition("/")[0] or str(value.id), (value.width, value.height)
                yield Video(
                    name, *size, len(names), boxes, loaded.shown, images,
                    split=loaded.split, id=value.id, extra=self.federation(loaded, value, boxes),
                )  # fmt: skip

    def _boxes(self, loaded: Loaded, video: _Video) -> Iterator[Box]:
        for where, track in loaded["annotations"].children(video.id):
            if not self.known_category(loaded, where, track.category_id):
                continue
            if len(track.bboxes) != len(video.file_names):
                told = f"{len(track.bboxes)} bboxes for the {len(video.file_names)} frames of video {video.id}"
                self.problems.add(loaded.shown, where, told)
                continue
            areas, crowd = track.areas or [None] * len(track.bboxes), bool(track.iscrowd)
            for frame, (xywh, area) in enumerate(zip(track.bboxes, areas, strict=True)):
                if xywh is not None:
                    yield Box(frame, track.category_id, xywh, track.id, crowd, where, area)

    def frame_name(self, name: str) -> str:
        """The frame name as a path with forward slashes."""
        return name

    def federation(self, loaded: Loaded, video: _Video, boxes: list[Box]) -> dict[str, Any]:
        """The classes that the file marks as absent, or as not exhaustively annotated."""
        return {key: getattr(video, key) for key in _FEDERATION if getattr(video, key) is not None}


class LvvisReader(YoutubeVisReader):
    """LV-VIS: YouTube-VIS files with 1196 classes (Wang et al., 2023), not exhaustively annotated in training.

    In a training video only the annotated classes are known to be present, and not all their objects: they are its
    ``not_exhaustive_category_ids``, and no class is known to be absent.
    """

    def frame_name(self, name: str) -> str:
        # The published files hold Windows paths with the annotators' folders in front: video and frame are the end.
        return "/".join(name.split("\\")[-2:]) if "\\" in name else name

    def federation(self, loaded: Loaded, video: _Video, boxes: list[Box]) -> dict[str, Any]:
        known = super().federation(loaded, video, boxes)
        if known or loaded.split != "train":
            return known
        classes = sorted({box.category_id for box in boxes if box.category_id is not None})
        return {"neg_category_ids": [], "not_exhaustive_category_ids": classes}


def _boxes_of_masks(masks: msgspec.Raw) -> list[Any]:
    """Bounding box of each run-length mask; None for an absent or empty one."""
    from pycocotools import mask as coco_mask

    boxes: list[Any] = []
    try:
        for mask in msgspec.json.decode(masks, type=list[_Mask | None]):
            box = (0.0,) * 4
            if mask is not None:
                encoded: Any = {"size": mask.size, "counts": mask.counts}
                if isinstance(mask.counts, list):
                    encoded = coco_mask.frPyObjects(encoded, *mask.size)
                box = tuple(float(side) for side in coco_mask.toBbox(encoded))
            boxes.append(box if box[2] > 0 and box[3] > 0 else None)
    except (TypeError, ValueError):
        raise ValueError("segmentations must be run-length masks {size, counts}, or null") from None
    return boxes
