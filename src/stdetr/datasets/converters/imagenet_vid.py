"""ImageNet VID and DET in the ILSVRC2015 layout (Russakovsky et al., 2015).

The commonly used frame lists (from FGFA, Zhu et al., 2017) are used as they are: ``VID_train_15frames.txt`` has ``path
id frame length``, and ``frame`` is the number in the file name; it is not shifted by one.  Boxes have w = xmax - xmin
without +1.  Frames keep the order of the list and objects that of the XML file, which the motion ground truth of FGFA
relies on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, number, whole
from stdetr.datasets.converters.records import NO_TRACK, Box, Category, Image, Reader, Video
from stdetr.datasets.converters.text_files import iter_elements, read_lines

# WordNet id and name, in the order in which VID numbers its classes from 1.
_CLASSES = """
    n02691156 airplane, n02419796 antelope, n02131653 bear, n02834778 bicycle,
    n01503061 bird, n02924116 bus, n02958343 car, n02402425 cattle,
    n02084071 dog, n02121808 domestic_cat, n02503517 elephant, n02118333 fox,
    n02510455 giant_panda, n02342885 hamster, n02374451 horse, n02129165 lion,
    n01674464 lizard, n02484322 monkey, n03790512 motorcycle, n02324045 rabbit,
    n02509815 red_panda, n02411705 sheep, n01726692 snake, n02355227 squirrel,
    n02129604 tiger, n04468005 train, n01662784 turtle, n04530566 watercraft,
    n02062744 whale, n02391049 zebra
"""
CLASSES = tuple((wordnet, name) for wordnet, name in (entry.split() for entry in _CLASSES.split(",")))
_IDS = {wordnet: number for number, (wordnet, _) in enumerate(CLASSES, start=1)}

_LISTS = ("ImageSets", "ImageSets/VID", "Lists")
_VIDEOS = {"train": "VID_train_15frames.txt", "val": "VID_val_videos.txt"}
_STILLS = "DET_train_30classes.txt"


@dataclass
class _Listed:
    """One video of a list: its path below ``Data/VID``, its number of frames, and the frames that the list names."""

    path: str
    split: str
    length: int
    marked: set[int] = field(default_factory=set)


class _Annotated(NamedTuple):
    """The content of one XML file."""

    size: tuple[int, int]
    boxes: list[Box]


class ImageNetVidReader(Reader):
    """``Data/VID``, ``Annotations/VID``, the same for ``DET``, and the lists in ``ImageSets`` or ``Lists``.

    ``frames=all`` converts every frame of the training videos and marks the listed ones (``is_vid_train_frame``);
    ``frames=listed`` only those.  ``det`` adds the stills of ``DET_train_30classes.txt`` as one-frame videos to train.
    Where a list is missing, the annotation folders are walked instead.
    """

    accepted = frozenset({"split", "frames", "det", "check_media"})

    def prepare(self) -> None:
        tree, options = self.tree, self.options
        self.base = "" if (tree.root / "Annotations").is_dir() else "ILSVRC2015/"
        self.annotations = tree.require(f"{self.base}Annotations", "ILSVRC annotations")
        self.data = tree.join(f"{self.base}Data")
        folders = {split: self.annotations / "VID" / split for split in _VIDEOS}
        held = {split: folder for split, folder in folders.items() if folder.is_dir()}
        if not held:
            raise FileNotFoundError(f"source={tree.root} has neither {self.base}Annotations/VID/train nor .../val")
        chosen = self.choose_splits(held)
        self.listed = [video for split in chosen for video in self._listed(split, held[split])]
        if options.frames == "listed" and not any(video.marked for video in self.listed):
            raise FileNotFoundError(f"source={tree.root}: frames=listed needs VID_train_15frames.txt in ImageSets")
        self.stills = self._listed_stills() if options.det and "train" in chosen else []
        self.total = len(self.listed) + len(self.stills)

    def _read_list(self, name: str) -> tuple[str, Iterator[tuple[int, list[str]]]] | None:
        """The name of a list in messages, and its lines as (number, cells); None where it is missing."""
        path = self.tree.first_existing(*(f"{self.base}{folder}/{name}" for folder in _LISTS))
        if path is None:
            return None
        shown = self.tree.name(path)
        return shown, ((line, text.split()) for line, text in read_lines(path, shown) if text.strip())

    def _listed(self, split: str, folder: Path) -> list[_Listed]:
        """Videos of a split in the list's order."""
        listed = self._read_list(_VIDEOS[split])
        if listed is None:
            self.problems.note(f"list missing ({_VIDEOS[split]}): all of Annotations/VID/{split} taken")
            return self._walk(split, folder, folder.parent)
        videos: dict[str, _Listed] = {}
        shown, lines = listed
        for line, cells in lines:
            if len(cells) != 4 or not all(cell.isdecimal() for cell in cells[1:]):
                self.problems.add(shown, line, f"{' '.join(cells)!r} is not 'path id frame length'")
                continue
            self.tree.join(f"{self.base}Data/VID/{cells[0]}", shown, line)
            frame, length = int(cells[2]), int(cells[3])
            video = videos.setdefault(cells[0], _Listed(cells[0], split, length))
            if video.length != length:
                self.problems.add(shown, line, f"length is {length} here, and {video.length} before")
            elif split == "train" and frame >= length:
                self.problems.add(shown, line, f"frame {frame} is outside 0..{length - 1}")
            elif split == "train":
                video.marked.add(frame)
        if not videos:
            raise MalformedInputError(f"{shown}: the list is empty")
        return list(videos.values())

    def _walk(self, split: str, folder: Path, top: Path) -> list[_Listed]:
        """Folders that hold XML files, at any depth: training videos lie one level deeper than validation videos."""
        videos = []
        for below in self.tree.folders(folder):
            length = sum(1 for _ in self.tree.files(below, ".xml"))
            if length:
                videos.append(_Listed(below.relative_to(top).as_posix(), split, length))
            else:
                videos += self._walk(split, below, top)
        return videos

    def _listed_stills(self) -> list[str]:
        """Path below ``Data/DET``, without suffix, of each of the 53,639 DET stills; none without the list."""
        listed = self._read_list(_STILLS)
        if listed is None:
            self.problems.note(f"list missing ({_STILLS}): no DET stills (det=false omits them on purpose)")
            return []
        stills, (shown, lines) = [], listed
        for line, cells in lines:
            if len(cells) not in (1, 2):
                self.problems.add(shown, line, f"{' '.join(cells)!r} is not 'path id'")
                continue
            self.tree.join(f"{self.base}Data/DET/{cells[0]}", shown, line)
            stills.append(cells[0])
        return stills

    def categories(self) -> list[Category]:
        return [Category(_IDS[wordnet], name, {"encode_name": wordnet}) for wordnet, name in CLASSES]

    def videos(self) -> Iterator[Video]:
        for listed in self.listed:
            only = listed.split == "train" and self.options.frames == "listed"
            frames = sorted(listed.marked) if only else range(listed.length)
            stems = {f"VID/{listed.path}/{frame:06d}": frame for frame in frames}
            extra = {"vid_train_frames": sorted(listed.marked)} if listed.marked else {}
            yield from self._video(listed.path, listed.split, listed.length, stems, listed.marked, extra)
        for name in self.stills:
            yield from self._video(f"DET/{name}", "train", 1, {f"DET/{name}": 0}, {0}, {"still": True})

    def _video(
        self, name: str, split: str, length: int, stems: dict[str, int], marked: set[int], extra: Mapping[str, object]
    ) -> Iterator[Video]:
        """The video whose frames have these ``stems`` below ``Annotations`` and ``Data``."""
        size: tuple[int, int] | None = None
        images, boxes = [], []
        for stem, frame in stems.items():
            annotated = self._read(stem, frame)
            if annotated is None:
                continue
            size = size or annotated.size
            if annotated.size != size:
                shown = self.tree.name(self.annotations / f"{stem}.xml")
                told = "is {}x{}, the frames before it {}x{}".format(*annotated.size, *size)
                self.problems.add(shown, 0, told)
                continue
            keys = {"is_vid_train_frame": frame in marked} if marked else {}
            images.append(Image(frame, self.data / f"{stem}.JPEG", extra=keys))
            boxes += annotated.boxes
        if size is not None:
            shown = self.tree.name(self.annotations / "VID" / name)
            if extra.get("still"):
                shown = self.tree.name(self.annotations / f"{name}.xml")
                boxes = [replace(box, instance_id=place) for place, box in enumerate(boxes, start=1)]
            yield Video(name, *size, length, boxes, shown, images, split=split, extra=extra)
        elif not extra.get("still"):
            self.problems.note("videos left out: no frame")

    def _read(self, stem: str, frame: int) -> _Annotated | None:
        """The XML file of a frame or still; None when it is malformed and skipped."""
        shown = self.tree.name(self.annotations / f"{stem}.xml")
        path, image = self.tree.join(shown), self.data / f"{stem}.JPEG"
        if not path.is_file():
            self.problems.add(shown, 0, "annotation file is missing")
            return None
        if self.options.check_media and not image.is_file():
            self.problems.add(shown, 0, f"frame {self.tree.name(image)} is missing")
            return None
        size: tuple[int, int] | None = None
        boxes: list[Box] = []
        try:
            for line, node in iter_elements(path, shown, "size", "object"):
                if node.tag == "size":
                    size = self.problems.attempt(shown, line, _size, node) or size
                else:
                    boxes += self.problems.each(shown, [(line, node)], partial(self._object, frame))
            if size is None:
                raise MalformedInputError(f"{shown}: no <size>")
        except MalformedInputError as error:
            if self.problems.strict:
                raise
            self.problems.add(shown, 0, str(error).removeprefix(f"{shown}:").strip())
            return None
        return _Annotated(size, boxes)

    def _object(self, frame: int, line: int, node: Element) -> Box | None:
        wordnet = (node.findtext("name") or "").strip()
        if wordnet not in _IDS:
            self.problems.note("objects left out: class outside VID's 30")
            return None
        corners = node.find("bndbox")
        if corners is None:
            raise MalformedField("object without bndbox")
        sides = ("xmin", "ymin", "xmax", "ymax")
        left, top, right, bottom = (number(corners.findtext(side), f"bndbox/{side}") for side in sides)
        track = NO_TRACK if node.find("trackid") is None else whole(node.findtext("trackid"), "trackid")
        extra = {key: whole(node.findtext(key), key) for key in ("occluded", "generated") if node.find(key) is not None}
        return Box(frame, _IDS[wordnet], (left, top, right - left, bottom - top), track, record=line, extra=extra)


def _size(node: Element) -> tuple[int, int]:
    return whole(node.findtext("width"), "size/width"), whole(node.findtext("height"), "size/height")
