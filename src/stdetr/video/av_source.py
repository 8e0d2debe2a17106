"""Video files through PyAV: exact seeks by presentation time, and decoding on demand in bounded memory.

Shape legend
    T requested frames     h, w height and width in pixels
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from stdetr.video.packet_index import decode
from stdetr.video.read_ahead import ReadAhead
from stdetr.video.source import VideoFile

# Frames that are decoded and dropped rather than sought.
NEARBY = 32
# Decoders that may leave out pictures by the time of their packet; those of VP9 and AV1 also hold pictures shown later.
_ONE_PICTURE_A_PACKET = ("h264", "hevc", "mpeg4")
# Frames that are decoded ahead at a time, which bounds the memory for long clips.
_GROUP = 8


class AvSource(VideoFile):
    """Decodes one frame at a time and keeps its position.

    A read that continues where the last one stopped needs no seek; after two such reads the next frames are decoded
    ahead.  Every decoded picture is identified by its presentation time, so a seek that lands elsewhere than expected
    is detected and corrected.
    """

    backend = "av"

    def __init__(self, path: Path, on_corrupt: str = "stop") -> None:
        from av.video.reformatter import VideoReformatter

        super().__init__(path, on_corrupt)
        self._container: Any = None
        self._converter = VideoReformatter()
        self._frames: Iterator[Any] = iter(())
        self._next = 0
        self._shown_from = 0
        self._ahead: ReadAhead | None = None
        self._expected = -1  # the frame after the last read
        self._runs = 0  # consecutive reads that continued the previous one

    def frames(self, indices: Sequence[int]) -> list[np.ndarray]:
        """T arrays h,w,3 uint8 RGB."""
        numbers = self.check_indices(indices)
        if not numbers:
            return []
        unique = sorted(set(numbers))
        self._runs = self._runs + 1 if unique[0] == self._expected else 0
        self._expected = unique[-1] + 1
        if self._ahead is not None and not 0 <= unique[0] - self._ahead.next <= NEARBY:
            self._halt()
        take = self._seek if self._ahead is None else self._ahead.take
        arrays = {number: self._array(number, take(number)) for number in unique}
        if self._ahead is None and self._runs >= 2 and self._expected < len(self):
            # Colour conversion, a fifth of a frame's time, runs in this thread, as in decord's reader.
            self._ahead = ReadAhead(self._seek, self._expected, len(self), min(len(unique), _GROUP))
        return [arrays[number] for number in numbers]

    def iterate(self, start: int = 0, stop: int | None = None, step: int = 1) -> Iterator[tuple[int, np.ndarray]]:
        """Sequential frames; one decoded picture in memory."""
        self._halt()
        for number in self.check_range(start, stop, step):
            yield number, self._array(number, self._seek(number))

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        self._halt()
        self._expected, self._runs = -1, 0
        self._shut()

    def _halt(self) -> None:
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None

    def _shut(self) -> None:
        if self._container is not None:
            self._frames = iter(())
            self._container.close()
            self._container = None

    def _array(self, number: int, picture: Any) -> np.ndarray:
        # FFmpeg's own default, and decord's: PyAV's would interpolate chroma differently where sides are odd.
        # One converter for all frames, since creating one costs as much as decoding a small frame.
        if picture.is_corrupt:
            self._corrupt(number)
        array = self._converter.reformat(picture, format="rgb24", interpolation="BICUBIC").to_ndarray()
        array = self._index.upright(array)
        if array.shape[:2] != self.size:
            have, want = (f"{shape[1]}x{shape[0]}" for shape in (array.shape, self.size))
            raise ValueError(f"{self.name}: frame {number} is {have}, but the video starts with {want}")
        return array

    def _seek(self, number: int) -> Any:
        """The decoded picture of frame ``number``."""
        if self._container is not None and number == self._next and self._next > 0:
            picture = self._decode()
            if picture is not None and self._next - 1 == number:
                return picture
        key = self._key_before(number)
        # Pictures on the way that no other refers to need no decoding.
        self._shown_from = number
        if self._container is None or self._next > number or key > self._next:
            self._start(key)
        while True:
            picture = self._decode()
            if picture is not None and self._next - 1 == number:
                return picture
            if picture is None or self._next - 1 > number:
                # The seek landed after the frame: start one key frame earlier, in the end at the beginning.
                if key == 0:
                    self._shut()
                    raise ValueError(
                        f"{self.name}: frame {number} of {len(self)} cannot be decoded (backend av); the file is "
                        "damaged there"
                    )
                key = self._key_before(key - 1)
                self._start(key)

    def _key_before(self, number: int) -> int:
        keys = self._index.keys
        place = int(np.searchsorted(keys, number, side="right")) - 1
        return int(keys[place]) if place >= 0 else 0

    def _start(self, key: int) -> None:
        """Go to frame ``key``; frame 0 always reopens the file, which does not depend on a seek table."""
        import av

        if self._container is None or key == 0:
            self._shut()
            self._container = av.open(self.name)
            self._container.streams[self._index.stream].codec_context.thread_count = 1
        stream = self._container.streams[self._index.stream]
        if key:
            assert self._index.pts is not None
            self._container.seek(int(self._index.pts[key]), stream=stream)
        self._frames = self._pictures(self._container, stream)
        self._next = 0

    def _pictures(self, container: Any, stream: Any) -> Iterator[Any]:
        """The pictures of the file from here on, except unreferenced ones before ``_shown_from``."""
        decoder, skips = stream.codec_context, False
        pts = self._index.pts if decoder.name in _ONE_PICTURE_A_PACKET else None
        for packet in container.demux(stream):
            skip = pts is not None and packet.pts is not None and packet.pts < pts[self._shown_from]
            if skip != skips:
                decoder.skip_frame, skips = "NONREF" if skip else "DEFAULT", skip
            yield from decode(packet)

    def _decode(self) -> Any | None:
        """The next picture, or None at the end; ``_next`` then is the number after it."""
        from av.error import FFmpegError

        while True:
            try:
                picture = next(self._frames, None)
            except FFmpegError as error:
                self._shut()
                raise ValueError(
                    f"{self.name}: decoding fails after frame {self._next - 1} of {len(self)} (backend av): {error}"
                ) from None
            if picture is None:
                return None
            if self._index.pts is None:
                self._next += 1
                return picture
            place = self._next  # nearly always
            if place >= len(self) or self._index.pts[place] != picture.pts:
                place = int(np.searchsorted(self._index.pts, -1 if picture.pts is None else picture.pts))
            # Pictures cut off by an edit list are decoded, but they are not frames.
            if place < len(self) and self._index.pts[place] == picture.pts:
                self._next = place + 1
                return picture


def same_pixels(read: Callable[[Path, list[int]], np.ndarray], path: Path) -> bool:
    """Whether another reader may serve a file: PyAV finds no frame of it damaged, and it reads some as PyAV does.

    That takes one pass through the file, once per process.
    """
    stat = path.stat()
    return _same_pixels(read, path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _same_pixels(read: Callable[[Path, list[int]], np.ndarray], path: Path, size: int, modified: int) -> bool:
    with closing(AvSource(path)) as source:
        numbers = sorted({round(share * (len(source) - 1)) for share in (0, 0.3, 0.6, 0.9, 1)})
        try:
            frames = {number: frame for number, frame in source.iterate() if number in numbers}
            return np.array_equal(read(path, numbers), np.stack([frames[number] for number in numbers]))
        except (ValueError, RuntimeError, IndexError):
            return False
