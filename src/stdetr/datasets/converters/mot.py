"""MOTChallenge text: MOT15, MOT16, MOT17, MOT20, DanceTrack, or one video with its ``gt.txt``.

A row is ``frame,id,x,y,w,h,conf[,class,visibility]`` or, in MOT15, ``frame,id,x,y,w,h,conf,X,Y,Z``; ``frame`` counts
from 1.  Rules follow TrackEval's ``mot_challenge_2d_box`` (Luiten and Hoffhues, 2020): pedestrians are the class;
people on vehicles, static people, distractors and reflections are ignore regions; other classes are left out.
"""

from __future__ import annotations

import configparser
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, Problems
from stdetr.datasets.converters.records import Box, Image, Reader, Video
from stdetr.datasets.converters.source_tree import VIDEO_SUFFIXES, image_size, video_size
from stdetr.datasets.converters.text_files import Row, read_lines, read_rows

PEDESTRIAN = 1
DISTRACTORS = {2: "person on vehicle", 7: "static person", 8: "distractor", 12: "reflection"}
OTHERS = {
    3: "car",
    4: "bicycle",
    5: "motorbike",
    6: "non motorized vehicle",
    9: "occluder",
    10: "occluder on the ground",
    11: "occluder full",
    13: "crowd",
}
_MOT20_NON_MOTORIZED = 6
_DETECTORS = ("FRCNN", "SDP", "DPM")
_DETECTOR = re.compile(rf"(?<=^MOT17-\d\d)-(?:{'|'.join(_DETECTORS)})$")


class _Sequence(NamedTuple):
    name: str
    split: str
    folder: Path


class MotReader(Reader):
    """Folders with ``seqinfo.ini``, ``gt/gt.txt`` and ``img1/``, in the source or in its ``train``, ``val``, ``test``;
    or a video file with ``gt.txt`` beside it (``video=``, ``annotations=`` name others).  MOT15's archive has no
    ``seqinfo.ini``: there, the images are counted.

    ``classes=[name]`` names the one class (default ``person``).  Rows with conf = 0 become ignore regions.  Where a
    ``labels.txt`` lies beside the ground truth, as in CVAT's export, its lines are the classes, and the class column
    counts them from 1.
    MOT17 repeats each sequence for three public detectors with equal ground truth: one of them is kept.
    """

    accepted = frozenset({"classes", "video", "annotations", "split"})

    def prepare(self) -> None:
        tree, classes = self.tree, self.options.classes
        if len(classes) > 1:
            raise ValueError(f"classes={list(classes)}: format=mot has one class; give its name only")
        single = self.options.video is not None or (tree.root / "gt.txt").is_file()
        self.sequences = [] if single else self._find_sequences()
        self.total = len(self.sequences) or 1
        self.labels: tuple[str, ...] | None = None
        for folder in [sequence.folder / "gt" for sequence in self.sequences] or [tree.root]:
            if (folder / "labels.txt").is_file():
                self._read_labels(folder / "labels.txt")
        self.names = self.labels or classes or ("person",)

    def _read_labels(self, path: Path) -> None:
        self.tree.check_inside(path)
        shown = self.tree.name(path)
        labels = tuple(line.strip() for _, line in read_lines(path, shown) if line.strip())
        if len(set(labels)) != len(labels) or not labels:
            raise MalformedInputError(f"{shown}: one class name per line, each once")
        if self.options.classes or self.labels not in (None, labels):
            told = f"classes={list(self.options.classes)}" if self.options.classes else f"another one {self.labels}"
            raise ValueError(f"{shown} names the classes {', '.join(labels)}, but {told}")
        self.labels = labels

    def videos(self) -> Iterator[Video]:
        if not self.sequences:
            yield self._single_video()
        for sequence in self.sequences:
            yield self._sequence(sequence)

    def _boxes(self, path: Path, mot20: bool = False) -> Iterator[Box]:
        classes = None if self.labels is None else len(self.labels)
        return read_mot(path, self.tree.name(path), self.problems, classes, mot20=mot20)

    def _single_video(self) -> Video:
        if self.options.split:
            raise ValueError(f"split={list(self.options.split)}: a single video has none; use splits.NAME=[first,last]")
        if self.options.video is not None:
            path = self.tree.require(self.options.video, "the video")
        else:
            videos = list(self.tree.files(self.tree.root, *VIDEO_SUFFIXES))
            if len(videos) != 1:
                names = ", ".join(item.name for item in videos) or "none"
                raise ValueError(
                    f"source={self.tree.root} must hold one video beside gt.txt, or name it: video=...; found {names}"
                )
            path = videos[0]
        truth = self.tree.require(self.options.annotations or "gt.txt", "the ground truth")
        return Video(path.stem, *video_size(path), self._boxes(truth), self.tree.name(truth), path=path, first=1)

    def _find_sequences(self) -> list[_Sequence]:
        root = self.tree.root
        if _is_sequence(root):
            sequences = [_Sequence(root.resolve().name, "", root)]
        else:
            sequences = []
            for folder in self.tree.folders(root):
                split = "" if _is_sequence(folder) else folder.name
                held = self.tree.folders(folder) if split else [folder]
                sequences += [_Sequence(inner.name, split, inner) for inner in held if _is_sequence(inner)]
        if not sequences:
            raise FileNotFoundError(
                f"source={root} holds no MOT sequence: neither gt.txt with a video nor folders with seqinfo.ini or img1"
            )
        if self.options.split:
            chosen = self.choose_splits(sorted({sequence.split for sequence in sequences}))
            sequences = [sequence for sequence in sequences if sequence.split in chosen]
        return self._one_per_detector(sequences)

    def _one_per_detector(self, sequences: list[_Sequence]) -> list[_Sequence]:
        groups: dict[tuple[str, str], list[_Sequence]] = defaultdict(list)
        for sequence in sequences:
            groups[sequence.split, _DETECTOR.sub("", sequence.name)].append(sequence)
        repeated = len(sequences) - len(groups)
        if repeated:
            self.problems.note("MOT17 sequences left out: repeated for another detector", repeated)
        return [
            min(group, key=lambda item: _DETECTORS.index(item.name.rpartition("-")[2])) if len(group) > 1 else group[0]
            for group in groups.values()
        ]

    def _sequence(self, sequence: _Sequence) -> Video:
        described = (sequence.folder / "seqinfo.ini").is_file()
        shown = self.tree.name(sequence.folder / "seqinfo.ini" if described else sequence.folder)
        info = _read_seqinfo(sequence.folder / "seqinfo.ini", shown) if described else {}
        images = self.tree.numbered_images(
            self.tree.require(self.tree.name(sequence.folder / info.get("imDir", "img1")), "the frames")
        )
        length = _positive(info, "seqLength", shown) if described else max(images, default=1)
        if sorted(images) != list(range(1, length + 1)):
            missing = next((number for number in range(1, length + 1) if number not in images), None)
            reason = f"frame {missing} is missing" if missing else f"{len(images)} frame files"
            told = f"seqLength={length}" if described else f"the last frame is {length}"
            raise MalformedInputError(f"{shown}: {told}, but {reason} in {info.get('imDir', 'img1')}")
        if "imWidth" in info and "imHeight" in info:
            width, height = _positive(info, "imWidth", shown), _positive(info, "imHeight", shown)
        else:
            width, height = image_size(images[1], self.tree.name(images[1]))
        truth = sequence.folder / "gt" / "gt.txt"
        # The hidden test sets come without ground truth; anywhere else its absence is a mistake.
        hidden = sequence.split == "test" and not truth.exists()
        truth = truth if hidden else self.tree.require(self.tree.name(truth), "the ground truth")
        boxes = () if hidden else self._boxes(truth, mot20=sequence.name.startswith("MOT20"))
        records = [Image(number, images[number]) for number in range(1, length + 1)]
        size, shown = (width, height), self.tree.name(truth)
        return Video(sequence.name, *size, length, boxes, shown, records, first=1, split=sequence.split)


def _is_sequence(folder: Path) -> bool:
    return (folder / "seqinfo.ini").is_file() or (folder / "img1").is_dir()


def _read_seqinfo(path: Path, shown: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig"))
    except (configparser.Error, UnicodeDecodeError) as error:
        raise MalformedInputError(f"{shown}: {' '.join(str(error).split())}") from None
    if "Sequence" not in parser:
        raise MalformedInputError(f"{shown}: no section [Sequence]")
    return parser["Sequence"]


def _positive(info: Mapping[str, str], key: str, shown: str) -> int:
    text = info.get(key)
    if text is None or not text.strip().isdigit() or int(text) < 1:
        raise MalformedInputError(f"{shown}: {key}={text} must be a positive whole number")
    return int(text)


def read_mot(
    path: Path, shown: str, problems: Problems, classes: int | None = None, *, mot20: bool = False
) -> Iterator[Box]:
    """Boxes in the file's order, with frames from 1.

    classes: number of the user's own classes, which the eighth column counts from 1 (without it, all are the first);
        None: it has MOT17's classes, and a row of ten columns is MOT15's, which has none
    mot20: non-motorised vehicles are distractors, too

    Raises:
        MalformedInputError: the file is empty or (strict) a row is malformed.
    """
    rows = read_rows(path, shown)
    first = next(rows, None)
    if first is None:
        raise MalformedInputError(f"{shown}: the file is empty")
    parse = partial(_challenge_box, problems, mot20) if classes is None else partial(_own_box, classes)
    yield from problems.each(shown, itertools.chain([first], rows), parse)


def _box(line: int, row: Row, minimum: int, category: int = 1, ignore: bool = False) -> Box:
    row.require(minimum)
    frame, track = row.whole(0, "frame"), row.whole(1, "id")
    xywh = row.numbers(2, "x", "y", "w", "h")
    ignore = ignore or (len(row) > 6 and row.numbers(6, "conf") == (0,))
    return Box(frame, category, xywh, track, ignore, line)


def _own_box(classes: int, line: int, row: Row) -> Box:
    category = row.whole(7, "class") if len(row) > 7 else -1
    if category >= 0 and not 1 <= category <= classes:
        raise MalformedField(f"class {category} is outside 1..{classes}: so many classes have a name")
    return _box(line, row, 6, max(category, 1))


def _challenge_box(problems: Problems, mot20: bool, line: int, row: Row) -> Box | None:
    category = row.whole(7, "class") if len(row) in (8, 9) else PEDESTRIAN
    ignored = category in DISTRACTORS or (mot20 and category == _MOT20_NON_MOTORIZED)
    if not ignored and category in OTHERS:
        problems.note(f"rows left out: class {category} ({OTHERS[category]})")
        return None
    if not ignored and category != PEDESTRIAN:
        raise MalformedField(f"class {category} is none of MOTChallenge's 1..{max(OTHERS)}")
    return _box(line, row, 7, PEDESTRIAN, ignored)
