"""The folder that a conversion reads.  Nothing outside it is opened, whatever an annotation file says."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from stdetr.data.coco_vid_schema import leaves_folder
from stdetr.datasets.converters.problems import MalformedInputError, locate
from stdetr.names import did_you_mean
from stdetr.video.open import open_source

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".ts", ".flv"})


class SourceTree:
    """A source folder with safe look-ups.

    follow_links: accept symbolic links inside the source that lead out of it (the user's own layout);
        names written in annotation files may not leave it in either case
    """

    def __init__(self, root: Path, follow_links: bool = False) -> None:
        if not root.exists():
            raise FileNotFoundError(f"source={root}: no such file or folder")
        if not root.is_dir():
            raise ValueError(f"source={root} is not a folder")
        self.root = root
        self.resolved = root.resolve()
        self.follow_links = follow_links
        self._folder_is_inside = functools.lru_cache(maxsize=4096)(self._is_inside)

    def name(self, path: Path) -> str:
        """The path relative to the source, with forward slashes: what messages and file names show."""
        return path.relative_to(self.root).as_posix()

    def join(self, relative: str, file: str = "source", record: object = 0) -> Path:
        """The path that an annotation file (``file``, ``record``) or a user names, inside the source.

        Raises:
            MalformedInputError: the name is absolute, climbs out with "..", or follows a link that leads out.
        """
        if not relative or "\x00" in relative:
            raise MalformedInputError(f"{locate(file, record)}: {relative!r} is not a file name")
        if leaves_folder(relative):
            raise MalformedInputError(f"{locate(file, record)}: path {relative!r} points outside the source; refused")
        path = self.root / relative
        self.check_inside(path, file, record)
        return path

    def check_inside(self, path: Path, file: str = "source", record: object = 0) -> None:
        """Raises MalformedInputError when ``path`` really lies outside the source (through a link)."""
        if self.follow_links:
            return
        # Resolving a path reads each of its folders; millions of frames share a few thousand of them.
        inside = self._is_inside(path) if path.is_symlink() else self._folder_is_inside(path.parent)
        if path != self.root and not inside:
            raise MalformedInputError(
                f"{locate(file, record)}: {self.name(path)} is a link that leads outside the source; refused "
                "(follow_links=true accepts your own links)"
            )

    def _is_inside(self, path: Path) -> bool:
        real = path.resolve()
        return real == self.resolved or self.resolved in real.parents

    def require(self, relative: str, what: str) -> Path:
        """An existing file or folder below the source; for a missing one the error gives the nearest name."""
        path = self.join(relative)
        if path.exists():
            return path
        folder = path.parent
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        raise FileNotFoundError(f"source={self.root} has no {relative} ({what}){did_you_mean(path.name, names)}")

    def first_existing(self, *candidates: str) -> Path | None:
        """The first of the candidate paths that exists, or None."""
        return next((path for path in map(self.join, candidates) if path.exists()), None)

    def folders(self, below: Path) -> Iterator[Path]:
        """Sub-folders in natural order, without hidden ones."""
        return self._entries(below, Path.is_dir)

    def files(self, below: Path, *suffixes: str) -> Iterator[Path]:
        """Files with one of the (lower case) suffixes directly in a folder, in natural order, without hidden ones."""
        return self._entries(below, lambda entry: entry.suffix.lower() in suffixes and entry.is_file())

    def _entries(self, below: Path, wanted: Callable[[Path], bool]) -> Iterator[Path]:
        for entry in sorted(below.iterdir(), key=lambda item: natural_key(item.name)):
            # macOS leaves ``._name`` beside ``name`` on foreign file systems.
            if not entry.name.startswith(".") and wanted(entry):
                self.check_inside(entry)
                yield entry

    def numbered_images(self, folder: Path) -> dict[int, Path]:
        """The images of a frame folder by the number at the end of their stem (``img00012.jpg`` is 12).

        Raises:
            MalformedInputError: a name without a number, or one number twice.
        """
        images: dict[int, Path] = {}
        for path in self.files(folder, *IMAGE_SUFFIXES):
            match = re.search(r"(\d+)$", path.stem)
            if match is None:
                raise MalformedInputError(f"{self.name(path)}: frame file without a number at the end of its name")
            number = int(match.group(1))
            if number in images:
                raise MalformedInputError(f"{self.name(path)}: frame {number} is also {images[number].name}")
            images[number] = path
        return images


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which ``frame10`` follows ``frame9``."""
    parts = re.split(r"(\d+)", name)
    return tuple((1, int(part), part) if part.isdigit() else (0, 0, part) for part in parts)


def image_size(path: Path, shown: str) -> tuple[int, int]:
    """(width, height) from the image's header; ``shown`` names it in the error.

    EXIF rotation is not applied: annotations and readers of these benchmarks use stored pixels.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError:
        raise MalformedInputError(f"{shown}: frame file is missing") from None
    except (UnidentifiedImageError, OSError) as error:
        raise MalformedInputError(f"{shown}: not a readable image ({error})") from None


def video_size(path: Path) -> tuple[int, int, int]:
    """(width, height, number of frames) of a video file.

    Raises ValueError when it cannot be decoded.
    """
    source = open_source(path)
    try:
        height, width = source.size
        return int(width), int(height), len(source)
    finally:
        source.close()
