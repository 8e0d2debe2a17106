"""CVAT's "CVAT for video 1.1" export: one XML file a task, with its video.

``<track label>`` holds ``<box frame xtl ytl xbr ybr outside keyframe>``; ``frame`` counts decoded frames from 0.  A box
with ``outside="1"`` ends the track until the next one.  Where a file has key frames only, boxes between two of them are
interpolated linearly, as CVAT itself shows them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stdetr.datasets.converters.media import video_size
from stdetr.datasets.converters.options import Options
from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, Problems
from stdetr.datasets.converters.records import Box, Category, Frame, Video
from stdetr.datasets.converters.source_tree import VIDEO_SUFFIXES, SourceTree
from stdetr.datasets.converters.xml_stream import Element, attribute, iter_elements, whole

_SHAPES = ("polygon", "polyline", "points", "ellipse", "cuboid", "mask", "skeleton")


@dataclass
class _Task:
    """One XML file: its labels and video, read from ``<meta>`` without the tracks behind it."""

    path: Path
    shown: str
    video: Path
    labels: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Point:
    frame: int
    corners: tuple[float, ...]
    outside: bool
    occluded: bool


class CvatReader:
    """XML files directly in the source, each beside its video (``<source>`` of the task, or the same stem).

    Category ids count the labels from 1, in the order of the files; ``classes`` fixes names and order, and labels
    outside of it are left out.  Labels named ``ignore`` give ignore regions for every class.
    """

    accepted = frozenset({"annotations", "video", "classes"})
    one_id_space = True

    def __init__(self, tree: SourceTree, options: Options, problems: Problems, work: Path) -> None:
        self.tree, self.options, self.problems = tree, options, problems
        if options.annotations is not None:
            files = [tree.require(options.annotations, "the CVAT file")]
        else:
            files = list(tree.files(tree.root, frozenset({".xml"})))
        if not files:
            raise FileNotFoundError(f"source={tree.root} holds no XML file (CVAT for video 1.1)")
        if options.video is not None and len(files) > 1:
            raise ValueError(f"video={options.video} names one video, but there are {len(files)} XML files")
        self.tasks = [self._task(path) for path in files]
        labels = options.classes or tuple(dict.fromkeys(name for task in self.tasks for name in task.labels))
        self.classes = {name: number for number, name in enumerate((n for n in labels if n != "ignore"), start=1)}

    def categories(self) -> list[Category]:
        return [Category(number, name) for name, number in self.classes.items()]

    def count(self) -> int:
        return len(self.tasks)

    def _task(self, path: Path) -> _Task:
        shown = self.tree.name(path)
        tags = frozenset({"label", "source", "track", "image"})
        labels: list[str] = []
        source = ""
        for element in iter_elements(path, shown, tags):
            tag = element.node.tag
            if tag == "image":
                raise MalformedInputError(
                    f"{shown}:{element.line}: <image> elements: export the task as 'CVAT for video 1.1'"
                )
            if tag == "track":
                break
            if tag == "source":
                source = (element.node.text or "").strip()
            elif element.node.find("name") is not None:
                labels.append((element.node.findtext("name") or "").strip())
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
        raise FileNotFoundError(
            f"{shown}: its video {source or path.stem + '.mp4'} is not in the source; name it: video=FILE"
        )

    def videos(self) -> Iterator[Video]:
        for task in self.tasks:
            width, height, length = video_size(task.video)
            boxes = self._boxes(task, length)
            frames = (Frame(index, index, tuple(boxes.get(index, ()))) for index in range(length))
            yield Video(task.video.stem, width, height, length, frames, task.shown, path=task.video)

    def _boxes(self, task: _Task, length: int) -> dict[int, list[Box]]:
        boxes: dict[int, list[Box]] = defaultdict(list)
        for element in iter_elements(task.path, task.shown, frozenset({"track"})):
            label = element.node.get("label", "")
            if label not in task.labels:
                self.problems.add(task.shown, element.line, f"track label {label!r} is not in <meta>")
                continue
            if label not in self.classes and label != "ignore":
                self.problems.note(f"tracks left out: label {label!r} not among classes")
                continue
            for shape in _SHAPES:
                count = len(element.node.findall(shape))
                if count:
                    self.problems.note(f"shapes left out: {shape}", count)
            try:
                track = whole(attribute(element.node, "id"), "track id")
                points = list(_points(element, length))
            except MalformedField as error:
                self.problems.add(task.shown, element.line, f"track {element.node.get('id')}: {error}")
                continue
            for point in self._every_frame(points):
                xtl, ytl, xbr, ybr = point.corners
                boxes[point.frame].append(
                    Box(
                        self.classes.get(label),
                        (xtl, ytl, xbr - xtl, ybr - ytl),
                        track,
                        label not in self.classes,
                        element.line,
                        extra={"occluded": int(point.occluded)},
                    )
                )
        return boxes

    def _every_frame(self, points: list[_Point]) -> Iterator[_Point]:
        for place, point in enumerate(points):
            if point.outside:
                continue
            yield point
            after = points[place + 1] if place + 1 < len(points) else None
            if after is None:
                continue
            # A track that ends at an outside box stays where it was until then.
            goal = point if after.outside else after
            span = after.frame - point.frame
            for step in range(1, span):
                share = step / span
                corners = tuple((1 - share) * a + share * b for a, b in zip(point.corners, goal.corners, strict=True))
                self.problems.note("boxes interpolated between key frames")
                yield _Point(point.frame + step, corners, False, point.occluded)


def _points(element: Element, length: int) -> Iterator[_Point]:
    """The boxes of a track by frame; raises MalformedField."""
    found: dict[int, _Point] = {}
    for box in element.node.findall("box"):
        frame = whole(attribute(box, "frame"), "box frame")
        if not 0 <= frame < length:
            raise MalformedField(f"frame {frame} is outside 0..{length - 1}")
        if frame in found:
            raise MalformedField(f"two boxes on frame {frame}")
        corners = (attribute(box, "xtl"), attribute(box, "ytl"), attribute(box, "xbr"), attribute(box, "ybr"))
        found[frame] = _Point(frame, corners, box.get("outside") == "1", box.get("occluded") == "1")
    yield from (found[frame] for frame in sorted(found))
