"""Turns what a format reader streams into CocoVID files: ids, clipping, splits, counts, atomic output."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stdetr.datasets.converters.coco_vid_writer import CocoVidWriter
from stdetr.datasets.converters.media import MediaLinker
from stdetr.datasets.converters.problems import Problems
from stdetr.datasets.converters.records import NO_TRACK, Box, Category, Frame, Reader, Video
from stdetr.datasets.converters.splits import EVERYTHING, SplitRules

_WORK = ".conversion"


@dataclass
class Counts:
    """What one output file holds.  ``boxes`` and ``tracks`` leave the ignore regions out."""

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
    """A folder for unfinished files inside ``output``; left-overs of a killed conversion go, and so does it at the end.

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
        self.counts: dict[str, Counts] = {}
        self._writers: dict[str, CocoVidWriter] = {}
        self._next = {"video": 1, "image": 1, "annotation": 1}
        # Rules bring all splits together in one file, where ids of two source files may collide.
        self._keep_ids = not rules or reader.one_id_space

    def run(self, work: Path) -> dict[str, Counts]:
        """Convert everything, then publish all files together.

        Raises:
            MalformedInputError: the source breaks its format (strict), with file, record and reason.
            ValueError: nothing to convert, or a split rule that matches nothing.
        """
        self._work = work
        categories = self.reader.categories()
        names = {category.id: category.name for category in categories}
        assert len(names) == len(categories), "a reader gives each category once"
        try:
            videos = tqdm(self.reader.videos(), total=self.reader.total, desc="videos", unit="video", disable=None)
            for video in videos:
                self._video(video, categories)
            if not any(count.images for count in self.counts.values()):
                raise ValueError(f"source={self.media.tree.root} holds no annotated frames in this format")
            self.rules.check_used()
            for split, writer in self._writers.items():
                count = self.counts[split]
                count.per_class = {names[int(key)]: value for key, value in sorted(count.per_class.items())}
                writer.finish([_category_record(category) for category in categories], self.info)
        finally:
            for writer in self._writers.values():
                writer.close()
        self.counts = dict(sorted(self.counts.items(), key=lambda item: item[0] == EVERYTHING))
        self._publish(self._report())
        return self.counts

    def _publish(self, report: Path) -> None:
        """Give every finished file its name; the report comes last and says that the set is complete.

        What is to be replaced goes first: a process that is killed here leaves files missing, but never a training
        split of this conversion beside the validation split of a former one.
        """
        final = self.output / "conversion.json"
        for path in (final, *(writer.path for writer in self._writers.values())):
            path.unlink(missing_ok=True)
        for writer in self._writers.values():
            writer.publish()
        report.replace(final)

    def _writer(self, split: str) -> CocoVidWriter:
        if split not in self._writers:
            self._writers[split] = CocoVidWriter(self.output / f"{split}.json", self._work)
            self.counts[split] = Counts()
        return self._writers[split]

    def _id(self, kind: str, given: int | None) -> int:
        if given is not None and self._keep_ids:
            return given
        number = self._next[kind]
        self._next[kind] += 1
        return number

    def _video(self, video: Video, categories: list[Category]) -> None:
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
        tracks: dict[str, set[int]] = {}
        identities = _TrackIdentities()
        for frame in video.frames:
            splits = self.rules.of_frame(video.name, video.split, frame.number)
            for split in splits:
                if split not in tracks:
                    tracks[split] = set()
                    self._writer(split).add("videos", record)
                    self.counts[split].videos += 1
            self._frame(video, record["id"], frame, splits, tracks, identities, categories)
        for split, found in tracks.items():
            self.counts[split].tracks += len(found)
        if identities.split_off:
            self.problems.note("tracks cut where their class changes (a track has one class)", identities.split_off)

    def _frame(
        self,
        video: Video,
        video_id: int,
        frame: Frame,
        splits: list[str],
        tracks: dict[str, set[int]],
        identities: _TrackIdentities,
        categories: list[Category],
    ) -> None:
        width, height = frame.width or video.width, frame.height or video.height
        image_id = self._id("image", frame.id)
        record: dict[str, Any] = {
            "id": image_id,
            "video_id": video_id,
            "frame_id": frame.index,
            "width": width,
            "height": height,
            **frame.extra,
        }
        if frame.path is not None:
            record["file_name"] = self.media.image(frame.path)
        for split in splits:
            self._writers[split].add("images", record)
            self.counts[split].images += 1
        seen: set[int] = set()
        for box in frame.boxes:
            track = identities.of(box)
            if track in seen:
                reason = f"track {box.instance_id} has a second box on frame {frame.number} of {video.name}"
                self.problems.add(video.file, box.record, reason)
                continue
            if track != NO_TRACK:
                seen.add(track)
            clipped = self._clip(video, box, width, height)
            if clipped is None:
                continue
            xywh, cut = clipped
            for split in splits:
                count = self.counts[split]
                count.clipped += cut
                if not xywh:
                    count.outside += 1
                elif box.ignore:
                    count.ignore_regions += 1
                else:
                    count.boxes += 1
                    key = str(box.category_id)
                    count.per_class[key] = count.per_class.get(key, 0) + 1
                    if track != NO_TRACK:
                        tracks[split].add(track)
            if xywh:
                self._annotation(box, track, xywh, cut, image_id, video_id, splits, categories)

    def _annotation(
        self,
        box: Box,
        track: int,
        xywh: tuple[float, ...],
        cut: bool,
        image_id: int,
        video_id: int,
        splits: list[str],
        categories: list[Category],
    ) -> None:
        # Evaluators know ignore regions per class only; one that holds for every class is repeated for each.
        classes = [box.category_id] if box.category_id is not None else [category.id for category in categories]
        for category_id in classes:
            record: dict[str, Any] = {
                "id": self._id("annotation", box.id),
                "image_id": image_id,
                "video_id": video_id,
                "category_id": category_id,
                "instance_id": track,
                "bbox": list(xywh),
                # A mask's area says nothing of a box that was cut at the border.
                "area": _plain(xywh[2] * xywh[3]) if box.area is None or cut else box.area,
                "iscrowd": int(box.ignore),
                **box.extra,
            }
            if box.ignore:
                record["ignore"] = 1
            for split in splits:
                self._writers[split].add("annotations", record)

    def _clip(self, video: Video, box: Box, width: int, height: int) -> tuple[tuple[float, ...], bool] | None:
        """The box inside its frame and whether it was cut; () when nothing of it is inside; None when malformed."""
        x, y, w, h = box.xywh
        if not all(math.isfinite(value) for value in box.xywh):
            self.problems.add(video.file, box.record, f"box {list(box.xywh)} is not finite")
            return None
        if w <= 0 or h <= 0:
            self.problems.add(video.file, box.record, f"box [x, y, w, h] = {list(box.xywh)} has no area")
            return None
        if x >= 0 and y >= 0 and x + w <= width and y + h <= height:
            return tuple(_plain(value) for value in box.xywh), False
        left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        if right <= left or bottom <= top:
            return (), False
        return tuple(_plain(value) for value in (left, top, right - left, bottom - top)), True

    def _report(self) -> Path:
        """``conversion.json``, still under another name."""
        report = {
            **self.info,
            "splits": {split: asdict(count) for split, count in self.counts.items()},
            "notes": dict(self.problems.notes),
            "skipped": self.problems.skipped,
        }
        unfinished = self._work / "conversion.report"
        unfinished.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return unfinished


class _TrackIdentities:
    """Track ids inside one video.  A tube has one class, so a track that changes its class goes on under a new id."""

    # Far above any id of a source, and it still fits every reader's integers.
    _FIRST_NEW = 1_000_000_000

    def __init__(self) -> None:
        self._class: dict[int, int | None] = {}
        self._new: dict[tuple[int, int | None], int] = {}

    def of(self, box: Box) -> int:
        """The id to write; a region that holds for every class has none."""
        if box.instance_id < 0 or box.category_id is None:
            return NO_TRACK
        if self._class.setdefault(box.instance_id, box.category_id) == box.category_id:
            return box.instance_id
        return self._new.setdefault((box.instance_id, box.category_id), self._FIRST_NEW + len(self._new))

    @property
    def split_off(self) -> int:
        return len(self._new)


def _plain(value: float) -> float | int:
    """Rounded to 1/10000 px, and without ``.0``: sums of decimals otherwise fill the file with digits."""
    rounded = round(value, 4)
    return int(rounded) if rounded == int(rounded) else rounded


def _category_record(category: Category) -> dict[str, Any]:
    return {"id": category.id, "name": category.name, **category.extra}
