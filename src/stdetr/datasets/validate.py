"""``stdetr data action=validate``: every violation of the CocoVID contract, with file and record.

The file is streamed twice: categories, videos and images first, then the annotations that refer to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from stdetr.data.coco_vid import DEGRADATIONS
from stdetr.datasets.converters.json_stream import Record, iter_records
from stdetr.datasets.converters.problems import MalformedInputError
from stdetr.video.open import open_source

_SECTIONS = ("categories", "videos", "images", "annotations")
# Sums of decimals such as 31.03 + 75.17 miss the border by less than this.
_TOLERANCE_PX = 1e-3


@dataclass
class _Video:
    width: int
    height: int
    length: int
    has_file: bool
    frames: set[int] = field(default_factory=set)


class Validation:
    """Checks one annotation file; iterate :meth:`violations` to its end, then read :attr:`summary`.

    root: folder that file names are relative to; default: the folder of the annotation file
    check_media: look whether video and image files are there, and whether videos have the length they claim

    Raises:
        FileNotFoundError: no such annotation file.
    """

    def __init__(self, path: Path, root: Path | None = None, check_media: bool = True) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"path={path}: no such annotation file")
        self.path = path
        self.root = path.parent if root is None else root
        self.check_media = check_media
        self.counts = dict.fromkeys(_SECTIONS, 0)
        self.found = 0
        self._ids: dict[str, set[int]] = {name: set() for name in _SECTIONS}
        self._names: set[str] = set()
        self._videos: dict[int, _Video] = {}
        self._images: dict[int, tuple[int, int, int]] = {}
        self._tracks: dict[tuple[int, int], int] = {}
        self._track_images: set[tuple[int, int]] = set()

    def violations(self) -> Iterator[str]:
        """One line each: ``file:line: section[index] (id 7): reason``."""
        for line in self._walk():
            self.found += 1
            yield line

    @property
    def summary(self) -> str:
        held = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        verdict = "valid" if not self.found else f"{self.found} violation{'s' if self.found > 1 else ''}"
        return f"{self.path}: {verdict} ({held})"

    def _walk(self) -> Iterator[str]:
        try:
            seen: set[str] = set()
            for record in iter_records(self.path, str(self.path)):
                seen.add(record.section)
                yield from self._first_pass(record)
            for name in _SECTIONS:
                if name not in seen:
                    yield f"{self.path}: section {name!r} is missing"
                elif not self.counts[name] and name != "annotations":
                    yield f"{self.path}: section {name!r} is empty"
            for record in iter_records(self.path, str(self.path)):
                if record.section == "annotations" and record.index is not None:
                    yield from self._report(record, self._annotation)
            for number, video in self._videos.items():
                if not video.frames:
                    yield f"{self.path}: video id {number} has no image record"
        except MalformedInputError as error:
            # The document cannot be read beyond this point.
            yield str(error)

    def _first_pass(self, record: Record) -> Iterator[str]:
        if record.section not in _SECTIONS:
            if record.section == "":
                yield f"{self.path}:{record.line}: the document is a list, not an object with {', '.join(_SECTIONS)}"
            return
        if record.index is None:
            if record.value != []:
                kind = type(record.value).__name__
                yield f"{self.path}:{record.line}: section {record.section!r} must be a list, it is {kind}"
            return
        self.counts[record.section] += 1
        if record.section == "annotations":
            return
        check = {"categories": self._category, "videos": self._video, "images": self._image}[record.section]
        yield from self._report(record, check)

    def _report(self, record: Record, check: Any) -> Iterator[str]:
        place = f"{self.path}:{record.line}: {record.section}[{record.index}]"
        if not isinstance(record.value, dict):
            yield f"{place}: must be an object, it is {type(record.value).__name__}"
            return
        place += f" (id {record.value.get('id')})"
        number = record.value.get("id")
        if not _is_int(number):
            yield f"{place}: id must be a whole number, it is {number!r}"
            return
        if number in self._ids[record.section]:
            yield f"{place}: this id was already used"
        self._ids[record.section].add(number)
        for reason in check(record.value):
            yield f"{place}: {reason}"

    def _category(self, value: dict[str, Any]) -> Iterator[str]:
        name = value.get("name")
        if not isinstance(name, str) or not name:
            yield f"name must be text, it is {name!r}"
        elif name in self._names:
            yield f"name {name!r} was already used"
        else:
            self._names.add(name)

    def _video(self, value: dict[str, Any]) -> Iterator[str]:
        for key in ("width", "height", "length"):
            if not _is_int(value.get(key)) or value[key] < 1:
                yield f"{key} must be a positive whole number, it is {value.get(key)!r}"
                return
        if not isinstance(value.get("name"), str) or not value["name"]:
            yield f"name must be text, it is {value.get('name')!r}"
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            listed = value.get(key, [])
            if not isinstance(listed, list):
                yield f"{key} must be a list, it is {type(listed).__name__}"
            elif not all(_is_int(item) for item in listed):
                yield f"{key} must hold whole numbers only"
            elif self._ids["categories"] and not set(listed) <= self._ids["categories"]:
                yield f"{key} has {sorted(set(listed) - self._ids['categories'])[0]}, which is no category"
        file_name = value.get("file_name")
        self._videos[value["id"]] = _Video(value["width"], value["height"], value["length"], bool(file_name))
        if file_name:
            yield from self._media(file_name, value)

    def _media(self, file_name: Any, video: dict[str, Any] | None) -> Iterator[str]:
        if not isinstance(file_name, str):
            yield f"file_name must be text, it is {file_name!r}"
            return
        pure = PurePosixPath(file_name)
        if pure.is_absolute() or ".." in pure.parts:
            yield f"file_name {file_name!r} leads outside the data set's folder"
            return
        if not self.check_media:
            return
        path = self.root / pure
        if not path.is_file():
            yield f"file_name {file_name!r}: there is no such file below {self.root}"
        elif video is not None:
            yield from self._video_file(path, file_name, video)

    def _video_file(self, path: Path, file_name: str, video: dict[str, Any]) -> Iterator[str]:
        try:
            source = open_source(path)
        except ValueError as error:
            yield f"file_name {file_name!r} cannot be decoded: {error}"
            return
        height, width = source.size
        if (width, height) != (video["width"], video["height"]):
            yield f"is {video['width']}x{video['height']} here, but {width}x{height} in {file_name!r}"
        if len(source) != video["length"]:
            yield f"length is {video['length']} here, but {file_name!r} has {len(source)} frames"
        source.close()

    def _image(self, value: dict[str, Any]) -> Iterator[str]:
        video_id = value.get("video_id")
        video = self._videos.get(video_id) if _is_int(video_id) else None
        if video is None:
            yield f"video_id {video_id!r} is no video"
            return
        self._images[value["id"]] = (value["video_id"], video.width, video.height)
        frame = value.get("frame_id")
        if not _is_int(frame) or not 0 <= frame < video.length:
            yield f"frame_id {frame!r} is outside 0..{video.length - 1} of video {value['video_id']}"
        elif frame in video.frames:
            yield f"frame_id {frame} of video {value['video_id']} has a second image record"
        else:
            video.frames.add(frame)
        size = (value.get("width", video.width), value.get("height", video.height))
        if size != (video.width, video.height):
            yield f"is {size[0]}x{size[1]}, its video {video.width}x{video.height}"
        if value.get("degradation") is not None and value["degradation"] not in DEGRADATIONS:
            yield f"degradation {value['degradation']!r} is not one of {', '.join(DEGRADATIONS)}"
        if value.get("file_name"):
            yield from self._media(value["file_name"], None)
        elif not video.has_file:
            yield "has no file_name, and neither has its video"

    def _annotation(self, value: dict[str, Any]) -> Iterator[str]:
        image_id = value.get("image_id")
        image = self._images.get(image_id) if _is_int(image_id) else None
        category = value.get("category_id")
        if not _is_int(category) or category not in self._ids["categories"]:
            yield f"category_id {category!r} is no category"
        for key in ("iscrowd", "ignore"):
            if value.get(key, 0) not in (0, 1):
                yield f"{key} must be 0 or 1, it is {value[key]!r}"
        if image is None:
            yield f"image_id {image_id!r} is no image"
            return
        video_id, width, height = image
        if value.get("video_id", video_id) != video_id:
            yield f"video_id is {value['video_id']}, but its image belongs to video {video_id}"
        yield from self._box(value, width, height)
        yield from self._track(value, video_id, category)

    def _box(self, value: dict[str, Any], width: int, height: int) -> Iterator[str]:
        box = value.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(side) for side in box):
            yield f"bbox must be four finite numbers [x, y, w, h], it is {box!r}"
            return
        x, y, w, h = box
        if w <= 0 or h <= 0:
            yield f"bbox {box} has no area"
        elif min(x, y) < -_TOLERANCE_PX or x + w > width + _TOLERANCE_PX or y + h > height + _TOLERANCE_PX:
            yield f"bbox {box} leaves its {width}x{height} frame"
        if "area" in value and (not _is_number(value["area"]) or value["area"] < 0):
            yield f"area must be a finite number from 0, it is {value['area']!r}"

    def _track(self, value: dict[str, Any], video_id: int, category: Any) -> Iterator[str]:
        track = value.get("instance_id", -1)
        if not _is_int(track):
            yield f"instance_id must be a whole number, it is {track!r}"
            return
        if track < 0:
            return
        if (value["image_id"], track) in self._track_images:
            yield f"instance_id {track} has a second box on image {value['image_id']}"
        self._track_images.add((value["image_id"], track))
        known = self._tracks.setdefault((video_id, track), category)
        if known != category:
            yield f"instance_id {track} is category {category} here, and {known} elsewhere in video {video_id}"


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
