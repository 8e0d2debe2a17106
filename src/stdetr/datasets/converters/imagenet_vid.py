"""ImageNet VID and DET in the ILSVRC2015 layout (Russakovsky et al., 2015).

Lists are used as they are: ``VID_train_15frames.txt`` has ``path id frame length``, and ``frame`` is the number in the
file name; it is not shifted by one.  Boxes have w = xmax - xmin without +1.  Frames keep the order of the list and
objects that of the XML file, which the motion ground truth of FGFA relies on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from xml.etree.ElementTree import Element as Node

from stdetr.datasets.converters.annotation_files import choose_splits
from stdetr.datasets.converters.imagenet_lists import ImageNetLists, Listed
from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, number, whole
from stdetr.datasets.converters.records import NO_TRACK, Box, Category, Frame, Reader, Video
from stdetr.datasets.converters.xml_elements import iter_elements

# WordNet id and name, in the order in which VID numbers its classes from 1.
CLASSES = (
    ("n02691156", "airplane"),
    ("n02419796", "antelope"),
    ("n02131653", "bear"),
    ("n02834778", "bicycle"),
    ("n01503061", "bird"),
    ("n02924116", "bus"),
    ("n02958343", "car"),
    ("n02402425", "cattle"),
    ("n02084071", "dog"),
    ("n02121808", "domestic_cat"),
    ("n02503517", "elephant"),
    ("n02118333", "fox"),
    ("n02510455", "giant_panda"),
    ("n02342885", "hamster"),
    ("n02374451", "horse"),
    ("n02129165", "lion"),
    ("n01674464", "lizard"),
    ("n02484322", "monkey"),
    ("n03790512", "motorcycle"),
    ("n02324045", "rabbit"),
    ("n02509815", "red_panda"),
    ("n02411705", "sheep"),
    ("n01726692", "snake"),
    ("n02355227", "squirrel"),
    ("n02129604", "tiger"),
    ("n04468005", "train"),
    ("n01662784", "turtle"),
    ("n04530566", "watercraft"),
    ("n02062744", "whale"),
    ("n02391049", "zebra"),
)
_IDS = {wordnet: number for number, (wordnet, _) in enumerate(CLASSES, start=1)}


@dataclass(frozen=True)
class _Parsed:
    width: int
    height: int
    boxes: tuple[Box, ...]


class ImageNetVidReader(Reader):
    """``Data/VID``, ``Annotations/VID``, the same for ``DET``, and the lists in ``ImageSets`` or ``Lists``.

    ``frames=all`` converts every frame of the training videos and marks the listed ones (``is_vid_train_frame``);
    ``frames=listed`` only those.  ``det`` adds the stills of ``DET_train_30classes.txt`` as one-frame videos to train.
    """

    accepted = frozenset({"split", "frames", "det", "check_media"})

    def prepare(self) -> None:
        tree, options = self.tree, self.options
        base = "" if (tree.root / "Annotations").is_dir() else "ILSVRC2015/"
        self.annotations = tree.require(f"{base}Annotations", "ILSVRC annotations")
        self.data = tree.join(f"{base}Data")
        self.lists = ImageNetLists(tree, base, self.problems)
        held = {
            split: self.annotations / "VID" / split
            for split in ("train", "val")
            if (self.annotations / "VID" / split).is_dir()
        }
        if not held:
            raise FileNotFoundError(f"source={tree.root} has neither {base}Annotations/VID/train nor .../val")
        self.videos_listed = [
            video for split in choose_splits(held, options) for video in self.lists.videos(split, held[split])
        ]
        if options.frames == "listed" and not any(video.marked for video in self.videos_listed):
            raise FileNotFoundError(f"source={tree.root}: frames=listed needs VID_train_15frames.txt in ImageSets")
        train = "train" in choose_splits(held, options)
        self.stills = self.lists.stills() if options.det and train else []
        self.total = len(self.videos_listed) + len(self.stills)

    def categories(self) -> list[Category]:
        return [Category(_IDS[wordnet], name, {"encode_name": wordnet}) for wordnet, name in CLASSES]

    def videos(self) -> Iterator[Video]:
        for listed in self.videos_listed:
            yield from self._video(listed)
        for name in self.stills:
            yield from self._still(name)

    def _video(self, listed: Listed) -> Iterator[Video]:
        numbers = range(listed.length)
        if self.options.frames == "listed" and listed.split == "train":
            numbers = sorted(listed.marked)
        frames = self._frames(listed, iter(numbers))
        first = next(frames, None)
        if first is None:
            self.problems.note("videos left out: no frame")
            return
        width, height = first.width, first.height
        assert width is not None
        assert height is not None
        extra = {"vid_train_frames": sorted(listed.marked)} if listed.marked else {}
        chained = itertools.chain([first], frames)
        shown = self.tree.name(self.annotations / "VID" / listed.path)
        yield Video(listed.path, width, height, listed.length, chained, shown, split=listed.split, extra=extra)

    def _frames(self, listed: Listed, numbers: Iterator[int]) -> Iterator[Frame]:
        for index in numbers:
            stem = f"VID/{listed.path}/{index:06d}"
            parsed = self._parse(stem)
            if parsed is None:
                continue
            extra = {"is_vid_train_frame": index in listed.marked} if listed.marked else {}
            path = self.data / f"{stem}.JPEG"
            yield Frame(index, index, parsed.boxes, path, parsed.width, parsed.height, extra=extra)

    def _still(self, name: str) -> Iterator[Video]:
        stem = f"DET/{name}"
        parsed = self._parse(stem)
        if parsed is None:
            return
        numbered = tuple(replace(box, instance_id=place) for place, box in enumerate(parsed.boxes, start=1))
        extra = {"is_vid_train_frame": True}
        frame = Frame(0, 0, numbered, self.data / f"{stem}.JPEG", extra=extra)
        shown = self.tree.name(self.annotations / f"{stem}.xml")
        yield Video(stem, parsed.width, parsed.height, 1, (frame,), shown, split="train", extra={"still": True})

    def _parse(self, stem: str) -> _Parsed | None:
        """The XML file of a frame or still; None when it is malformed and skipped."""
        shown = self.tree.name(self.annotations / f"{stem}.xml")
        path = self.tree.join(shown)
        if not path.is_file():
            self.problems.add(shown, 0, "annotation file is missing")
            return None
        image = self.data / f"{stem}.JPEG"
        if self.options.check_media and not image.is_file():
            self.problems.add(shown, 0, f"frame {self.tree.name(image)} is missing")
            return None
        size: tuple[int, int] | None = None
        boxes: list[Box] = []
        try:
            for node, line in iter_elements(path, shown, frozenset({"size", "object"})):
                if node.tag == "size":
                    size = self.problems.attempt(shown, line, _size, node) or size
                else:
                    boxes += self.problems.attempt(shown, line, self._object, node, line) or []
            if size is None:
                raise MalformedInputError(f"{shown}: no <size>")
        except MalformedInputError as error:
            if self.problems.strict:
                raise
            self.problems.add(shown, 0, str(error).removeprefix(f"{shown}:").strip())
            return None
        return _Parsed(*size, tuple(boxes))

    def _object(self, node: Node, line: int) -> list[Box]:
        wordnet = (node.findtext("name") or "").strip()
        if wordnet not in _IDS:
            self.problems.note("objects left out: class outside VID's 30")
            return []
        corners = node.find("bndbox")
        if corners is None:
            raise MalformedField("object without bndbox")
        sides = ("xmin", "ymin", "xmax", "ymax")
        left, top, right, bottom = (number(corners.findtext(side), f"bndbox/{side}") for side in sides)
        track = NO_TRACK if node.find("trackid") is None else whole(node.findtext("trackid"), "trackid")
        extra = {key: whole(node.findtext(key), key) for key in ("occluded", "generated") if node.find(key) is not None}
        return [Box(_IDS[wordnet], (left, top, right - left, bottom - top), track, record=line, extra=extra)]


def _size(node: Node) -> tuple[int, int]:
    return whole(node.findtext("width"), "size/width"), whole(node.findtext("height"), "size/height")
