"""Unpacks a downloaded archive, refusing members that point outside it.

The threat is the classic one ("zip slip"): names with ``..``, absolute names, links and devices.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from stdetr.atomic import write_text
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
        unpack = _unpack_zip if archive.name.lower().endswith(".zip") else _unpack_tar
        for _ in tqdm(unpack(archive, unfinished), desc=f"unpack {archive.name}", unit="file", disable=None):
            pass
        os.sync()  # all files at once: they may be millions
        unfinished.replace(into)
        write_text(stamp, json.dumps(identity))
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise MalformedInputError(f"{archive.name}: damaged or unreadable archive ({error})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return into


def _unpack_zip(archive: Path, root: Path) -> Iterator[None]:
    with zipfile.ZipFile(archive) as packed:
        members = packed.infolist()
        for member in members:
            # The upper half of external_attr is the Unix mode; 0o120000 marks a symbolic link.
            is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
            _check(archive, member.filename, "a link" if is_link else "")
        _check_room(archive, sum(member.file_size for member in members), root)
        for member in members:
            packed.extract(member, root)
            yield


def _unpack_tar(archive: Path, root: Path) -> Iterator[None]:
    with tarfile.open(archive) as packed:
        while (member := packed.next()) is not None:
            _check(archive, member.name, "" if member.isfile() or member.isdir() else "a link or a device")
            _check_room(archive, member.size, root)
            packed.extract(member, root, set_attrs=False, filter="data")
            yield
            # TarFile remembers each header for ever; a benchmark has millions.
            packed.members = []  # type: ignore[attr-defined]


def _check(archive: Path, member: str, wrong_kind: str) -> None:
    if leaves_folder(member):
        raise MalformedInputError(f"{archive.name}: member {member!r} points outside the archive; refused")
    if wrong_kind:
        raise MalformedInputError(f"{archive.name}: member {member!r} is {wrong_kind}; refused")


def _check_room(archive: Path, needed: int, root: Path) -> None:
    free = shutil.disk_usage(root).free
    if needed > free:
        raise MalformedInputError(f"{archive.name}: unpacks to {needed:,} bytes, but only {free:,} are free")
