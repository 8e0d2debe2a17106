"""The output of a format reader: categories, and videos of frames with boxes.

Boxes are ``x, y, w, h`` in pixels of the source frame, with x and y counted from the left and the top edge.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from stdetr.datasets.converters.media import image_size
from stdetr.datasets.converters.options import Options
from stdetr.datasets.converters.problems import Problems
from stdetr.datasets.converters.source_tree import SourceTree

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

    category_id: the class; None is allowed for an ignore region, which then holds for every class
    xywh:        pixels of the source frame, not yet clipped to it
    instance_id: the track, unique inside the video; NO_TRACK where the source has none
    ignore:      the region counts neither for nor against (written as iscrowd=1, ignore=1)
    record:      line number or record in the annotation file, for error messages
    area:        the source's own area (of a mask); None means w * h
    id:          the source's own annotation id, if it has one
    """

    category_id: int | None
    xywh: tuple[float, float, float, float]
    instance_id: int = NO_TRACK
    ignore: bool = False
    record: object = 0
    area: float | None = None
    id: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame that gets an image record.

    index:  decoded frame number in the video, from 0
    number: the source's own frame number, used by ``splits`` ranges
    path:   the image file; None when frames come from the video file
    width, height: pixels, where they differ from the video's (still images); else None
    """

    index: int
    number: int
    boxes: Iterable[Box] = ()
    path: Path | None = None
    width: int | None = None
    height: int | None = None
    id: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Video:
    """One video; ``frames`` may be a generator, and is consumed once.

    file:   annotation file that the boxes come from, relative to the source, for error messages
    length: number of frames of the source video (not only of those with an image record)
    path:   the video file; None when the frames are image files
    split:  the source's own split ("train", "val", ...), or "" where it has none
    """

    name: str
    width: int
    height: int
    length: int
    frames: Iterable[Frame]
    file: str
    path: Path | None = None
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
    names: ClassVar[tuple[str, ...]] = ()
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

    def frame_size(self, first: Path) -> tuple[int, int] | None:
        """(width, height) of a video's frames: ``frame_size``, or the first image's; None when it may not be read."""
        if self.options.frame_size is not None or not self.options.check_media:
            return self.options.frame_size
        return image_size(first, self.tree.name(first))
