"""CVAT's "CVAT for video 1.1" export: one XML file per task or project, with its videos.

``<track label>`` holds ``<box frame xtl ytl xbr ybr outside keyframe>``; ``frame`` counts decoded frames from 0.  A box
with ``outside="1"`` ends the track until the next one.  Where a file has only key frames, boxes between two of them are
interpolated linearly, as CVAT itself shows them.  A rotated box becomes the box that encloses it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element

from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, number, whole
from stdetr.datasets.converters.records import Box, Reader, Video
from stdetr.datasets.converters.source_tree import VIDEO_SUFFIXES, video_size
from stdetr.datasets.converters.text_files import iter_elements

_SIDES = ("xtl", "ytl", "xbr", "ybr")
_SHAPES = ("polygon", "polyline", "points", "ellipse", "cuboid", "mask", "skeleton")


@dataclass
class _File:
    """One XML file: its labels, and the video of each task by the task's id ("" where there is only one)."""

    path: Path
    shown: str
    labels: list[str] = field(default_factory=list)
    videos: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class _Point:
    """A box on a frame, as corners of the enclosing upright one."""

    frame: int
    corners: tuple[float, ...]
    outside: bool
    occluded: bool


class CvatReader(Reader):
    """XML files directly in the source, each beside its video (``<source>`` of the task, or the same stem); the export
    of a project names one video per task.

    Category ids count the labels from 1, in the order of the files; ``classes`` fixes names and order, and labels
    outside of it are left out.  Labels named ``ignore`` give ignore regions for every class.
    """

    accepted = frozenset({"annotations", "video", "classes"})

    def prepare(self) -> None:
        tree, options = self.tree, self.options
        if options.annotations is not None:
            paths = [tree.require(options.annotations, "the CVAT file")]
        else:
            paths = list(tree.files(tree.root, ".xml"))
        if not paths:
            raise FileNotFoundError(f"source={tree.root} holds no XML file (CVAT for video 1.1)")
        if options.video is not None and len(paths) > 1:
            raise ValueError(f"video={options.video} names one video, but there are {len(paths)} XML files")
        self.files = [self._file(path) for path in paths]
        self.total = sum(len(file.videos) for file in self.files)
        labels = options.classes or tuple(dict.fromkeys(name for file in self.files for name in file.labels))
        self.names = tuple(name for name in labels if name != "ignore")

    def _file(self, path: Path) -> _File:
        """Labels and videos, from ``<meta>`` without the tracks that follow."""
        file, sources = _File(path, self.tree.name(path)), [""]
        tasks: dict[str, str] = {}
        for line, node in iter_elements(path, file.shown, "label", "source", "tasks", "track", "image"):
            if node.tag == "image":
                told = "<image> elements: export the task as 'CVAT for video 1.1'"
                raise MalformedInputError(f"{file.shown}:{line}: {told}")
            if node.tag == "track":
                break
            if node.tag == "source":
                sources.append((node.text or "").strip())
            if node.tag == "tasks":
                for task in node.iter("task"):
                    tasks[(task.findtext("id") or "").strip()] = (task.findtext("source") or "").strip()
            if node.tag == "label" and node.find("name") is not None:
                file.labels.append((node.findtext("name") or "").strip())
        if not file.labels:
            raise MalformedInputError(f"{file.shown}: no <label> in <meta>: not a 'CVAT for video 1.1' export")
        if len(tasks) > 1 and self.options.video is not None:
            raise ValueError(f"video={self.options.video} names one video, but {file.shown} has {len(tasks)} tasks")
        several = tasks if len(tasks) > 1 else {"": next(iter(tasks.values()), sources[-1])}
        file.videos = {task: self._video_path(file, source) for task, source in several.items()}
        return file

    def _video_path(self, file: _File, source: str) -> Path:
        if self.options.video is not None:
            return self.tree.require(self.options.video, "the video")
        if source and (named := self.tree.join(source, file.shown)).is_file():
            return named
        for suffix in sorted(VIDEO_SUFFIXES):
            beside = file.path.with_suffix(suffix)
            if beside.is_file():
                self.tree.check_inside(beside, file.shown)
                return beside
        name = source or f"{file.path.stem}.mp4"
        raise FileNotFoundError(f"{file.shown}: its video {name} is not in the source; name it: video=FILE")

    def videos(self) -> Iterator[Video]:
        for file in self.files:
            for task, path in file.videos.items():
                width, height, length = video_size(path)
                boxes = self._boxes(file, task, length)
                yield Video(path.stem, width, height, length, boxes, file.shown, path=path)

    def _boxes(self, file: _File, task: str, length: int) -> Iterator[Box]:
        for line, node in iter_elements(file.path, file.shown, "track"):
            label, owner = node.get("label", ""), node.get("task_id", "")
            if task and owner not in file.videos:
                if task == next(iter(file.videos)):
                    known = ", ".join(file.videos)
                    self.problems.add(file.shown, line, f"track task_id {owner!r} is none of the tasks {known}")
            elif task and owner != task:
                pass
            elif label not in file.labels:
                self.problems.add(file.shown, line, f"track label {label!r} is not in <meta>")
            elif label not in self.names and label != "ignore":
                self.problems.note(f"tracks left out: label {label!r} not among classes")
            else:
                yield from self._track(file, node, line, length)

    def _track(self, file: _File, node: Element, line: int, length: int) -> Iterator[Box]:
        for shape in _SHAPES:
            count = len(node.findall(shape))
            if count:
                self.problems.note(f"shapes left out: {shape}", count)
        category = self.names.index(node.get("label", "")) + 1 if node.get("label") != "ignore" else None
        for point in self._every_frame(self.problems.attempt(file.shown, line, self._points, node, length) or []):
            left, top, right, bottom = point.corners
            xywh, extra = (left, top, right - left, bottom - top), {"occluded": int(point.occluded)}
            yield Box(point.frame, category, xywh, int(node.get("id", 0)), category is None, line, extra=extra)

    def _every_frame(self, points: list[_Point]) -> Iterator[_Point]:
        for place, point in enumerate(points):
            if point.outside:
                continue
            yield point
            after = points[place + 1] if place + 1 < len(points) else point
            # A track that ends at an outside box stays where it was until then.
            goal = point if after.outside else after
            span = after.frame - point.frame
            for step in range(1, span):
                share = step / span
                corners = tuple((1 - share) * a + share * b for a, b in zip(point.corners, goal.corners, strict=True))
                self.problems.note("boxes interpolated between key frames")
                yield _Point(point.frame + step, corners, False, point.occluded)

    def _points(self, track: Element, length: int) -> list[_Point]:
        """The boxes of a track by frame; raises MalformedField."""
        points: dict[int, _Point] = {}
        try:
            whole(track.get("id"), "track id")
            for box in track.findall("box"):
                frame, outside = whole(box.get("frame"), "box frame"), box.get("outside") == "1"
                # CVAT ends a track that lasts to the end of its video behind the last frame.
                frame = min(frame, length) if outside else frame
                if not 0 <= frame < length + outside:
                    raise MalformedField(f"frame {frame} is outside 0..{length - 1}")
                if frame in points:
                    raise MalformedField(f"two boxes on frame {frame}")
                left, top, right, bottom = (number(box.get(side), f"box {side}") for side in _SIDES)
                turn = number(box.get("rotation", "0"), "box rotation")
                if turn % 180 and not outside:
                    self.problems.note("rotated boxes replaced by the upright boxes around them")
                points[frame] = _Point(
                    frame, _enclose(left, top, right, bottom, turn), outside, box.get("occluded") == "1"
                )
        except MalformedField as error:
            raise MalformedField(f"track {track.get('id')}: {error}") from None
        return [points[frame] for frame in sorted(points)]


def _enclose(left: float, top: float, right: float, bottom: float, degrees: float) -> tuple[float, ...]:
    """Corners of the upright box around one that is turned about its centre."""
    if not degrees % 180:
        return left, top, right, bottom
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    width, height = right - left, bottom - top
    x, y = (left + right) / 2, (top + bottom) / 2
    w, h = width * cos + height * sin, width * sin + height * cos
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2
