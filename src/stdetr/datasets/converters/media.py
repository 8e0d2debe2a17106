"""Makes the frames available to the converted annotations, and measures them."""

from __future__ import annotations

import difflib
import os
import shutil
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from stdetr.datasets.converters.problems import MalformedInputError
from stdetr.datasets.converters.source_tree import SourceTree
from stdetr.video.open import open_source

LINKS = ("auto", "copy", "hardlink", "symlink", "none")
VIDEOS = "videos"
"""Folder below the output that holds (or leads to) videos and frames."""


def check_link(link: str) -> None:
    """Raises ValueError, with the nearest valid name, when ``link`` is not a way to place files."""
    if link not in LINKS:
        close = difflib.get_close_matches(str(link), LINKS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"link={link} is not one of {', '.join(LINKS)}{hint}")


class MediaLinker:
    """Gives each video or image file its name relative to the data set's root.

    link: ``auto``      video files as hard links (copies across file systems), image folders as one symbolic link
          ``copy``, ``hardlink``, ``symlink``  each file that way
          ``none``      nothing is written; names are relative to the source, to be used with ``data.root=<source>``

    Files that are already in place are kept, so a killed conversion continues where it stopped.
    """

    def __init__(self, tree: SourceTree, output: Path, link: str) -> None:
        check_link(link)
        self.tree = tree
        self.link = link
        self.target = output / VIDEOS
        self._whole_tree_ready = False

    def video(self, path: Path) -> str:
        """Place a video file; returns its ``file_name``."""
        mode = "hardlink" if self.link == "auto" else self.link
        return self._place(path, mode)

    def image(self, path: Path) -> str:
        """Place an image file; returns its ``file_name``.  Under ``auto`` one link serves all images."""
        if self.link == "auto":
            self._link_whole_tree()
            return f"{VIDEOS}/{self.tree.name(path)}"
        return self._place(path, self.link)

    def _place(self, path: Path, mode: str) -> str:
        name = self.tree.name(path)
        if mode == "none":
            return name
        if self.target.is_symlink():
            raise ValueError(
                f"{self.target} is a link to {self.target.readlink()} from an earlier conversion; remove it, or choose "
                "another output"
            )
        place = self.target / name
        if not _same_file(path, place):
            place.parent.mkdir(parents=True, exist_ok=True)
            unfinished = place.with_name(place.name + ".part")
            unfinished.unlink(missing_ok=True)
            _create(path, unfinished, mode)
            unfinished.replace(place)
        return f"{VIDEOS}/{name}"

    def _link_whole_tree(self) -> None:
        if self._whole_tree_ready:
            return
        root = self.tree.root.resolve()
        if self.target.is_symlink() and self.target.resolve() != root:
            self.target.unlink()
        if not self.target.is_symlink():
            if self.target.exists():
                raise ValueError(f"{self.target} exists and is not a link to {root}; remove it, or use link=copy")
            home = self.target.parent.resolve()
            # A relative link survives moving the output together with an extracted archive inside it.
            self.target.symlink_to(os.path.relpath(root, home) if home in root.parents else root)
        self._whole_tree_ready = True


def _same_file(path: Path, place: Path) -> bool:
    if not place.exists():
        return False
    here, there = path.stat(), place.stat()
    if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
        return True
    # A finished copy keeps size and time of its source (shutil.copy2).
    return here.st_size == there.st_size and int(here.st_mtime) == int(there.st_mtime)


def _create(path: Path, place: Path, mode: str) -> None:
    if mode == "symlink":
        place.symlink_to(path.resolve())
        return
    if mode == "hardlink":
        try:
            place.hardlink_to(path.resolve())
        except OSError:
            # Another file system, or one without hard links: fall back to a copy.
            shutil.copy2(path, place)
        return
    assert mode == "copy", mode
    shutil.copy2(path, place)


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
