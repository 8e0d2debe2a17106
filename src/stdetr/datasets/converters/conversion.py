"""Turns what a format reader streams into CocoVID files: ids, clipping, splits, counts, atomic output."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stdetr.datasets.converters.coco_vid_writer import CocoVidWriter
from stdetr.datasets.converters.media import MediaLinker
from stdetr.datasets.converters.problems import MalformedField, Problems
from stdetr.datasets.converters.records import NO_TRACK, Box, Category, Frame, Reader, Video
from stdetr.datasets.converters.splits import EVERYTHING, SplitRules

_WORK = ".conversion"
# Above any track id of a source, within every reader's integer range.
_FIRST_NEW_TRACK = 1_000_000_000


@dataclass
class Counts:
    """Counts of one output file.  ``boxes`` and ``tracks`` exclude ignore regions."""

    videos: int = 0
    images: int = 0
    boxes: int = 0
    ignore_regions: int = 0
    tracks: int = 0
    clipped: int = 0
    outside: int = 0
    per_class: dict[str, int] = field(default_factory=dict)


@contextlib.contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """A folder for unfinished files inside ``output``; removed at the end, as are left-overs of a killed conversion.

    Raises ValueError when another conversion is writing to the same output.
    """
    output.mkdir(parents=True, exist_ok=True)
    lock = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"output={output}: another conversion is writing there") from None
        work = output / _WORK
        if work.exists():
            shutil.rmtree(work)
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
    finally:
        os.close(lock)


class _Output:
    """One split file that is being written, and its counts."""

    def __init__(self, path: Path, work: Path) -> None:
        self.writer = CocoVidWriter(path, work)
        self.counts = Counts()
        self.tracks: set[int] = set()
        self.video: int | None = None

    def add_image(self, video: Mapping[str, Any], image: Mapping[str, Any]) -> None:
        """Add an image record, and that of its video before its first one."""
        if self.video != video["id"]:
            self.video = video["id"]
            self.tracks.clear()
            self.writer.add("videos", video)
            self.counts.videos += 1
        self.writer.add("images", image)
        self.counts.images += 1

    def count(self, box: Box, track: int, xywh: tuple[float, ...], clipped: bool, names: Mapping[int, str]) -> None:
        """Count a box; ``xywh`` is empty when it lies outside its frame."""
        self.counts.clipped += clipped
        if not xywh:
            self.counts.outside += 1
        elif box.ignore:
            self.counts.ignore_regions += 1
        else:
            assert box.category_id is not None
            self.counts.boxes += 1
            name = names[box.category_id]
            self.counts.per_class[name] = self.counts.per_class.get(name, 0) + 1
            if track != NO_TRACK and track not in self.tracks:
                self.tracks.add(track)
                self.counts.tracks += 1


class Conversion:
    """One run of a reader into one output folder.

    Args:
        reader: the format.
        output: where the split files go.
        media: how frames are made reachable from there.
        rules: which frames go to which file.
        problems: what to do with malformed records.
        info: kept in the ``info`` of each file.
    """

    def __init__(
        self,
        reader: Reader,
        output: Path,
        media: MediaLinker,
        rules: SplitRules,
        problems: Problems,
        info: Mapping[str, Any],
    ) -> None:
        self.reader, self.output, self.media = reader, output, media
        self.rules, self.problems, self.info = rules, problems, dict(info)
        self._outputs: dict[str, _Output] = {}
        self._next = {"video": count(1), "image": count(1), "annotation": count(1)}
        # Rules merge all splits into one file, where ids of two source files may collide.
        self._keep_ids = not rules or reader.one_id_space

    def run(self, work: Path) -> dict[str, Counts]:
        """Convert everything, then publish all files together.

        Raises:
            MalformedInputError: the source breaks its format (strict), with file, record and reason.
            ValueError: nothing to convert, or a split rule that matches nothing.
        """
        self._work = work
        categories = self.reader.categories()
        self._names = {category.id: category.name for category in categories}
        assert len(self._names) == len(categories), "a reader gives each category once"
        try:
            for video in tqdm(self.reader.videos(), total=self.reader.total, desc="videos", unit="video", disable=None):
                self._video(video)
            if not any(output.counts.images for output in self._outputs.values()):
                raise ValueError(f"source={self.media.tree.root} holds no annotated frames in this format")
            self.rules.check_used()
            for output in self._outputs.values():
                held = output.counts.per_class
                ids = sorted((str(number), name) for number, name in self._names.items() if name in held)
                output.counts.per_class = {name: held[name] for _, name in ids}
                output.writer.finish([_category_record(category) for category in categories], self.info)
        finally:
            for output in self._outputs.values():
                output.writer.close()
        splits = sorted(self._outputs, key=lambda split: split == EVERYTHING)
        counts = {split: self._outputs[split].counts for split in splits}
        self._publish(counts)
        return counts

    def _publish(self, counts: Mapping[str, Counts]) -> None:
        """Give every finished file its name; the report comes last and marks the set as complete.

        Old files are removed first: a process that is killed here leaves files missing, but never a training
        split of this conversion next to the validation split of an earlier one.
        """
        splits = {split: asdict(count) for split, count in counts.items()}
        notes, skipped = dict(self.problems.notes), self.problems.skipped
        report, final = self._work / "conversion.report", self.output / "conversion.json"
        text = json.dumps(
            {**self.info, "splits": splits, "notes": notes, "skipped": skipped}, indent=1, ensure_ascii=False
        )
        report.write_text(text + "\n", encoding="utf-8")
        writers = [output.writer for output in self._outputs.values()]
        for path in (final, *(writer.path for writer in writers)):
            path.unlink(missing_ok=True)
        for writer in writers:
            writer.publish()
        report.replace(final)

    def _output(self, split: str) -> _Output:
        if split not in self._outputs:
            self._outputs[split] = _Output(self.output / f"{split}.json", self._work)
        return self._outputs[split]

    def _id(self, kind: str, given: int | None) -> int:
        return given if given is not None and self._keep_ids else next(self._next[kind])

    def _video(self, video: Video) -> None:
        if video.width < 1 or video.height < 1:
            self.problems.add(video.file, video.name, f"video size {video.width}x{video.height} is not positive")
            return
        record: dict[str, Any] = {
            "id": self._id("video", video.id),
            "name": video.name,
            "width": video.width,
            "height": video.height,
            "length": video.length,
            **video.extra,
        }
        if video.path is not None:
            record["file_name"] = self.media.video(video.path)
        tracks = _Tracks()
        for frame in video.frames:
            self._frame(video, record, frame, tracks)
        if tracks.cut:
            self.problems.note("tracks cut where their class changes (a track has one class)", len(tracks.cut))

    def _frame(self, video: Video, video_record: dict[str, Any], frame: Frame, tracks: _Tracks) -> None:
        outputs = [self._output(split) for split in self.rules.of_frame(video.name, video.split, frame.number)]
        width, height = frame.width or video.width, frame.height or video.height
        record: dict[str, Any] = {
            "id": self._id("image", frame.id),
            "video_id": video_record["id"],
            "frame_id": frame.index,
            "width": width,
            "height": height,
            **frame.extra,
        }
        if frame.path is not None:
            record["file_name"] = self.media.image(frame.path)
        for output in outputs:
            output.add_image(video_record, record)
        seen: set[int] = set()
        for box in frame.boxes:
            track = tracks.of(box)
            if track in seen:
                reason = f"track {box.instance_id} has a second box on frame {frame.number} of {video.name}"
                self.problems.add(video.file, box.record, reason)
                continue
            seen |= {track} - {NO_TRACK}
            clipped = self.problems.attempt(video.file, box.record, _clip, box, width, height)
            if clipped is None:
                continue
            for output in outputs:
                output.count(box, track, *clipped, self._names)
            for annotation in self._annotations(box, track, *clipped, record):
                for output in outputs:
                    output.writer.add("annotations", annotation)

    def _annotations(
        self, box: Box, track: int, xywh: tuple[float, ...], clipped: bool, image: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        # Evaluators use ignore regions per class; one for every class is repeated for each.
        for category_id in (box.category_id,) if box.category_id is not None else self._names:
            if xywh:
                yield {
                    "id": self._id("annotation", box.id),
                    "image_id": image["id"],
                    "video_id": image["video_id"],
                    "category_id": category_id,
                    "instance_id": track,
                    "bbox": list(xywh),
                    # A mask's area is wrong for a box that was cut at the border.
                    "area": _plain(xywh[2] * xywh[3]) if box.area is None or clipped else box.area,
                    "iscrowd": int(box.ignore),
                    **box.extra,
                    **({"ignore": 1} if box.ignore else {}),
                }


class _Tracks:
    """Track ids inside one video.  A tube has one class, so a track that changes its class continues under a new id."""

    def __init__(self) -> None:
        self._class: dict[int, int] = {}
        self.cut: dict[tuple[int, int], int] = {}

    def of(self, box: Box) -> int:
        """The id to write; a region for every class has none."""
        if box.instance_id < 0 or box.category_id is None:
            return NO_TRACK
        if self._class.setdefault(box.instance_id, box.category_id) == box.category_id:
            return box.instance_id
        return self.cut.setdefault((box.instance_id, box.category_id), _FIRST_NEW_TRACK + len(self.cut))


def _clip(box: Box, width: int, height: int) -> tuple[tuple[float, ...], bool]:
    """The box clipped to its frame and whether it was cut; () when it lies outside.  Raises MalformedField."""
    x, y, w, h = box.xywh
    if not all(isfinite(side) for side in box.xywh):
        raise MalformedField(f"box {list(box.xywh)} is not finite")
    if w <= 0 or h <= 0:
        raise MalformedField(f"box [x, y, w, h] = {list(box.xywh)} has no area")
    if x >= 0 and y >= 0 and x + w <= width and y + h <= height:
        return tuple(_plain(value) for value in box.xywh), False
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        return (), False
    return tuple(_plain(value) for value in (left, top, right - left, bottom - top)), True


def _plain(value: float) -> float | int:
    """Rounded to 1/10000 px, and without ``.0``: sums of decimals would otherwise fill the file with digits."""
    rounded = round(value, 4)
    return int(rounded) if rounded == int(rounded) else rounded


def _category_record(category: Category) -> dict[str, Any]:
    return {"id": category.id, "name": category.name, **category.extra}
