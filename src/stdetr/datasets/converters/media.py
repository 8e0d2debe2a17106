"""Makes the frames available to the converted annotations."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from stdetr.atomic import replacing
from stdetr.datasets.converters.source_tree import SourceTree
from stdetr.names import did_you_mean

LINKS = ("auto", "copy", "hardlink", "symlink", "none")
VIDEOS = "videos"
"""Folder below the output that holds (or leads to) videos and frames."""


def check_link(link: str) -> None:
    """Raises ValueError, with the nearest valid name, when ``link`` is not a way to place files."""
    if link not in LINKS:
        raise ValueError(f"link={link} is not one of {', '.join(LINKS)}{did_you_mean(str(link), LINKS)}")


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
            with replacing(place, sync=False) as draft:
                _create(path, draft, mode)
        return f"{VIDEOS}/{name}"

    def _link_whole_tree(self) -> None:
        if self._whole_tree_ready:
            return
        root, home = self.tree.root.resolve(), self.target.parent.resolve()
        if self.target.exists() and not self.target.is_symlink():
            raise ValueError(f"{self.target} exists and is not a link to {root}; remove it, or use link=copy")
        if not self.target.is_symlink() or self.target.resolve() != root:
            with replacing(self.target) as draft:
                # A relative link survives moving the output together with an extracted archive inside it.
                draft.symlink_to(os.path.relpath(root, home) if home in root.parents else root)
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
        # Another file system, or one without hard links: copied below.
        with contextlib.suppress(OSError):
            place.hardlink_to(path.resolve())
            return
    shutil.copy2(path, place)
