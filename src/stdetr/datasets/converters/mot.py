"""MOTChallenge text: MOT15, MOT16, MOT17, MOT20, DanceTrack, or one video with its ``gt.txt``.

A row is ``frame,id,x,y,w,h,conf[,class,visibility]`` or, in MOT15, ``frame,id,x,y,w,h,conf,X,Y,Z``; ``frame`` counts
from 1.  Rules follow TrackEval's ``mot_challenge_2d_box`` (Luiten and Hoffhues, 2020): pedestrians are the class;
people on vehicles, static people, distractors and reflections are ignore regions; other classes are left out.
"""

from __future__ import annotations

import configparser
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stdetr.datasets.converters.annotation_files import choose_splits
from stdetr.datasets.converters.media import image_size, video_size
from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, Problems
from stdetr.datasets.converters.records import Box, Category, Frame, Reader, Video
from stdetr.datasets.converters.source_tree import VIDEO_SUFFIXES
from stdetr.datasets.converters.tables import Row, read_rows

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


@dataclass(frozen=True)
class _Sequence:
    name: str
    split: str
    folder: Path


class MotReader(Reader):
    """Folders with ``seqinfo.ini``, ``gt/gt.txt`` and ``img1/``, in the source or in its ``train``, ``val``, ``test``;
    or a video file with ``gt.txt`` beside it (``video=``, ``annotations=`` name others).  MOT15's archive has no
    ``seqinfo.ini``: there, the images are counted.

    ``classes=[name]`` names the one class (default ``person``).  Rows with conf = 0 become ignore regions.
    MOT17 repeats each sequence for three public detectors with equal ground truth: one of them is kept.
    """

    accepted = frozenset({"classes", "video", "annotations", "split"})

    def prepare(self) -> None:
        tree, options = self.tree, self.options
        if len(options.classes) > 1:
            raise ValueError(f"classes={list(options.classes)}: format=mot has one class; give its name only")
        single = options.video is not None or (tree.root / "gt.txt").is_file()
        self.sequences = [] if single else self._find_sequences()
        self.total = len(self.sequences) or 1

    def categories(self) -> list[Category]:
        return [Category(1, self.options.classes[0] if self.options.classes else "person")]

    def videos(self) -> Iterator[Video]:
        if not self.sequences:
            yield self._single_video()
        for sequence in self.sequences:
            yield self._sequence(sequence)

    def _single_video(self) -> Video:
        if self.options.split:
            raise ValueError(f"split={list(self.options.split)}: a single video has none; use splits.NAME=[first,last]")
        if self.options.video is not None:
            path = self.tree.require(self.options.video, "the video")
        else:
            videos = list(self.tree.files(self.tree.root, VIDEO_SUFFIXES))
            if len(videos) != 1:
                names = ", ".join(item.name for item in videos) or "none"
                raise ValueError(
                    f"source={self.tree.root} must hold one video beside gt.txt, or name it: video=...; found {names}"
                )
            path = videos[0]
        annotations = self.tree.require(self.options.annotations or "gt.txt", "the ground truth")
        width, height, length = video_size(path)
        shown = self.tree.name(annotations)
        boxes = read_mot(annotations, shown, length, self.problems)
        frames = (Frame(number - 1, number, tuple(boxes.get(number, ()))) for number in range(1, length + 1))
        return Video(path.stem, width, height, length, frames, shown, path=path)

    def _find_sequences(self) -> list[_Sequence]:
        root = self.tree.root
        if _is_sequence(root):
            sequences = [_Sequence(root.resolve().name, "", root)]
        else:
            sequences = []
            for folder in self.tree.folders(root):
                if _is_sequence(folder):
                    sequences.append(_Sequence(folder.name, "", folder))
                    continue
                sequences += [
                    _Sequence(inner.name, folder.name, inner)
                    for inner in self.tree.folders(folder)
                    if _is_sequence(inner)
                ]
        if not sequences:
            raise FileNotFoundError(
                f"source={root} holds no MOT sequence: neither gt.txt with a video nor folders with seqinfo.ini or img1"
            )
        if self.options.split:
            chosen = choose_splits(dict.fromkeys(sorted({sequence.split for sequence in sequences})), self.options)
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
        boxes: dict[int, list[Box]] = {}
        if truth.exists() or sequence.split != "test":
            # The hidden test sets come without ground truth; anywhere else its absence is a mistake.
            truth = self.tree.require(self.tree.name(truth), "the ground truth")
            boxes = read_mot(
                truth, self.tree.name(truth), length, self.problems, mot20=sequence.name.startswith("MOT20")
            )
        frames = (
            Frame(number - 1, number, tuple(boxes.get(number, ())), images[number]) for number in range(1, length + 1)
        )
        return Video(sequence.name, width, height, length, frames, self.tree.name(truth), split=sequence.split)


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
    path: Path, shown: str, length: int, problems: Problems, mot20: bool = False, keep_classes: bool = False
) -> dict[int, list[Box]]:
    """Boxes by 1-based frame number, in the file's order.

    length: frames of the video; a row beyond it is malformed
    mot20: non-motorised vehicles are distractors, too
    keep_classes: the class column is the category id of a user's own classes, not one of MOT17's

    Raises:
        MalformedInputError: the file is empty or (strict) a row is malformed.
    """
    boxes: dict[int, list[Box]] = defaultdict(list)
    rows = 0
    for row in read_rows(path, shown):
        rows += 1
        frame, box = problems.attempt(shown, row.line, _parse, row, length, mot20, keep_classes, problems) or (0, None)
        if box is not None:
            boxes[frame].append(box)
    if not rows:
        raise MalformedInputError(f"{shown}: the file is empty")
    return boxes


def _parse(row: Row, length: int, mot20: bool, keep_classes: bool, problems: Problems) -> tuple[int, Box | None]:
    row.require(6 if keep_classes else 7)
    frame, track = row.integer(0, "frame"), row.integer(1, "id")
    x, y, w, h = (row.number(column, name) for column, name in enumerate(("x", "y", "w", "h"), start=2))
    ignore = len(row.cells) > 6 and row.number(6, "conf") == 0
    category = PEDESTRIAN
    # Ten columns are MOT15's world coordinates, not a class.
    if len(row.cells) in (8, 9):
        category = row.integer(7, "class")
        if keep_classes:
            category = category if category >= 0 else PEDESTRIAN
        elif category in DISTRACTORS or (mot20 and category == _MOT20_NON_MOTORIZED):
            ignore = True
        elif category in OTHERS:
            problems.note(f"rows left out: class {category} ({OTHERS[category]})")
            return frame, None
        elif category != PEDESTRIAN:
            raise MalformedField(f"class {category} is none of MOTChallenge's 1..{max(OTHERS)}")
    if not 1 <= frame <= length:
        raise MalformedField(f"frame {frame} is outside 1..{length} (frames count from 1)")
    return frame, Box(category if keep_classes else PEDESTRIAN, (x, y, w, h), track, ignore, row.line)
