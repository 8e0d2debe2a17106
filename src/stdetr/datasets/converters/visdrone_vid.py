"""VisDrone-VID (and -MOT): one text file per sequence, seen from drones (Zhu et al., 2021).

A row is ``frame,target_id,left,top,width,height,score,category,truncation,occlusion`` with frames from 1.  Score 0
marks an ignore region of its class; category 0 (ignored region) and 11 (others) are ignore regions for every class.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stdetr.datasets.converters.problems import MalformedField, MalformedInputError
from stdetr.datasets.converters.records import Box, Image, Reader, Video
from stdetr.datasets.converters.source_tree import image_size
from stdetr.datasets.converters.text_files import Row, read_rows

_EVERY_CLASS = (0, 11)


class VisdroneVidReader(Reader):
    """``VisDrone2019-VID-<split>/{sequences/<name>/0000001.jpg, annotations/<name>.txt}``, or one such folder."""

    accepted = frozenset({"split", "frame_size", "check_media"})
    names = (
        "pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor",
    )  # fmt: skip

    def prepare(self) -> None:
        tree, folders = self.tree, dict[str, Path]()
        roots = [tree.root] if (tree.root / "annotations").is_dir() else list(tree.folders(tree.root))
        for folder in roots:
            if (folder / "annotations").is_dir() and (folder / "sequences").is_dir():
                name = folder.resolve().name
                folders[name.rpartition("VID-")[2].rpartition("MOT-")[2] if "VisDrone" in name else name] = folder
        if not folders:
            raise FileNotFoundError(f"source={tree.root} has no folder with annotations/ and sequences/ (VisDrone-VID)")
        self.files = [
            (split if len(roots) > 1 or "VisDrone" in folders[split].resolve().name else "", folders[split], path)
            for split in self.choose_splits(folders)
            for path in tree.files(folders[split] / "annotations", ".txt")
        ]
        self.total = len(self.files)

    def videos(self) -> Iterator[Video]:
        for split, folder, path in self.files:
            shown = self.tree.name(path)
            frames_folder = self.tree.require(self.tree.name(folder / "sequences" / path.stem), "the frames")
            images = self.tree.numbered_images(frames_folder)
            if sorted(images) != list(range(1, len(images) + 1)) or not images:
                where = self.tree.name(frames_folder)
                raise MalformedInputError(f"{where}: frames must be numbered 1, 2, ... without gap")
            boxes = self.problems.each(shown, read_rows(path, shown), self._box)
            size = self.frame_size(images[1]) or image_size(images[1], self.tree.name(images[1]))
            records = [Image(at, images[at]) for at in sorted(images)]
            yield Video(path.stem, *size, len(images), boxes, shown, records, first=1, split=split)

    def _box(self, line: int, row: Row) -> Box:
        row.require(10)
        frame, track = row.whole(0, "frame_index"), row.whole(1, "target_id")
        xywh = row.numbers(2, "bbox_left", "bbox_top", "bbox_width", "bbox_height")
        score, category = row.whole(6, "score"), row.whole(7, "object_category")
        extra = {"truncation": row.whole(8, "truncation"), "occlusion": row.whole(9, "occlusion")}
        if score not in (0, 1):
            raise MalformedField(f"score (column 7) is {score}; ground truth has 0 or 1")
        if not 0 <= category <= len(self.names) + 1:
            raise MalformedField(f"object_category (column 8) is {category}, outside 0..11")
        if category in _EVERY_CLASS:
            return Box(frame, None, xywh, ignore=True, record=line)
        return Box(frame, category, xywh, track, score == 0, line, extra=extra)
