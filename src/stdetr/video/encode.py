"""H.264 files through PyAV, which brings its own FFmpeg: the same file on every machine, playable in a browser."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from stdetr.atomic import replacing

ENCODERS = ("libx264", "libopenh264", "h264_nvenc", "h264_videotoolbox")


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float,
    *,
    crf: int = 20,
    preset: str = "veryfast",
    gop: int | None = None,
) -> Path:
    """Write h,w,3 uint8 RGB frames of one size into an mp4 file; returns its path.

    crf, preset: x264's quality (18 looks lossless, 28 is small) and effort; other encoders use their own
    gop: frames from one key frame to the next; equal frames then give equal bytes on every processor (x264 only); None
        leaves both to the encoder

    The file appears when the last frame is in, and not at all after an error.  H.264 stores colour at half resolution,
    so an odd last row or column is repeated.  Raises ValueError for frames that are missing or differ in size and where
    no H.264 encoder exists.
    """
    import av

    if not fps > 0:
        raise ValueError(f"fps={fps} of {path} must be positive")
    encoder = next((name for name in ENCODERS[: None if gop is None else 1] if name in av.codecs_available), None)
    if encoder is None:
        raise ValueError(f"PyAV {av.__version__} has no H.264 encoder ({', '.join(ENCODERS)}); reinstall av")
    # faststart puts the index first, so that a browser can play before everything has arrived.
    muxing = {"movflags": "+faststart"}
    coding = {"crf": str(crf), "preset": preset} if encoder == "libx264" else {}
    if gop is not None:
        # The bytes depend on threads and the encoder's name and, without cpu-independent, on x264's AVX-512 routines.
        muxing["fflags"] = coding["flags"] = "+bitexact"
        coding["x264-params"] = (
            f"keyint={gop}:scenecut=0:threads=1:lookahead-threads=1:sliced-threads=0:cpu-independent=1"
        )
    with replacing(path) as draft, av.open(str(draft), "w", format="mp4", options=muxing) as container:
        stream: Any = container.add_stream(encoder, rate=Fraction(fps).limit_denominator(1001), options=coding)
        stream.pix_fmt = "yuv420p"
        if gop is not None:
            stream.codec_context.thread_count = 1
        size = None
        for count, frame in enumerate(frames):
            if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
                raise ValueError(f"{path}: frame {count} must be h,w,3 uint8, got {frame.shape} {frame.dtype}")
            if size is None:
                size = frame.shape[:2]
                stream.height, stream.width = (side + side % 2 for side in size)
            if frame.shape[:2] != size:
                raise ValueError(f"{path}: frame {count} is {frame.shape[:2]}, the first one was {size}")
            even = np.pad(frame, [*((0, side % 2) for side in size), (0, 0)], mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        if size is None:
            raise ValueError(f"{path}: there is no frame to write")
        container.mux(stream.encode())
    return Path(path)
