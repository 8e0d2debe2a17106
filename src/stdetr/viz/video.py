"""H.264 files through PyAV, which brings its own FFmpeg: the same file on every machine, playable in a browser."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

ENCODERS = ("libx264", "libopenh264", "h264_nvenc", "h264_videotoolbox")


class VideoWriter:
    """Writes h,w,3 uint8 RGB frames of one size into an mp4 file; a context manager.

    The file appears under its name when the block ends without an error, and not at all otherwise.  H.264 stores colour
    at half resolution, so an odd last row or column is repeated.  ``crf`` is x264's quality: 18 looks lossless, 28 is
    small.  Raises ValueError for frames that differ in size and where no H.264 encoder exists.
    """

    def __init__(self, path: str | Path, fps: float, *, crf: int = 20) -> None:
        if not fps > 0:
            raise ValueError(f"fps={fps} of {path} must be positive")
        self.path = Path(path)
        self.fps = Fraction(fps).limit_denominator(1001)
        self.crf = crf
        self.frames = 0
        self._draft = self.path.with_name(f".{os.getpid()}.{self.path.name}")
        self._container: Any = None
        self._stream: Any = None
        self._size: tuple[int, int] | None = None

    def __enter__(self) -> VideoWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append one frame."""
        import av

        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"a video frame must be h,w,3 uint8, got {frame.shape} {frame.dtype}")
        if self._size is None:
            self._open((frame.shape[0], frame.shape[1]))
        if frame.shape[:2] != self._size:
            raise ValueError(f"{self.path}: frame {self.frames} is {frame.shape[:2]}, the first one was {self._size}")
        odd = [(0, side % 2) for side in frame.shape[:2]]
        picture = av.VideoFrame.from_ndarray(np.pad(frame, [*odd, (0, 0)], mode="edge"), format="rgb24")
        self._container.mux(self._stream.encode(picture))
        self.frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._container is None:
            return
        try:
            if error is None:
                self._container.mux(self._stream.encode())
        finally:
            self._container.close()
            self._container = None
            if error is not None:
                self._draft.unlink(missing_ok=True)
        if error is None:
            self._draft.replace(self.path)

    def _open(self, size: tuple[int, int]) -> None:
        import av

        available = [name for name in ENCODERS if name in av.codecs_available]
        if not available:
            raise ValueError(f"PyAV {av.__version__} has no H.264 encoder ({', '.join(ENCODERS)}); reinstall av")
        self._size = size
        # faststart puts the index first, so that a browser can play before everything has arrived.
        self._container = av.open(str(self._draft), "w", format="mp4", options={"movflags": "faststart"})
        stream: Any = self._container.add_stream(available[0], rate=self.fps)
        stream.height, stream.width = (side + side % 2 for side in size)
        stream.pix_fmt = "yuv420p"
        if available[0] == "libx264":
            stream.options = {"crf": str(self.crf), "preset": "veryfast"}
        self._stream = stream
