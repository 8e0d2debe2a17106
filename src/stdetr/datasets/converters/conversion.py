"""Turns what a format reader streams into CocoVID files: ids, clipping, splits, counts, atomic output."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any

from tqdm import tqdm

from stdetr.atomic import publish
from stdetr.datasets.converters.coco_vid_writer import CocoVidWriter, Counts
from stdetr.datasets.converters.media import MediaLinker
from stdetr.datasets.converters.options import EVERYTHING, SplitRules
from stdetr.datasets.converters.problems import MalformedField, Problems
from stdetr.datasets.converters.records import NO_TRACK, Box, Image, Reader, Video

_WORK = ".conversion"
# Above any track id of a source, within every reader's integer range.
_FIRST_NEW_TRACK = 1_000_000_000


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
        self._outputs: dict[str, CocoVidWriter] = {}
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
            in_order = [name for _, name in sorted((str(number), name) for number, name in self._names.items())]
            for output in self._outputs.values():
                held = output.counts.per_class
                output.counts.per_class = {name: held[name] for name in in_order if name in held}
                records = [{"id": item.id, "name": item.name, **item.extra} for item in categories]
                output.finish(records, self.info)
        finally:
            for output in self._outputs.values():
                output.close()
        splits = sorted(self._outputs, key=lambda split: split == EVERYTHING)
        counts = {split: self._outputs[split].counts for split in splits}
        self._publish(counts)
        return counts

    def _publish(self, counts: Mapping[str, Counts]) -> None:
        """Give every finished file its name; the report comes last and marks the set as complete.

        Old files are removed first: a process that is killed here leaves files missing, but never a training
        split of this conversion next to the validation split of an earlier one.
        """
        os.sync()  # media files, which may be millions
        splits = {split: asdict(count) for split, count in counts.items()}
        report = {**self.info, "splits": splits, "notes": dict(self.problems.notes), "skipped": self.problems.skipped}
        draft, final = self._work / "conversion.report", self.output / "conversion.json"
        draft.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for path in (final, *(output.path for output in self._outputs.values())):
            path.unlink(missing_ok=True)
        for output in self._outputs.values():
            output.publish()
        publish(draft, final)

    def _output(self, split: str) -> CocoVidWriter:
        if split not in self._outputs:
            self._outputs[split] = CocoVidWriter(self.output / f"{split}.json", self._work)
        return self._outputs[split]

    def _id(self, kind: str, given: int | None) -> int:
        return given if given is not None and self._keep_ids else next(self._next[kind])

    def _video(self, video: Video) -> None:
        if video.width < 1 or video.height < 1:
            self.problems.add(video.file, video.name, f"video size {video.width}x{video.height} is not positive")
            return
        boxes: dict[int, list[Box]] = defaultdict(list)
        last = video.first + video.length - 1
        for box in video.boxes:
            if video.first <= box.frame <= last:
                boxes[box.frame].append(box)
            else:
                told = f"frame {box.frame} is outside {video.first}..{last} (frames count from {video.first})"
                self.problems.add(video.file, box.record, told)
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
        for image in video.images or map(Image, range(video.first, last + 1)):
            self._frame(video, record, image, boxes.get(image.frame, []), tracks)
        if tracks.cut:
            self.problems.note("tracks cut where their class changes (a track has one class)", len(tracks.cut))

    def _frame(
        self, video: Video, video_record: dict[str, Any], image: Image, boxes: list[Box], tracks: _Tracks
    ) -> None:
        chosen = self.rules.of_frame(video.name, video.split, image.frame, video.extra)
        outputs = [self._output(split) for split in chosen]
        record: dict[str, Any] = {
            "id": self._id("image", image.id),
            "video_id": video_record["id"],
            "frame_id": image.frame - video.first,
            "width": video.width,
            "height": video.height,
            **image.extra,
        }
        if image.path is not None:
            record["file_name"] = self.media.image(image.path)
        for output in outputs:
            output.add_image(video_record, record)
        seen: set[int] = set()
        for box in boxes:
            track = tracks.of(box)
            if track in seen:
                reason = f"track {box.instance_id} has a second box on frame {box.frame} of {video.name}"
                self.problems.add(video.file, box.record, reason)
                continue
            seen |= {track} - {NO_TRACK}
            xywh = self.problems.attempt(video.file, box.record, _clip, box, video.width, video.height)
            if xywh is None:
                continue
            clipped = bool(xywh) and xywh != tuple(map(_plain, box.xywh))
            for output in outputs:
                if xywh:
                    output.count(box.ignore, track, clipped, self._names.get(box.category_id or 0, ""))
                output.counts.outside += not xywh
            for annotation in self._annotations(box, track, xywh, clipped, record):
                for output in outputs:
                    output.add("annotations", annotation)

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


def _clip(box: Box, width: int, height: int) -> tuple[float, ...]:
    """The box clipped to its frame; () when it lies outside.  Raises MalformedField."""
    x, y, w, h = box.xywh
    if not all(isfinite(side) for side in box.xywh):
        raise MalformedField(f"box {list(box.xywh)} is not finite")
    if w <= 0 or h <= 0:
        raise MalformedField(f"box [x, y, w, h] = {list(box.xywh)} has no area")
    if x >= 0 and y >= 0 and x + w <= width and y + h <= height:
        return tuple(map(_plain, box.xywh))
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        return ()
    return tuple(map(_plain, (left, top, right - left, bottom - top)))


def _plain(value: float) -> float | int:
    """Rounded to 1/10000 px, and without ``.0``: sums of decimals would otherwise fill the file with digits."""
    rounded = round(value, 4)
    return int(rounded) if rounded == int(rounded) else rounded
