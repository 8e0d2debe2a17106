"""The commonly used frame lists for ImageNet VID (from FGFA, Zhu et al., 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stdetr.datasets.converters.problems import MalformedInputError, Problems
from stdetr.datasets.converters.source_tree import SourceTree

_FOLDERS = ("ImageSets", "ImageSets/VID", "Lists")
_FILES = {"train": "VID_train_15frames.txt", "val": "VID_val_videos.txt"}
_STILLS = "DET_train_30classes.txt"


@dataclass
class Listed:
    """One video of a list: its path below ``Data/VID``, its number of frames, and the frames that the list names."""

    path: str
    split: str
    length: int
    marked: set[int] = field(default_factory=set)


class ImageNetLists:
    """Reads the lists; where one is missing, the annotation folders are walked instead."""

    def __init__(self, tree: SourceTree, base: str, problems: Problems) -> None:
        self.tree, self.base, self.problems = tree, base, problems

    def _find(self, name: str) -> Path | None:
        return self.tree.first_existing(tuple(f"{self.base}{folder}/{name}" for folder in _FOLDERS))

    def videos(self, split: str, folder: Path) -> list[Listed]:
        """Videos of a split in the list's order."""
        path = self._find(_FILES[split])
        if path is None:
            self.problems.note(f"list missing ({_FILES[split]}): all of Annotations/VID/{split} taken")
            return self._walk(split, folder, folder.parent)
        videos: dict[str, Listed] = {}
        shown = self.tree.name(path)
        for line, cells in _lines(path, shown):
            if len(cells) != 4 or not all(cell.isdigit() for cell in cells[1:]):
                self.problems.add(shown, line, f"{' '.join(cells)!r} is not 'path id frame length'")
                continue
            self.tree.join(f"{self.base}Data/VID/{cells[0]}", shown, line)
            frame, length = int(cells[2]), int(cells[3])
            video = videos.setdefault(cells[0], Listed(cells[0], split, length))
            if video.length != length:
                self.problems.add(shown, line, f"length is {length} here, and {video.length} before")
            elif split == "train" and frame >= length:
                self.problems.add(shown, line, f"frame {frame} is outside 0..{length - 1}")
            elif split == "train":
                video.marked.add(frame)
        if not videos:
            raise MalformedInputError(f"{shown}: the list is empty")
        return list(videos.values())

    def _walk(self, split: str, folder: Path, top: Path) -> list[Listed]:
        """Folders that hold XML files, at any depth: training videos lie one level deeper than validation videos."""
        videos = []
        for below in self.tree.folders(folder):
            length = sum(1 for _ in self.tree.files(below, frozenset({".xml"})))
            if length:
                videos.append(Listed(below.relative_to(top).as_posix(), split, length))
            else:
                videos += self._walk(split, below, top)
        return videos

    def stills(self) -> list[str]:
        """Path below ``Data/DET``, without suffix, of each of the 53,639 DET stills; none without the list."""
        path = self._find(_STILLS)
        if path is None:
            self.problems.note(f"list missing ({_STILLS}): no DET stills (det=false omits them on purpose)")
            return []
        shown, stills = self.tree.name(path), []
        for line, cells in _lines(path, shown):
            if len(cells) not in (1, 2):
                self.problems.add(shown, line, f"{' '.join(cells)!r} is not 'path id'")
                continue
            self.tree.join(f"{self.base}Data/DET/{cells[0]}", shown, line)
            stills.append(cells[0])
        return stills


def _lines(path: Path, shown: str) -> Iterator[tuple[int, list[str]]]:
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                cells = line.split()
                if cells:
                    yield number, cells
    except UnicodeDecodeError as error:
        raise MalformedInputError(f"{shown}: not a text file ({error.reason})") from None
