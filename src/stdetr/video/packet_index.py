"""The frames that a video file really holds, found by walking its packets, without decoding where those can be trusted.

Shape legend
    n frames of the file, in the order in which they are shown

File headers can be wrong: a broken download still promises every frame, and some decoders then search for the missing
ones forever.  The walk counts complete packets, and tells whether a seek to a key frame is safe: where pictures that
follow a key frame in the file are shown before it ("open GOP", x265's default), a decoder that starts there drops
them, and decord's frame numbers are then off by as many.

Packets do not tell everything either.  In AVI files their time is that of decoding, in joined transport streams the
clock starts again, a recording that begins inside a group of pictures has packets that cannot be decoded, and VP8 has
packets that show nothing.  Such files are decoded once: their frames are the pictures that come out, in that order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PacketIndex:
    """Frames of one file.

    stream: number of the video stream; of several, the one that FFmpeg shows
    size:  (h, w) px as displayed
    transposed, flipped: how pictures are turned for display: rows and columns swap, then (rows, columns) are reversed
    fps:   average frames per second; 0.0 when unknown
    count: n
    pts:   n int64 presentation times in units of ``time_base``, ascending; None where times do not identify frames
    keys:  int64 frame numbers of the key frames, ascending
    closed: no picture after a key frame is shown before it
    plain: every packet is a frame, of the first video stream, which is not mirrored
    """

    stream: int
    size: tuple[int, int]
    transposed: bool
    flipped: tuple[bool, bool]
    fps: float
    time_base: float
    count: int
    pts: np.ndarray | None
    keys: np.ndarray
    closed: bool
    plain: bool

    def upright(self, picture: np.ndarray) -> np.ndarray:
        """h,w,3 as decoded -> h,w,3 as displayed, contiguous."""
        rows, columns = (slice(None, None, -1 if flip else 1) for flip in self.flipped)
        return np.ascontiguousarray((picture.transpose(1, 0, 2) if self.transposed else picture)[rows, columns])


def scan_packets(path: Path) -> PacketIndex:
    """Walk the packets of the video stream; cached until the file changes.

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


def decode(packet: Any) -> list[Any]:
    """The pictures that a packet completes; none where it is damaged."""
    from av.error import InvalidDataError

    try:
        return packet.decode()
    except InvalidDataError:
        return []


@lru_cache(maxsize=512)
def _scan(path: str, size: int, modified: int) -> PacketIndex:
    import av
    from av.error import FFmpegError

    try:
        container: Any = av.open(path)
    except (FFmpegError, OSError) as error:
        raise ValueError(
            f"{path} is not a video that FFmpeg can read ({_reason(error)}); is it complete, and is it a video at all?"
        ) from None
    with container:
        stream = _video_stream(container)
        if stream is None:
            raise ValueError(f"{path} holds no video stream")
        times: list[int | None] = []
        keys: list[int] = []
        left_out, cut, stopped = 0, 0, ""
        try:
            for packet in container.demux(stream):
                if packet.size == 0 or packet.is_discard:
                    left_out += 1
                    continue
                cut += packet.is_corrupt
                if packet.is_keyframe:
                    keys.append(len(times))
                times.append(packet.pts)
        except FFmpegError as error:
            stopped = _reason(error)
        form, promised = container.format.name, int(stream.frames or 0)
        joined = cut > 0 and form == "mpegts"  # packets are marked where streams were joined
        if cut and not joined:
            stopped = stopped or "a packet is cut off"
        if stopped or (len(times) + left_out < promised and not _complete(path, size, form, stream)):
            raise ValueError(
                f"{path} is damaged: {len(times) - cut} complete frames"
                + (f" of the {promised} its header promises" if promised else "")
                + (f" ({stopped})" if stopped else "")
                + "; fetch it again, or keep what is intact with: ffmpeg -i IN -c:v libx264 OUT.mp4"
            )
        if not times:
            raise ValueError(f"{path} has a video stream without any frame")
        codec = stream.codec_context
        if codec is None:
            raise ValueError(f"{path} is damaged, or compressed in a way that is not known here")
        trusted = (
            _distinct(times)
            and keys[:1] == [0]
            and not joined
            and codec.name not in ("vp8", "libvpx")
            and not (form == "avi" and codec.has_b_frames)
        )
        first, decoded = _decode_all(path, stream.index, whole=not trusted)
        if not trusted:
            times, keys = [time for time, _ in decoded], [n for n, (_, key) in enumerate(decoded) if key]
            if not _distinct(times) or times != sorted(time for time in times if time is not None):
                times = [None] * len(times)
        transposed, flipped = _display(first)
        mirrored = (sum(flipped) + transposed) % 2 == 1
        plain = trusted and left_out <= 1 and stream.index == container.streams.video[0].index and not mirrored
        return PacketIndex(
            stream=stream.index,
            size=(first.width, first.height) if transposed else (first.height, first.width),
            transposed=transposed,
            flipped=flipped,
            fps=float(stream.average_rate or 0),
            time_base=float(stream.time_base or 0),
            plain=plain and form != "asf",
            **_order(times, keys, trusted),
        )


def _order(times: list[int | None], keys: list[int], trusted: bool) -> dict[str, Any]:
    """``count``, ``pts``, ``keys`` and ``closed`` from the times in the order of the file."""
    if not _distinct(times):
        return {"count": len(times), "pts": None, "keys": np.array([0]), "closed": False}
    pts = np.array(times, np.int64)
    shown = np.argsort(pts, kind="stable")
    place = np.empty_like(shown)
    place[shown] = np.arange(len(shown))
    # A key frame is safe to start at when everything after it in the file is shown after it.
    latest = np.minimum.accumulate(pts[::-1])[::-1]
    closed = trusted and all(pts[key] == latest[key] and place[key] == key for key in keys)
    return {"count": len(times), "pts": pts[shown], "keys": np.sort(place[keys]), "closed": closed}


def _distinct(times: list[int | None]) -> bool:
    return None not in times and len(set(times)) == len(times)


def _video_stream(container: Any) -> Any:
    """The video stream that FFmpeg shows, not a cover or preview where there is another; None where there is none."""
    from av.stream import Disposition

    videos = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    best = container.streams.best("video")
    return best if best in videos else next(iter(videos), None)


def _complete(path: str, size: int, form: str, stream: Any) -> bool:
    """Whether a file holds all the data that its own tables list, so that frames its header counts are left out on
    purpose: dropped while recording (AVI), or cut by an edit list (MP4)."""
    if form == "avi":
        with Path(path).open("rb") as file:
            head = file.read(8)
        return head[:4] == b"RIFF" and 0 < int.from_bytes(head[4:], "little") + 8 <= size
    entries = [stream.index_entries[n] for n in range(len(stream.index_entries))] if form.startswith("mov") else []
    return bool(entries) and max(entry.pos + entry.size for entry in entries) <= size


def _decode_all(path: str, stream: int, *, whole: bool) -> tuple[Any, list[tuple[int | None, bool]]]:
    """The first picture, and (time, key frame) of every picture of the ``whole`` file, or else of the first few."""
    import av
    from av.error import FFmpegError

    first, found = None, []
    try:
        with av.open(path) as container:
            video: Any = container.streams[stream]
            video.codec_context.thread_count = 1
            for packet in container.demux(video):
                for picture in decode(packet):
                    first = first or picture
                    found.append((picture.pts, bool(picture.key_frame)))
                if first is not None and not whole:
                    break
    except FFmpegError as error:
        raise ValueError(f"{path} is damaged: decoding fails after {len(found)} frames ({_reason(error)})") from None
    if first is None:
        raise ValueError(f"{path} is damaged: no frame can be decoded")
    return first, found


def _display(picture: Any) -> tuple[bool, tuple[bool, bool]]:
    """How the display matrix turns a picture: (rows and columns swap, (rows, columns) are reversed afterwards).

    The matrix takes the place (x, y) to (a x + c y, b x + d y).
    """
    matrix = picture.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, (False, False)
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32, 5).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, (d < 0, a < 0)
    return True, (b < 0, c < 0)


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).strip()
