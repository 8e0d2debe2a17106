"""Files that appear whole or not at all, whatever interrupts the writing."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DRAFT = re.compile(r"\..+\.[0-9a-f]{8}(\.[^.]+)?")


@contextmanager
def replacing(path: str | Path, *, sync: bool = True) -> Iterator[Path]:
    """A draft in the folder of ``path``, to be written inside the block; it takes the place of ``path`` at its end.

    File and folder are on disk when the block has been left; ``sync=False`` leaves that to a later ``os.sync()``, for
    files by the thousand.  After an error ``path`` is what it was and the draft is gone.  The draft keeps the suffix,
    by which libraries choose a format; missing folders are created.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")
    try:
        yield draft
        if sync:
            publish(draft, target)
        else:
            draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def publish(draft: Path, target: Path) -> None:
    """Let a finished file, or a link, take the place of ``target`` on the same file system; both are on disk then."""
    if not draft.is_symlink():
        flush(draft)
    draft.replace(target)
    flush(target.parent)


def write_text(path: str | Path, text: str) -> Path:
    """Write a UTF-8 file through :func:`replacing`; returns its path."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return Path(path)


def remove_drafts(folder: Path) -> None:
    """Remove the drafts that killed processes left in ``folder``, where no living one may be writing."""
    for path in folder.glob(".*"):
        if _DRAFT.fullmatch(path.name) and path.is_file():
            path.unlink()


def flush(path: Path) -> None:
    """Return when the file, or the list of files of a folder, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
