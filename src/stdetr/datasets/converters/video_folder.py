"""Your own data: a folder of videos, each with one CSV or MOT text file of the same stem.

CSV columns, found by name: ``frame`` (from 0), ``x, y, w, h`` or ``x1, y1, x2, y2`` in pixels, and if they are there
``class``, ``track_id`` and ``ignore`` (0 or 1); others are ignored, so that ``detections.csv`` of ``stdetr predict``
is accepted, too.  A ``.txt`` file has MOT rows ``frame,id,x,y,w,h[,conf[,class]]`` with frames from 1.

``clips.json`` in the source, a list of objects whose ``clip`` is the stem of a video, gives further fields of videos,
such as the scene; texts and whole numbers are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from stdetr.data.coco_vid_schema import Video as Record
from stdetr.data.json_file import JsonFile
from stdetr.datasets.converters.mot import read_mot
from stdetr.datasets.converters.problems import MalformedField, Problems
from stdetr.datasets.converters.records import NO_TRACK, Box, Reader, Video
from stdetr.datasets.converters.source_tree import VIDEO_SUFFIXES, video_size
from stdetr.datasets.converters.text_files import Row, read_records
from stdetr.names import did_you_mean

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
        videos = [("", path) for path in tree.files(tree.root, *VIDEO_SUFFIXES)]
        for folder in tree.folders(tree.root):
            videos += [(folder.name, path) for path in tree.files(folder, *VIDEO_SUFFIXES)]
        chosen = self.choose_splits(sorted({split for split, _ in videos}))
        self.pairs = [(split, path, self._annotations(path)) for split, path in videos if split in chosen]
        self.total = len(self.pairs)
        if not self.pairs:
            raise FileNotFoundError(f"source={tree.root} holds no video ({', '.join(sorted(VIDEO_SUFFIXES))})")
        self.names = self.options.classes or self._class_names() or (_ONLY_CLASS,)
        self._fields = self._read_fields()

    def _read_fields(self) -> dict[str, dict[str, str | int]]:
        """Further fields of each video, by its stem."""
        path = self.tree.root / "clips.json"
        if not path.is_file():
            return {}
        self.tree.check_inside(path)
        own = {"clip", *(field.name for field in msgspec.structs.fields(Record))}
        fields = {}
        for number, raw in enumerate(JsonFile(path, path.name).records()):
            record = msgspec.json.decode(raw)
            clip = record.get("clip") if isinstance(record, dict) else None
            if clip is None or not str(clip):
                raise ValueError(f"clips.json record {number} has no 'clip', the name of a video without suffix")
            fields[str(clip)] = {
                key: value
                for key, value in record.items()
                if key not in own and isinstance(value, str | int) and not isinstance(value, bool)
            }
        missing = sorted({path.stem for _, path, _ in self.pairs} - set(fields))
        if missing:
            raise ValueError(f"clips.json names no clip {missing[0]!r}{did_you_mean(missing[0], fields)}")
        return fields

    def _annotations(self, video: Path) -> Path:
        for suffix in (".csv", ".txt"):
            path = video.with_suffix(suffix)
            if path.is_file():
                self.tree.check_inside(path)
                return path
        name = self.tree.name(video)
        raise FileNotFoundError(f"{name}: neither {video.stem}.csv nor {video.stem}.txt lies beside it")

    def _class_names(self) -> tuple[str, ...]:
        """First pass over the CSV files: only the names are kept."""
        names: set[str] = set()
        for _, _, path in self.pairs:
            if path.suffix == ".csv":
                rows = read_records(path, self.tree.name(path), ("frame",), Problems(strict=False))
                names.update(row.get("class", "").strip() for _, row in rows)
        return tuple(sorted(names - {""}))

    def videos(self) -> Iterator[Video]:
        for split, path, beside in self.pairs:
            shown, by_name = self.tree.name(beside), beside.suffix == ".csv"
            if by_name:
                boxes = self.problems.each(shown, read_records(beside, shown, ("frame",), self.problems), self._box)
            else:
                boxes = read_mot(beside, shown, self.problems, len(self.names))
            first, extra = 0 if by_name else 1, self._fields.get(path.stem, {})
            yield Video(path.stem, *video_size(path), boxes, shown, path=path, first=first, split=split, extra=extra)

    def _box(self, line: int, row: dict[str, str]) -> Box:
        ignore = row.get("ignore", "").strip().lower()
        if ignore not in _TRUE | _FALSE:
            raise MalformedField(f"ignore is {ignore!r}, not 0 or 1")
        category = self._category(row, ignore in _TRUE)
        track = row.get("track_id", "").strip()
        identity = Row([track]).whole(0, "track_id") if track else NO_TRACK
        frame = Row([row["frame"]]).whole(0, "frame")
        return Box(frame, category, _xywh(row), identity, ignore in _TRUE, line)

    def _category(self, row: dict[str, str], ignore: bool) -> int | None:
        name = row.get("class", "").strip()
        if name in self.names:
            return self.names.index(name) + 1
        if not name and ignore:
            return None
        if not name and len(self.names) == 1:
            return 1
        raise MalformedField(f"class {name!r} is none of {', '.join(self.names)}{did_you_mean(name, self.names)}")


def _xywh(row: dict[str, str]) -> tuple[float, ...]:
    for names in (("x", "y", "w", "h"), ("x1", "y1", "x2", "y2")):
        if all(name in row for name in names):
            a, b, c, d = Row(row[name] for name in names).numbers(0, *names)
            return (a, b, c, d) if names[2] == "w" else (a, b, c - a, d - b)
    raise MalformedField(f"no columns x,y,w,h or x1,y1,x2,y2 (there are {', '.join(row)})")
