"""Caches of decoded frames, so that a clip costs no decoding.

Shape legend
    T requested frames     h, w height and width in pixels

A video is decoded once, in order.  ``MemoryCache`` holds it in the process; ``DiskCache`` holds it as one uint8
array file per video, mapped into memory, so that all workers share the operating system's page cache.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from stdetr.atomic import replacing
from stdetr.video.open import open_source
from stdetr.video.source import VideoSource, check_indices


class FrameCache(Protocol):
    """Reads frames of video files; frame numbers count decoded frames from 0.  Its arrays must not be written to."""

    def frames(self, path: Path, indices: Sequence[int], backend: str) -> Sequence[np.ndarray]:
        """T arrays h,w,3 uint8 RGB."""
        ...


class NoCache:
    """Decodes every requested frame anew; the ``open_files`` last used videos stay open, at their position."""

    def __init__(self, open_files: int = 8) -> None:
        self._open_files = open_files
        self._sources: OrderedDict[tuple[str, str], VideoSource] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        # An open decoder belongs to its process.
        return {"_open_files": self._open_files, "_sources": OrderedDict()}

    def frames(self, path: Path, indices: Sequence[int], backend: str) -> Sequence[np.ndarray]:
        """T arrays h,w,3 uint8 RGB."""
        key = (str(path), backend)
        source = self._sources.pop(key, None) or open_source(path, backend=backend)
        self._sources[key] = source
        if len(self._sources) > self._open_files:
            _, oldest = self._sources.popitem(last=False)
            oldest.close()
        return source.frames(indices)


class MemoryCache:
    """Whole videos in memory; beyond ``limit_gb`` gigabytes per process the least recently used are dropped."""

    def __init__(self, limit_gb: float = 2.0) -> None:
        self._limit = _in_bytes(limit_gb)
        self._bytes = 0
        self._videos: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        # Workers fill their own cache: sending the parent's would copy it to every worker.
        return {"_limit": self._limit, "_bytes": 0, "_videos": OrderedDict()}

    def frames(self, path: Path, indices: Sequence[int], backend: str) -> Sequence[np.ndarray]:
        """T arrays h,w,3 uint8 RGB."""
        key = (str(path), backend)
        frames = self._videos.get(key)
        if frames is None:
            with closing(open_source(path, backend=backend)) as source:
                _needed_bytes(source, self._limit)
                frames = source.read(range(len(source)))
            self._videos[key] = frames
            self._bytes += frames.nbytes
            while self._bytes > self._limit:
                _, dropped = self._videos.popitem(last=False)
                self._bytes -= dropped.nbytes
        else:
            self._videos.move_to_end(key)
        return [frames[number] for number in check_indices(str(path), backend, len(frames), indices)]


class DiskCache:
    """Whole videos as uint8 array files under ``directory``; memory use stays at one frame while a file is written.

    A file's name holds path, size and modification time of the video, so a changed video is decoded anew.  Beyond
    ``limit_gb`` gigabytes the least recently used files are deleted; a process that still reads one is not affected.
    """

    def __init__(self, directory: str | Path, limit_gb: float = 100.0) -> None:
        self.directory, self._limit = Path(directory), _in_bytes(limit_gb)

    def frames(self, path: Path, indices: Sequence[int], backend: str) -> Sequence[np.ndarray]:
        """T arrays h,w,3 uint8 RGB."""
        if not path.is_file():
            raise FileNotFoundError(f"video {path} does not exist")
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{backend}"
        file = self.directory / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
        while True:
            try:
                frames = np.load(file, mmap_mode="r")
                os.utime(file)  # the time of its last use
                return [frames[number] for number in check_indices(str(path), backend, len(frames), indices)]
            except FileNotFoundError:
                # Not there yet, or another process has just deleted it to make room.
                with closing(open_source(path, backend=backend)) as source:
                    self._make_room(source)
                    self._write(file, source)

    def _make_room(self, source: VideoSource) -> None:
        """Delete the least recently used files until the frames of ``source`` fit; ValueError if they never will."""
        needed = _needed_bytes(source, self._limit)
        kept: list[tuple[float, int, Path]] = []
        for file in self.directory.glob("[!.]*.npy"):  # those that begin with a dot are still being written
            with suppress(FileNotFoundError):  # another process may delete it first
                stat = file.stat()
                kept.append((stat.st_mtime, stat.st_size, file))
        total = sum(size for _, size, _ in kept)
        for _, size, file in sorted(kept):
            if total + needed <= self._limit:
                break
            file.unlink(missing_ok=True)
            total -= size

    def _write(self, file: Path, source: VideoSource) -> None:
        # Several workers may write the same file: the last one to finish wins, with equal content.
        with replacing(file) as draft:
            shape = (len(source), *source.size, 3)
            shard = np.lib.format.open_memmap(draft, mode="w+", dtype=np.uint8, shape=shape)
            for index, frame in source.iterate():
                shard[index] = frame
            del shard


def make_cache(kind: str, directory: str | Path | None, limit_gb: float) -> FrameCache:
    """The cache that the key ``data.cache`` names: ``none``, ``memory`` or ``disk`` (which needs a directory)."""
    if kind == "none":
        return NoCache()
    if kind == "memory":
        return MemoryCache(limit_gb)
    if kind == "disk":
        if directory is None:
            raise ValueError("data.cache=disk needs data.cache_dir, the folder for the decoded frames")
        return DiskCache(directory, limit_gb)
    near = difflib.get_close_matches(kind, ("none", "memory", "disk"), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"data.cache must be none, memory or disk, got {kind!r}{hint}")


def _in_bytes(limit_gb: float) -> int:
    if limit_gb <= 0:
        raise ValueError(f"data.cache_limit_gb must be positive, got {limit_gb}")
    return int(limit_gb * 1e9)


def _needed_bytes(source: VideoSource, limit: int) -> int:
    """The size of the frames of ``source``; ValueError where that exceeds ``limit``."""
    height, width = source.size
    needed = len(source) * height * width * 3
    if needed > limit:
        raise ValueError(
            f"{source.name} needs {needed / 1e9:.1f} GB decoded, more than data.cache_limit_gb={limit / 1e9:g}; raise "
            "the limit, or use another data.cache (disk, none)"
        )
    return needed
