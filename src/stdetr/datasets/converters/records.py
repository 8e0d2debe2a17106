"""The output of a format reader: categories, and videos with their images and boxes.

Boxes are ``x, y, w, h`` in pixels of the source frame, with x and y counted from the left and the top edge.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from stdetr.datasets.converters.options import Options
from stdetr.datasets.converters.problems import Problems
from stdetr.datasets.converters.source_tree import SourceTree, image_size

NO_TRACK = -1
"""``instance_id`` of a box whose source does not follow objects over time (structures.ClipTargets says the same)."""


@dataclass(frozen=True, slots=True)
class Category:
    """One class: the source's id, if any, and its other attributes in the source."""

    id: int
    name: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Box:
    """One annotated box on one frame.

    frame:       the frame's number as the source counts, see ``Video.first``
    category_id: the class; None is allowed for an ignore region, which then holds for every class
    xywh:        pixels of the source frame, not yet clipped to it
    instance_id: the track, unique inside the video; NO_TRACK where the source has none
    ignore:      the region counts neither for nor against (written as iscrowd=1, ignore=1)
    record:      line number or record in the annotation file, for error messages
    area:        the source's own area (of a mask); None means w * h
    id:          the source's own annotation id, if it has one
    """

    frame: int
    category_id: int | None
    xywh: tuple[float, ...]
    instance_id: int = NO_TRACK
    ignore: bool = False
    record: object = 0
    area: float | None = None
    id: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Image:
    """One frame that gets an image record; ``path`` is None when frames come from the video file."""

    frame: int
    path: Path | None = None
    id: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Video:
    """One video.  Boxes may come in any order; those of a frame without image record are left out.

    length: number of frames of the source video (not only of those with an image record)
    boxes:  may be a generator, consumed once
    file:   annotation file that the boxes come from, relative to the source, for error messages
    images: in the order of frames; None: every frame of the video file
    path:   the video file; None when the frames are image files
    first:  number of the first frame in the source
    split:  the source's own split ("train", "val", ...), or "" where it has none
    """

    name: str
    width: int
    height: int
    length: int
    boxes: Iterable[Box]
    file: str
    images: Iterable[Image] | None = None
    path: Path | None = None
    first: int = 0
    split: str = ""
    id: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class Reader(ABC):
    """The base class of formats.  A format sets ``accepted`` and ``names``, finds its files in :meth:`prepare` and
    streams :meth:`videos`.

    accepted: keys of :class:`Options` that it takes
    names: its classes, numbered from 1
    one_id_space: whether the source's ids are unique over all its splits, so that ``all.json`` may keep them
    total: number of videos, for the progress bar
    """

    accepted: ClassVar[frozenset[str]]
    names: tuple[str, ...] = ()
    one_id_space = True
    total = 0

    def __init__(self, tree: SourceTree, options: Options, problems: Problems) -> None:
        self.tree, self.options, self.problems = tree, options, problems
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Find the source's files; raises FileNotFoundError and ValueError."""

    def categories(self) -> list[Category]:
        """The classes, in the order of their ids; called once, before :meth:`videos`."""
        return [Category(number, name) for number, name in enumerate(self.names, start=1)]

    @abstractmethod
    def videos(self) -> Iterator[Video]:
        """The videos, in a fixed order; never the whole data set in memory."""

    def choose_splits(self, available: Iterable[str]) -> list[str]:
        """The splits to convert, in the source's order; raises ValueError for one that the source does not have."""
        held = list(available)
        requested = {name if name in held else split_name(name) for name in self.options.split}
        for name in sorted(requested.difference(held)):
            told = ", ".join(filter(None, sorted(held))) or "none"
            raise ValueError(f"split={name} is not in the source; it has {told}")
        return [name for name in held if not requested or name in requested]

    def frame_size(self, first: Path) -> tuple[int, int] | None:
        """(width, height) of a video's frames: ``frame_size``, or the first image's; None when it may not be read."""
        if self.options.frame_size is not None or not self.options.check_media:
            return self.options.frame_size
        return image_size(first, self.tree.name(first))


def split_name(source_split: str) -> str:
    """The name of a source's split in the output: ``valid`` and ``validation`` are ``val``; other names stay."""
    return {"valid": "val", "validation": "val"}.get(source_split, source_split)


class FrameRoot:
    """Where the frame names of an annotation file start from: the first of the ``candidates`` (folders of the source)
    below which the first frame exists."""

    def __init__(self, reader: Reader, file: str, candidates: tuple[str, ...]) -> None:
        self.tree, self.problems, self.check_media = reader.tree, reader.problems, reader.options.check_media
        self.file, self.candidates = file, candidates
        self._base: str | None = None

    def path(self, name: str, record: object) -> Path | None:
        """The frame file ``name`` of the annotation file's ``record``; None, and a problem, where it is missing.

        Raises MalformedInputError when it leads outside the source, which is always refused.
        """
        # The name itself is checked first: a folder in front would turn "/etc/passwd" into a name inside the source.
        self.tree.join(name, self.file, record)
        bases = [f"{candidate}/" if candidate else "" for candidate in self.candidates]
        if self._base is None:
            self._base = next((base for base in bases if (self.tree.root / base / name).is_file()), None)
        if self._base is None and self.check_media:
            tried = ", ".join(base + name for base in bases)
            self.problems.add(self.file, record, f"frame is missing; looked for {tried}")
            return None
        if self._base is None:
            self._base = next((base for base in bases if (self.tree.root / base).is_dir()), bases[0])
        path = self.tree.join(f"{self._base}{name}", self.file, record)
        if self.check_media and not path.is_file():
            self.problems.add(self.file, record, f"frame {self.tree.name(path)} is missing")
            return None
        return path
