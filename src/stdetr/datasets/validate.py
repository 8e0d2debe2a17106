"""``stdetr data action=validate``: every violation of the CocoVID contract, with file and record.

Memory holds the columns of the file, about 250 bytes per annotation (see ``data.coco_vid_schema``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stdetr.data.coco_vid_rules import faults
from stdetr.data.coco_vid_schema import SECTIONS, CocoVidFile, leaves_folder
from stdetr.data.json_file import MalformedInputError


class Validation:
    """Checks one annotation file; iterate :meth:`violations` to its end, then read :attr:`summary`.

    root: folder that file names are relative to; default: the folder of the annotation file
    check_media: check that video and image files exist, and that videos have the stated length
    """

    def __init__(self, path: Path, root: Path | None = None, check_media: bool = True) -> None:
        self.path = path
        self.root = path.parent if root is None else root
        self.check_media = check_media
        self.counts = dict.fromkeys(SECTIONS, 0)
        self.found = 0

    def violations(self) -> Iterator[str]:
        """One line each: ``file:line: section[index] (id 7): reason``.

        Raises FileNotFoundError when there is no such annotation file.
        """
        for line in self._walk():
            self.found += 1
            yield line

    @property
    def summary(self) -> str:
        held = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        verdict = "valid" if not self.found else f"{self.found} violation{'s' if self.found > 1 else ''}"
        return f"{self.path}: {verdict} ({held})"

    def _walk(self) -> Iterator[str]:
        try:
            file = CocoVidFile(self.path)
        except MalformedInputError as error:
            yield str(error)
            return
        self.counts = {name: len(table.records) for name, table in file.tables.items()}
        for fault in faults(file):
            yield fault.line
        if self.check_media:
            yield from self._media(file)

    def _media(self, file: CocoVidFile) -> Iterator[str]:
        for section in ("videos", "images"):
            table = file.tables[section]
            for row, name in enumerate(table["file_name"]):
                if not name or leaves_folder(name):
                    continue
                place = file.place(section, int(table.numbers[row])) + ": "
                if not (self.root / name).is_file():
                    yield f"{place}file_name {name!r}: there is no such file below {self.root}"
                elif section == "videos":
                    size = (table["width"][row], table["height"][row])
                    yield from (place + reason for reason in self._video(name, size, table["length"][row]))

    def _video(self, name: str, size: tuple[int, int], length: int) -> Iterator[str]:
        from stdetr.video.open import open_source

        try:
            source = open_source(self.root / name)
        except ValueError as error:
            yield f"file_name {name!r} cannot be decoded: {error}"
            return
        height, width = source.size
        if (width, height) != size:
            yield f"is {size[0]}x{size[1]} here, but {width}x{height} in {name!r}"
        if len(source) != length:
            yield f"length is {length} here, but {name!r} has {len(source)} frames"
        source.close()
