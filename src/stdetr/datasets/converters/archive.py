"""Unpacks a downloaded archive, refusing members that point outside it.

The threat is the classic one ("zip slip"): names with ``..``, absolute names, links and devices.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from stdetr.data.coco_vid_schema import leaves_folder
from stdetr.datasets.converters.problems import MalformedInputError

_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(_SUFFIXES)


def extract(archive: Path, into: Path) -> Path:
    """Unpack ``archive`` as the folder ``into`` and return it; a completed earlier extraction is kept.

    Raises:
        MalformedInputError: damaged archive, or a member with an absolute name, "..", a link or a device.
        ValueError: not enough room on the disk.
    """
    stamp = into.with_name(into.name + ".archive.json")
    identity = {"name": archive.name, "size": archive.stat().st_size, "mtime": int(archive.stat().st_mtime)}
    if into.is_dir() and stamp.is_file() and json.loads(stamp.read_text()) == identity:
        return into
    unfinished = into.with_name(into.name + ".part")
    for folder in (unfinished, into):
        if folder.exists():
            shutil.rmtree(folder)
    unfinished.mkdir(parents=True)
    try:
        if archive.name.lower().endswith(".zip"):
            _extract_zip(archive, unfinished)
        else:
            _extract_tar(archive, unfinished)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise MalformedInputError(f"{archive.name}: damaged or unreadable archive ({error})") from error
    except MalformedInputError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    unfinished.replace(into)
    stamp.write_text(json.dumps(identity))
    return into


def _check_name(archive: Path, member: str) -> None:
    if leaves_folder(member):
        raise MalformedInputError(f"{archive.name}: member {member!r} points outside the archive; refused")


def _check_room(archive: Path, needed: int, root: Path) -> None:
    free = shutil.disk_usage(root).free
    if needed > free:
        raise MalformedInputError(f"{archive.name}: unpacks to {needed:,} bytes, but only {free:,} are free")


def _extract_zip(archive: Path, root: Path) -> None:
    with zipfile.ZipFile(archive) as packed:
        members = packed.infolist()
        for member in members:
            _check_name(archive, member.filename)
            # The upper half of external_attr is the Unix mode; 0o120000 marks a symbolic link.
            if (member.external_attr >> 16) & 0o170000 == 0o120000:
                raise MalformedInputError(f"{archive.name}: member {member.filename!r} is a link; refused")
        _check_room(archive, sum(member.file_size for member in members), root)
        for member in tqdm(members, desc=f"unpack {archive.name}", unit="file", disable=None):
            packed.extract(member, root)


def _extract_tar(archive: Path, root: Path) -> None:
    with tarfile.open(archive) as packed:
        for member in tqdm(_tar_members(packed), desc=f"unpack {archive.name}", unit="file", disable=None):
            _check_name(archive, member.name)
            if not member.isfile() and not member.isdir():
                raise MalformedInputError(f"{archive.name}: member {member.name!r} is a link or a device; refused")
            _check_room(archive, member.size, root)
            packed.extract(member, root, set_attrs=False, filter="data")


def _tar_members(packed: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := packed.next()) is not None:
        yield member
        # TarFile remembers each header for ever; a benchmark has millions.
        packed.members = []  # type: ignore[attr-defined]
