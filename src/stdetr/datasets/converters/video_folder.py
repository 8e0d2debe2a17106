"""Your own data: a folder of videos, each with one CSV or MOT text file of the same stem.

CSV columns, found by name: ``frame`` (from 0), ``x, y, w, h`` or ``x1, y1, x2, y2`` in pixels, and if they are there
``class``, ``track_id`` and ``ignore`` (0 or 1); others are ignored, so that ``detections.csv`` of ``stdetr predict``
is accepted, too.  A ``.txt`` file has MOT rows ``frame,id,x,y,w,h[,conf[,class]]`` with frames from 1.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from stdetr.datasets.converters.annotation_files import choose_splits
from stdetr.datasets.converters.media import video_size
from stdetr.datasets.converters.mot import read_mot
from stdetr.datasets.converters.problems import MalformedField, Problems
from stdetr.datasets.converters.records import NO_TRACK, Box, Category, Frame, Reader, Video
from stdetr.datasets.converters.source_tree import VIDEO_SUFFIXES
from stdetr.datasets.converters.tables import Row, read_records

_ONLY_CLASS = "object"
_TRUE, _FALSE = frozenset({"1", "true", "yes"}), frozenset({"", "0", "false", "no"})


class VideoFolderReader(Reader):
    """Videos in the source, or in its sub-folders, whose names are then the splits (``train``, ``val``, ...).

    ``classes`` gives names and order (ids from 1; the class column of MOT rows is such an id).  Without it the class
    names of the CSV files are taken, sorted; a source without classes has the one class ``object``.
    """

    accepted = frozenset({"classes", "split"})

    def prepare(self) -> None:
        tree = self.tree
        videos = [("", path) for path in tree.files(tree.root, VIDEO_SUFFIXES)]
        for folder in tree.folders(tree.root):
            videos += [(folder.name, path) for path in tree.files(folder, VIDEO_SUFFIXES)]
        chosen = choose_splits(dict.fromkeys(sorted({split for split, _ in videos})), self.options)
        self.pairs = [(split, path, self._annotations(path)) for split, path in videos if split in chosen]
        self.total = len(self.pairs)
        if not self.pairs:
            raise FileNotFoundError(f"source={tree.root} holds no video ({', '.join(sorted(VIDEO_SUFFIXES))})")
        self.classes: dict[str, int] = {}

    def _annotations(self, video: Path) -> Path:
        for suffix in (".csv", ".txt"):
            path = video.with_suffix(suffix)
            if path.is_file():
                self.tree.check_inside(path)
                return path
        name = self.tree.name(video)
        raise FileNotFoundError(f"{name}: neither {video.stem}.csv nor {video.stem}.txt lies beside it")

    def categories(self) -> list[Category]:
        names = list(self.options.classes) or self._class_names() or [_ONLY_CLASS]
        self.classes = {name: number for number, name in enumerate(names, start=1)}
        return [Category(number, name) for name, number in self.classes.items()]

    def _class_names(self) -> list[str]:
        """First pass over the CSV files: only the names are kept."""
        names: set[str] = set()
        for _, _, path in self.pairs:
            if path.suffix == ".csv":
                quiet = Problems(strict=False)
                names.update(row.get("class", "") for _, row in read_records(path, path.name, ("frame",), quiet))
        return sorted(name.strip() for name in names if name.strip())

    def videos(self) -> Iterator[Video]:
        for split, path, beside in self.pairs:
            width, height, length = video_size(path)
            shown = self.tree.name(beside)
            if beside.suffix == ".csv":
                boxes = self._read_csv(beside, shown, length)
            else:
                boxes = self._read_mot(beside, shown, length)
            frames = (Frame(index, index, tuple(boxes.get(index, ()))) for index in range(length))
            yield Video(path.stem, width, height, length, frames, shown, path=path, split=split)

    def _read_mot(self, path: Path, shown: str, length: int) -> dict[int, list[Box]]:
        known = set(self.classes.values())
        boxes: dict[int, list[Box]] = {}
        for frame, videos in read_mot(path, shown, length, self.problems, keep_classes=True).items():
            boxes[frame - 1] = []
            for box in videos:
                if box.category_id in known:
                    boxes[frame - 1].append(box)
                else:
                    reason = f"class {box.category_id} is outside 1..{len(known)}; name your classes: classes=[...]"
                    self.problems.add(shown, box.record, reason)
        return boxes

    def _read_csv(self, path: Path, shown: str, length: int) -> dict[int, list[Box]]:
        boxes: dict[int, list[Box]] = defaultdict(list)
        for line, row in read_records(path, shown, ("frame",), self.problems):
            placed = self.problems.attempt(shown, line, self._box, row, line, length)
            if placed is not None:
                boxes[placed[0]].append(placed[1])
        return boxes

    def _box(self, row: dict[str, str], line: int, length: int) -> tuple[int, Box]:
        frame = Row([row["frame"]], line).integer(0, "frame")
        if not 0 <= frame < length:
            raise MalformedField(f"frame {frame} is outside 0..{length - 1} (frames count from 0)")
        ignore = row.get("ignore", "").strip().lower()
        if ignore not in _TRUE | _FALSE:
            raise MalformedField(f"ignore is {ignore!r}, not 0 or 1")
        category = self._category(row, ignore in _TRUE)
        track = row.get("track_id", "").strip()
        identity = NO_TRACK if not track else Row([track], line).integer(0, "track_id")
        return frame, Box(category, _xywh(row, line), identity, ignore in _TRUE, line)

    def _category(self, row: dict[str, str], ignore: bool) -> int | None:
        name = row.get("class", "").strip()
        if name in self.classes:
            return self.classes[name]
        if not name and ignore:
            return None
        if not name and len(self.classes) == 1:
            return 1
        close = difflib.get_close_matches(name, self.classes, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise MalformedField(f"class {name!r} is none of {', '.join(self.classes)}{hint}")


def _xywh(row: dict[str, str], line: int) -> tuple[float, float, float, float]:
    for names in (("x", "y", "w", "h"), ("x1", "y1", "x2", "y2")):
        if all(name in row for name in names):
            cells = Row([row[name] for name in names], line)
            a, b, c, d = (cells.number(column, name) for column, name in enumerate(names))
            return (a, b, c, d) if names[2] == "w" else (a, b, c - a, d - b)
    raise MalformedField(f"no columns x,y,w,h or x1,y1,x2,y2 (there are {', '.join(row)})")
