"""UA-DETRAC: one XML file a sequence, traffic seen from above (Wen et al., 2020).

``<sequence>`` holds ``<ignored_region>`` with boxes that are ignored on every frame, and ``<frame num="1">`` with
``<target id>``, each with a ``<box left top width height>`` and an ``<attribute vehicle_type>``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element as Node

from stdetr.datasets.converters.annotation_files import choose_splits
from stdetr.datasets.converters.media import image_size
from stdetr.datasets.converters.options import Options
from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, Problems
from stdetr.datasets.converters.records import Box, Category, Frame, Video
from stdetr.datasets.converters.source_tree import SourceTree
from stdetr.datasets.converters.xml_stream import Element, attribute, iter_elements, whole

CLASSES = ("car", "van", "bus", "others")
_SPLITS = {
    "train": (("DETRAC-Train-Annotations-XML", "DETRAC-Train-Annotations-XML-v3"), "Insight-MVT_Annotation_Train"),
    "test": (("DETRAC-Test-Annotations-XML", "DETRAC-Test-Annotations-XML-v3"), "Insight-MVT_Annotation_Test"),
}
_ALL_FRAMES = "DETRAC-Images"


@dataclass(frozen=True)
class _Sequence:
    split: str
    file: Path
    frames: str


class UaDetracReader:
    """``DETRAC-Train-Annotations-XML/<sequence>.xml`` with frames in
    ``Insight-MVT_Annotation_Train/<sequence>/img00001.jpg``; ``Test`` likewise.  Copies that keep the frames of
    both in ``DETRAC-Images/`` are taken as well.

    Every frame of the folder gets an image record, those without vehicles as well; ignored regions hold for every
    class.
    """

    accepted = frozenset({"split", "frame_size", "check_media"})
    one_id_space = True

    def __init__(self, tree: SourceTree, options: Options, problems: Problems, work: Path) -> None:
        self.tree, self.options, self.problems = tree, options, problems
        folders: dict[str, Path] = {}
        for split, (candidates, _) in _SPLITS.items():
            folder = tree.first_existing(candidates)
            if folder is not None:
                folders[split] = folder
        if not folders:
            raise FileNotFoundError(f"source={tree.root} has no {_SPLITS['train'][0][0]} (UA-DETRAC annotations)")
        self.sequences = [
            _Sequence(split, path, f"{self._frames_of(split)}/{path.stem.removesuffix('_v3')}")
            for split in choose_splits(folders, options)
            for path in tree.files(folders[split], frozenset({".xml"}))
        ]

    def _frames_of(self, split: str) -> str:
        own = _SPLITS[split][1]
        here = self.tree.first_existing((own, _ALL_FRAMES))
        return own if here is None else here.name

    def categories(self) -> list[Category]:
        return [Category(number, name) for number, name in enumerate(CLASSES, start=1)]

    def count(self) -> int:
        return len(self.sequences)

    def videos(self) -> Iterator[Video]:
        for sequence in self.sequences:
            shown = self.tree.name(sequence.file)
            regions, targets = self._read(sequence.file, shown)
            images = self._images(sequence, targets)
            for number in sorted(targets):
                if number not in images:
                    self.problems.add(shown, 0, f"frame {number} has targets, but no image in {sequence.frames}")
            width, height = self._size(images)
            frames = (
                Frame(number - 1, number, (*targets.get(number, ()), *regions), images[number])
                for number in sorted(images)
            )
            name = sequence.frames.rpartition("/")[2]
            yield Video(name, width, height, max(images), frames, shown, split=sequence.split)

    def _images(self, sequence: _Sequence, targets: dict[int, list[Box]]) -> dict[int, Path]:
        if not self.options.check_media:
            if not targets:
                raise MalformedInputError(f"{self.tree.name(sequence.file)}: no frames")
            return {number: self.tree.join(f"{sequence.frames}/img{number:05d}.jpg") for number in targets}
        images = self.tree.numbered_images(self.tree.require(sequence.frames, "the frames"))
        if not images or min(images) < 1:
            raise MalformedInputError(f"{sequence.frames}: frames count from 1; found {min(images, default='none')}")
        return images

    def _size(self, images: dict[int, Path]) -> tuple[int, int]:
        if self.options.frame_size is not None:
            return self.options.frame_size
        if not self.options.check_media:
            return 960, 540  # every UA-DETRAC sequence
        first = images[min(images)]
        return image_size(first, self.tree.name(first))

    def _read(self, path: Path, shown: str) -> tuple[list[Box], dict[int, list[Box]]]:
        regions: list[Box] = []
        targets: dict[int, list[Box]] = {}
        for element in iter_elements(path, shown, frozenset({"ignored_region", "frame"})):
            try:
                if element.node.tag == "ignored_region":
                    boxes = element.node.findall("box")
                    regions += [Box(None, _xywh(box), ignore=True, record=element.line) for box in boxes]
                    continue
                number = whole(attribute(element.node, "num"), "frame num")
                if number < 1 or number in targets:
                    raise MalformedField(f"frame {number} is there twice" if number > 0 else f"frame num is {number}")
            except MalformedField as error:
                self.problems.add(shown, element.line, str(error))
                continue
            targets[number] = list(self._targets(element, shown))
        return regions, targets

    def _targets(self, frame: Element, shown: str) -> Iterator[Box]:
        for target in frame.node.iter("target"):
            try:
                yield _target(target, frame.line)
            except MalformedField as error:
                self.problems.add(shown, frame.line, f"target {target.get('id')}: {error}")


def _target(target: Node, line: int) -> Box:
    box, attributes = target.find("box"), target.find("attribute")
    if box is None or attributes is None:
        raise MalformedField(f"no <{'box' if box is None else 'attribute'}>")
    kind = (attributes.get("vehicle_type") or "").lower()
    if kind not in CLASSES:
        raise MalformedField(f"vehicle_type {kind!r} is none of {', '.join(CLASSES)}")
    extra = {}
    if attributes.get("truncation_ratio") is not None:
        extra["truncation"] = attribute(attributes, "truncation_ratio")
    track = whole(attribute(target, "id"), "target id")
    return Box(CLASSES.index(kind) + 1, _xywh(box), track, record=line, extra=extra)


def _xywh(box: Node) -> tuple[float, float, float, float]:
    return attribute(box, "left"), attribute(box, "top"), attribute(box, "width"), attribute(box, "height")
