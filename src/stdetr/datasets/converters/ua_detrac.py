"""UA-DETRAC: one XML file per sequence, traffic seen from above (Wen et al., 2020).

``<sequence>`` holds ``<ignored_region>`` with boxes that are ignored on every frame, and ``<frame num="1">`` with
``<target id>``, each with a ``<box left top width height>`` and an ``<attribute vehicle_type>``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, number, whole
from stdetr.datasets.converters.records import Box, Image, Reader, Video
from stdetr.datasets.converters.text_files import iter_elements

_SPLITS = {
    "train": (("DETRAC-Train-Annotations-XML", "DETRAC-Train-Annotations-XML-v3"), "Insight-MVT_Annotation_Train"),
    "test": (("DETRAC-Test-Annotations-XML", "DETRAC-Test-Annotations-XML-v3"), "Insight-MVT_Annotation_Test"),
}
_ALL_FRAMES = "DETRAC-Images"


class UaDetracReader(Reader):
    """``DETRAC-Train-Annotations-XML/<sequence>.xml`` with frames in
    ``Insight-MVT_Annotation_Train/<sequence>/img00001.jpg``; ``Test`` likewise.  Copies that keep the frames of
    both in ``DETRAC-Images/`` are taken as well.

    Every frame of the folder gets an image record, those without vehicles as well; ignored regions hold for every
    class.
    """

    accepted = frozenset({"split", "frame_size", "check_media"})
    names = ("car", "van", "bus", "others")

    def prepare(self) -> None:
        existing = {split: self.tree.first_existing(*candidates) for split, (candidates, _) in _SPLITS.items()}
        folders = {split: folder for split, folder in existing.items() if folder is not None}
        if not folders:
            raise FileNotFoundError(f"source={self.tree.root} has no {_SPLITS['train'][0][0]} (UA-DETRAC annotations)")
        self.sequences = [
            (split, path) for split in self.choose_splits(folders) for path in self.tree.files(folders[split], ".xml")
        ]
        self.total = len(self.sequences)

    def videos(self) -> Iterator[Video]:
        for split, path in self.sequences:
            shown, name, own = self.tree.name(path), path.stem.removesuffix("_v3"), _SPLITS[split][1]
            frames = self.tree.first_existing(own, _ALL_FRAMES)
            folder = f"{own if frames is None else frames.name}/{name}"
            regions, targets = self._read(path, shown)
            images = self._images(shown, folder, targets)
            for index in sorted(set(targets) - set(images)):
                self.problems.add(shown, 0, f"frame {index} has targets, but no image in {folder}")
            # Without reading the images: every UA-DETRAC sequence has this size.
            size = self.frame_size(images[min(images)]) or (960, 540)
            boxes = (box for at in images for box in (*targets.get(at, ()), *(region(at) for region in regions)))
            records = [Image(at, images[at]) for at in sorted(images)]
            yield Video(name, *size, max(images), boxes, shown, records, first=1, split=split)

    def _images(self, shown: str, folder: str, targets: dict[int, list[Box]]) -> dict[int, Path]:
        if not self.options.check_media:
            if not targets:
                raise MalformedInputError(f"{shown}: no frames")
            return {index: self.tree.join(f"{folder}/img{index:05d}.jpg") for index in targets}
        images = self.tree.numbered_images(self.tree.require(folder, "the frames"))
        if not images or min(images) < 1:
            raise MalformedInputError(f"{folder}: frames count from 1; found {min(images, default='none')}")
        return images

    def _read(self, path: Path, shown: str) -> tuple[list[partial[Box]], dict[int, list[Box]]]:
        """Ignored regions, which want their frame, and boxes by frame number."""
        regions: list[partial[Box]] = []
        targets: dict[int, list[Box]] = {}
        for line, node in iter_elements(path, shown, "ignored_region", "frame"):
            if node.tag == "ignored_region":
                for xywh in self.problems.each(shown, ((line, box) for box in node.findall("box")), _xywh):
                    regions.append(partial(Box, category_id=None, xywh=xywh, ignore=True, record=line))
                continue
            index = self.problems.attempt(shown, line, whole, node.get("num"), "frame num")
            if index is None:
                continue
            if index < 1 or index in targets:
                reason = f"frame {index} is there twice" if index > 0 else f"frame num is {index}"
                self.problems.add(shown, line, reason)
                continue
            found = ((line, target) for target in node.iter("target"))
            targets[index] = list(self.problems.each(shown, found, partial(self._target, index)))
        return regions, targets

    def _target(self, frame: int, line: int, target: Element) -> Box:
        try:
            box, attributes = target.find("box"), target.find("attribute")
            if box is None or attributes is None:
                raise MalformedField(f"no <{'box' if box is None else 'attribute'}>")
            kind = (attributes.get("vehicle_type") or "").lower()
            if kind not in self.names:
                raise MalformedField(f"vehicle_type {kind!r} is none of {', '.join(self.names)}")
            truncation = attributes.get("truncation_ratio")
            extra = {} if truncation is None else {"truncation": number(truncation, "attribute truncation_ratio")}
            track = whole(target.get("id"), "target id")
            return Box(frame, self.names.index(kind) + 1, _xywh(line, box), track, record=line, extra=extra)
        except MalformedField as error:
            raise MalformedField(f"target {target.get('id')}: {error}") from None


def _xywh(line: int, box: Element) -> tuple[float, ...]:
    return tuple(number(box.get(side), f"box {side}") for side in ("left", "top", "width", "height"))
