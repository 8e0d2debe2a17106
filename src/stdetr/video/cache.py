"""Caches of decoded frames, so that a clip costs no decoding.

Shape legend
    T requested frames     h, w height and width in pixels

A video is decoded once, in order.  ``MemoryCache`` holds it in the process; ``DiskCache`` (raw) and ``JpegCache`` hold
it as one file per video, so that workers and runs share it, and the operating system's page cache.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from stdetr.atomic import replacing
from stdetr.video.open import open_source
from stdetr.video.source import VideoSource, check_indices

_WORD = 8  # bytes of an offset


class FrameCache(Protocol):
    """Reads frames of video files; frame numbers count decoded frames from 0.  Its arrays must not be written to.

    on_corrupt: for the files it opens, see :class:`~stdetr.video.source.VideoFile`
    """

    on_corrupt: str

    def frames(self, path: Path, indices: Sequence[int], backend: str) -> Sequence[np.ndarray]:
        """T arrays h,w,3 uint8 RGB."""
        ...


class NoCache:
    """Decodes every requested frame anew; the ``open_files`` last used videos stay open, at their position."""

    def __init__(self, open_files: int = 8, on_corrupt: str = "stop") -> None:
        self._open_files, self.on_corrupt = open_files, on_corrupt
        self._sources: OrderedDict[tuple[str, str], VideoSource] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        # An open decoder belongs to its process.
        return {"_open_files": self._open_files, "on_corrupt": self.on_corrupt, "_sources": OrderedDict()}

    def frames(self, path: Path, indices: Sequence[int], backend: str) -> Sequence[np.ndarray]:
        """T arrays h,w,3 uint8 RGB."""
        key = (str(path), backend)
        source = self._sources.pop(key, None) or open_source(path, backend=backend, on_corrupt=self.on_corrupt)
        self._sources[key] = source
        if len(self._sources) > self._open_files:
            _, oldest = self._sources.popitem(last=False)
            oldest.close()
        return source.frames(indices)


class MemoryCache:
    """Whole videos in memory; beyond ``limit_gb`` gigabytes per process the least recently used are dropped."""

    def __init__(self, limit_gb: float = 2.0, on_corrupt: str = "stop") -> None:
        self._limit, self.on_corrupt = _in_bytes(limit_gb), on_corrupt
        self._bytes = 0
        self._videos: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        # Workers fill their own cache: sending the parent's would copy it to every worker.
        return {"_limit": self._limit, "on_corrupt": self.on_corrupt, "_bytes": 0, "_videos": OrderedDict()}

    def frames(self, path: Path, indices: Sequence[int], backend: str) -> Sequence[np.ndarray]:
        """T arrays h,w,3 uint8 RGB."""
        key = (str(path), backend)
        frames = self._videos.get(key)
        if frames is None:
            with closing(open_source(path, backend=backend, on_corrupt=self.on_corrupt)) as source:
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


class _FolderCache(ABC):
    """One file of frames per video under ``directory``, shared by workers and runs.

    A file's name holds path, size and modification time of the video, so a changed video is decoded anew.  Beyond
    ``limit_gb`` gigabytes the least recently used files are deleted; a process that still reads one is not affected.
    Files appear whole: two processes that miss the same one both write it, with equal content, and the last one wins.
    """

    suffix: str
    variant = ""  # what else distinguishes the content of files

    def __init__(self, directory: str | Path, limit_gb: float = 100.0, on_corrupt: str = "stop") -> None:
        self.directory, self._limit, self.on_corrupt = Path(directory), _in_bytes(limit_gb), on_corrupt

    def frames(self, path: Path, indices: Sequence[int], backend: str) -> Sequence[np.ndarray]:
        """T arrays h,w,3 uint8 RGB."""
        if not path.is_file():
            raise FileNotFoundError(f"video {path} does not exist")
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{backend}{self.variant}"
        key += "" if self.on_corrupt == "stop" else f"|{self.on_corrupt}"
        file = self.directory / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}{self.suffix}"
        while True:
            try:
                frames = self._read(file, path, indices, backend)
                os.utime(file)  # the time of its last use
                return frames
            except FileNotFoundError:
                # Not there yet, or another process has just deleted it to make room.
                opened = open_source(path, backend=backend, on_corrupt=self.on_corrupt)
                with closing(opened) as source, replacing(file) as draft:
                    self._write(draft, source)

    @abstractmethod
    def _read(self, file: Path, path: Path, indices: Sequence[int], backend: str) -> Sequence[np.ndarray]:
        """Frames of the cached ``file`` of the video ``path``; FileNotFoundError where it is not there."""

    @abstractmethod
    def _write(self, draft: Path, source: VideoSource) -> None:
        """Write all frames of ``source``, after making room for them."""

    def _make_room(self, needed: int) -> None:
        """Delete the least recently used files until ``needed`` bytes fit."""
        kept: list[tuple[float, int, Path]] = []
        for file in self.directory.glob(f"[!.]*{self.suffix}"):  # those that begin with a dot are still being written
            with suppress(FileNotFoundError):  # another process may delete it first
                stat = file.stat()
                kept.append((stat.st_mtime, stat.st_size, file))
        total = sum(size for _, size, _ in kept)
        for _, size, file in sorted(kept):
            if total + needed <= self._limit:
                break
            file.unlink(missing_ok=True)
            total -= size


class DiskCache(_FolderCache):
    """Raw frames: one uint8 array file per video, mapped into memory; memory use stays at one frame while writing."""

    suffix = ".npy"

    def _read(self, file: Path, path: Path, indices: Sequence[int], backend: str) -> Sequence[np.ndarray]:
        frames = np.load(file, mmap_mode="r")
        return [frames[number] for number in check_indices(str(path), backend, len(frames), indices)]

    def _write(self, draft: Path, source: VideoSource) -> None:
        self._make_room(_needed_bytes(source, self._limit))
        shape = (len(source), *source.size, 3)
        shard = np.lib.format.open_memmap(draft, mode="w+", dtype=np.uint8, shape=shape)
        for index, frame in source.iterate():
            shard[index] = frame
        del shard


class JpegCache(_FolderCache):
    """Frames as JPEG images of the decoded size: one file per video holds them one behind the other, then the offset of
    each and of the end (int64) and their number (int64).

    quality: of the JPEG images, 1 to 100.  At 95 a frame of drone_vid (640x512) takes 29 kB instead of 983 kB and is
        read in 1.7 ms; the error is 50 dB PSNR, below that of the video's own compression.
    """

    suffix = ".jpegs"

    def __init__(
        self, directory: str | Path, limit_gb: float = 100.0, quality: int = 95, on_corrupt: str = "stop"
    ) -> None:
        super().__init__(directory, limit_gb, on_corrupt)
        if not 1 <= quality <= 100:
            raise ValueError(f"data.cache_quality must lie between 1 and 100, got {quality}")
        self._quality = int(quality)
        self.variant = f"|jpeg {quality}"

    def _read(self, file: Path, path: Path, indices: Sequence[int], backend: str) -> Sequence[np.ndarray]:
        from PIL import Image

        with file.open("rb") as stream:
            stream.seek(-_WORD, os.SEEK_END)
            count = int.from_bytes(stream.read(_WORD), "little")
            stream.seek(-_WORD * (count + 2), os.SEEK_END)
            offsets = np.frombuffer(stream.read(_WORD * (count + 1)), "<i8")
            frames: dict[int, np.ndarray] = {}
            numbers = check_indices(str(path), backend, count, indices)
            for number in sorted(set(numbers)):
                stream.seek(int(offsets[number]))
                with Image.open(io.BytesIO(stream.read(int(offsets[number + 1] - offsets[number])))) as image:
                    frames[number] = np.asarray(image)
        return [frames[number] for number in numbers]

    def _write(self, draft: Path, source: VideoSource) -> None:
        from PIL import Image

        offsets = [0]
        with draft.open("wb") as stream:
            for _, frame in source.iterate():
                # Colours at half the resolution, as in nearly every video.
                Image.fromarray(frame).save(stream, "JPEG", quality=self._quality, subsampling="4:2:0")
                offsets.append(stream.tell())
                _check_size(source, offsets[-1], self._limit, "as JPEG")
            stream.write(np.array([*offsets, len(offsets) - 1], "<i8").tobytes())
        self._make_room(draft.stat().st_size)


def make_cache(
    kind: str, directory: str | Path | None, limit_gb: float, quality: int = 95, on_corrupt: str = "stop"
) -> FrameCache:
    """The cache that the key ``data.cache`` names; ``disk`` and ``jpeg`` need a directory."""
    if kind == "none":
        return NoCache(on_corrupt=on_corrupt)
    if kind == "memory":
        return MemoryCache(limit_gb, on_corrupt)
    if kind in ("disk", "jpeg"):
        if directory is None:
            raise ValueError(f"data.cache={kind} needs data.cache_dir, the folder for the decoded frames")
        if kind == "disk":
            return DiskCache(directory, limit_gb, on_corrupt)
        return JpegCache(directory, limit_gb, quality, on_corrupt)
    near = difflib.get_close_matches(kind, ("none", "memory", "disk", "jpeg"), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"data.cache must be none, memory, disk or jpeg, got {kind!r}{hint}")


def _in_bytes(limit_gb: float) -> int:
    if limit_gb <= 0:
        raise ValueError(f"data.cache_limit_gb must be positive, got {limit_gb}")
    return int(limit_gb * 1e9)


def _needed_bytes(source: VideoSource, limit: int) -> int:
    """The size of the frames of ``source``; ValueError where that exceeds ``limit``."""
    height, width = source.size
    needed = len(source) * height * width * 3
    _check_size(source, needed, limit, "decoded")
    return needed


def _check_size(source: VideoSource, needed: int, limit: int, how: str) -> None:
    if needed > limit:
        raise ValueError(
            f"{source.name} needs {needed / 1e9:.1f} GB {how}, more than data.cache_limit_gb={limit / 1e9:g}; raise "
            "the limit, or use another data.cache (jpeg, disk, none)"
        )
