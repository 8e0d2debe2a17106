"""CVAT's "CVAT for video 1.1" export: one XML file per task, with its video.

``<track label>`` holds ``<box frame xtl ytl xbr ybr outside keyframe>``; ``frame`` counts decoded frames from 0.  A box
with ``outside="1"`` ends the track until the next one.  Where a file has only key frames, boxes between two of them are
interpolated linearly, as CVAT itself shows them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element as Node

from stdetr.datasets.converters.media import video_size
from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, number, whole
from stdetr.datasets.converters.records import Box, Category, Frame, Reader, Video
from stdetr.datasets.converters.source_tree import VIDEO_SUFFIXES
from stdetr.datasets.converters.xml_elements import iter_elements

_SHAPES = ("polygon", "polyline", "points", "ellipse", "cuboid", "mask", "skeleton")


@dataclass
class _Task:
    """One XML file: its labels and video, read from ``<meta>`` without the tracks that follow."""

    path: Path
    shown: str
    video: Path
    labels: list[str]


@dataclass(frozen=True)
class _Point:
    frame: int
    corners: tuple[float, ...]
    outside: bool
    occluded: bool


class CvatReader(Reader):
    """XML files directly in the source, each beside its video (``<source>`` of the task, or the same stem).

    Category ids count the labels from 1, in the order of the files; ``classes`` fixes names and order, and labels
    outside of it are left out.  Labels named ``ignore`` give ignore regions for every class.
    """

    accepted = frozenset({"annotations", "video", "classes"})

    def prepare(self) -> None:
        tree, options = self.tree, self.options
        if options.annotations is not None:
            files = [tree.require(options.annotations, "the CVAT file")]
        else:
            files = list(tree.files(tree.root, frozenset({".xml"})))
        if not files:
            raise FileNotFoundError(f"source={tree.root} holds no XML file (CVAT for video 1.1)")
        if options.video is not None and len(files) > 1:
            raise ValueError(f"video={options.video} names one video, but there are {len(files)} XML files")
        self.tasks = [self._task(path) for path in files]
        self.total = len(self.tasks)
        labels = options.classes or tuple(dict.fromkeys(name for task in self.tasks for name in task.labels))
        self.classes = {name: number for number, name in enumerate((n for n in labels if n != "ignore"), start=1)}

    def categories(self) -> list[Category]:
        return [Category(number, name) for name, number in self.classes.items()]

    def _task(self, path: Path) -> _Task:
        shown, source = self.tree.name(path), ""
        labels: list[str] = []
        for node, line in iter_elements(path, shown, frozenset({"label", "source", "track", "image"})):
            if node.tag == "image":
                raise MalformedInputError(f"{shown}:{line}: <image> elements: export the task as 'CVAT for video 1.1'")
            if node.tag == "track":
                break
            if node.tag == "source":
                source = (node.text or "").strip()
            elif node.find("name") is not None:
                labels.append((node.findtext("name") or "").strip())
        if not labels:
            raise MalformedInputError(f"{shown}: no <label> in <meta>: not a 'CVAT for video 1.1' export")
        return _Task(path, shown, self._video_path(path, shown, source), labels)

    def _video_path(self, path: Path, shown: str, source: str) -> Path:
        if self.options.video is not None:
            return self.tree.require(self.options.video, "the video")
        if source:
            named = self.tree.join(source, shown)
            if named.is_file():
                return named
        for suffix in sorted(VIDEO_SUFFIXES):
            beside = path.with_suffix(suffix)
            if beside.is_file():
                self.tree.check_inside(beside, shown)
                return beside
        name = source or f"{path.stem}.mp4"
        raise FileNotFoundError(f"{shown}: its video {name} is not in the source; name it: video=FILE")

    def videos(self) -> Iterator[Video]:
        for task in self.tasks:
            width, height, length = video_size(task.video)
            boxes: dict[int, list[Box]] = defaultdict(list)
            for node, line in iter_elements(task.path, task.shown, frozenset({"track"})):
                for frame, box in self._track(task, node, line, length):
                    boxes[frame].append(box)
            frames = (Frame(index, index, tuple(boxes.get(index, ()))) for index in range(length))
            yield Video(task.video.stem, width, height, length, frames, task.shown, path=task.video)

    def _track(self, task: _Task, node: Node, line: int, length: int) -> Iterator[tuple[int, Box]]:
        label = node.get("label", "")
        if label not in task.labels:
            self.problems.add(task.shown, line, f"track label {label!r} is not in <meta>")
            return
        if label not in self.classes and label != "ignore":
            self.problems.note(f"tracks left out: label {label!r} not among classes")
            return
        for shape in _SHAPES:
            count = len(node.findall(shape))
            if count:
                self.problems.note(f"shapes left out: {shape}", count)
        points = self.problems.attempt(task.shown, line, _points, node, length)
        for point in self._every_frame(points or []):
            left, top, right, bottom = point.corners
            xywh, extra = (left, top, right - left, bottom - top), {"occluded": int(point.occluded)}
            category = self.classes.get(label)
            yield point.frame, Box(category, xywh, int(node.get("id", 0)), category is None, line, extra=extra)

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


def _points(track: Node, length: int) -> list[_Point]:
    """The boxes of a track by frame; raises MalformedField."""
    points: dict[int, _Point] = {}
    try:
        whole(track.get("id"), "track id")
        for box in track.findall("box"):
            frame = whole(box.get("frame"), "box frame")
            if not 0 <= frame < length:
                raise MalformedField(f"frame {frame} is outside 0..{length - 1}")
            if frame in points:
                raise MalformedField(f"two boxes on frame {frame}")
            corners = tuple(number(box.get(side), f"box {side}") for side in ("xtl", "ytl", "xbr", "ybr"))
            points[frame] = _Point(frame, corners, box.get("outside") == "1", box.get("occluded") == "1")
    except MalformedField as error:
        raise MalformedField(f"track {track.get('id')}: {error}") from None
    return [points[frame] for frame in sorted(points)]
