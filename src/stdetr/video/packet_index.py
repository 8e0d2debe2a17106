"""The frames that a video file really holds, found by walking its packets without decoding them.

Shape legend
    n frames of the file, in the order in which they are shown

File headers can be wrong: a broken download still promises every frame, and some decoders then search for the missing
ones forever.  The walk counts complete packets, and tells whether a seek to a key frame is safe: where pictures that
follow a key frame in the file are shown before it ("open GOP", x265's default), a decoder that starts there drops
them, and decord's frame numbers are then off by as many.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class PacketIndex:
    """Frames of one file.

    size:  (h, w) px as displayed; rotation: in degrees counter-clockwise, from the file
    fps:   average frames per second; 0.0 when unknown
    count: n
    pts:   n int64 presentation times in units of ``time_base``, ascending; None where the file stores none
    keys:  int64 frame numbers of the key frames, ascending
    closed: no picture after a key frame is shown before it
    """

    size: tuple[int, int]
    rotation: int
    fps: float
    time_base: float
    count: int
    pts: np.ndarray | None
    keys: np.ndarray
    closed: bool


def scan_packets(path: Path) -> PacketIndex:
    """Walk the packets of the first video stream; cached until the file changes.

    Raises FileNotFoundError when the file is absent and ValueError, naming file and remedy, when it is not a video or
    holds fewer frames than its header promises.
    """
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"video {path} does not exist") from None
    if stat.st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes), not a video")
    return _scan(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=512)
def _scan(path: str, size: int, modified: int) -> PacketIndex:
    import av
    from av.error import FFmpegError

    try:
        container = av.open(path)
    except (FFmpegError, OSError) as error:
        raise ValueError(
            f"{path} is not a video that FFmpeg can read ({_reason(error)}); is it complete, and is it a video at all?"
        ) from None
    with container:
        if not container.streams.video:
            raise ValueError(f"{path} holds no video stream")
        stream = container.streams.video[0]
        pts: list[int | None] = []
        keys: list[int] = []
        dropped = 0
        stopped = ""
        try:
            for packet in container.demux(stream):
                if packet.size == 0 or packet.is_discard:
                    dropped += packet.size == 0 or packet.is_discard
                    continue
                if packet.is_corrupt:
                    stopped = "a packet is cut off"
                    break
                if packet.is_keyframe:
                    keys.append(len(pts))
                pts.append(packet.pts)
        except FFmpegError as error:
            stopped = _reason(error)
        promised = int(stream.frames or 0)
        if stopped or len(pts) + dropped < promised:
            raise ValueError(
                f"{path} is damaged: {len(pts)} complete frames"
                + (f" of the {promised} its header promises" if promised else "")
                + (f" ({stopped})" if stopped else "")
                + "; fetch it again, or keep what is intact with: ffmpeg -i IN -c:v libx264 OUT.mp4"
            )
        if not pts:
            raise ValueError(f"{path} has a video stream without any frame")
        rotation, (height, width) = _first_picture(path)
        return _index(pts, keys, (height, width), rotation, stream)


def _index(pts: list[int | None], keys: list[int], size: tuple[int, int], rotation: int, stream: object) -> PacketIndex:
    time_base = float(getattr(stream, "time_base", 0) or 0)
    fps = float(getattr(stream, "average_rate", 0) or 0)
    times = np.array([-1 if value is None else value for value in pts], dtype=np.int64)
    known = all(value is not None for value in pts)
    if not known or len(np.unique(times)) < len(times):
        return PacketIndex(size, rotation, fps, time_base, len(pts), None, np.array([0]), closed=False)
    shown = np.argsort(times, kind="stable")
    place = np.empty_like(shown)
    place[shown] = np.arange(len(shown))
    # A key frame is safe to start at when everything after it in the file is shown after it.
    latest = np.minimum.accumulate(times[::-1])[::-1]
    closed = all(times[key] == latest[key] and place[key] == key for key in keys)
    return PacketIndex(size, rotation, fps, time_base, len(pts), times[shown], np.sort(place[keys]), closed)


def _first_picture(path: str) -> tuple[int, tuple[int, int]]:
    """Rotation and displayed (h, w) of the first picture that decodes."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                rotation = int(frame.rotation) % 360
                turned = rotation in (90, 270)
                return rotation, (frame.width, frame.height) if turned else (frame.height, frame.width)
    except FFmpegError as error:
        raise ValueError(f"{path} is damaged: its first frame cannot be decoded ({_reason(error)})") from None
    raise ValueError(f"{path} is damaged: no frame can be decoded")


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).strip()
