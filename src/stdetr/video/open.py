"""Opens videos; the only place that chooses a decoder."""

from __future__ import annotations

from pathlib import Path

from stdetr.config.names import did_you_mean, nearest_file
from stdetr.video.av_source import AvSource
from stdetr.video.decord_source import DecordSource
from stdetr.video.frame_folder import FrameFolder
from stdetr.video.source import IMAGE_SUFFIXES, VideoSource
from stdetr.video.torchcodec_source import TorchcodecSource

BACKENDS = {"av": AvSource, "decord": DecordSource, "torchcodec": TorchcodecSource}


def open_source(path: str | Path, *, backend: str = "av", on_corrupt: str = "stop") -> VideoSource:
    """Open a video file, a folder of frames or a glob pattern of frames.

    backend: ``av``, ``decord`` or ``torchcodec``, for video files; all give the same pixels.  Image files need none.
    on_corrupt: see :class:`~stdetr.video.source.VideoFile`

    Raises FileNotFoundError when nothing is there and ValueError when it is not a video.
    """
    text = str(path)
    if backend not in BACKENDS:
        raise ValueError(
            f"data.backend={backend!r} is unknown, it may be {', '.join(BACKENDS)}{did_you_mean(backend, BACKENDS)}"
        )
    if Path(text).is_dir():
        return FrameFolder.from_directory(Path(text))
    if Path(text).is_file():
        if Path(text).suffix.lower() in IMAGE_SUFFIXES:
            return FrameFolder(text, [Path(text)])
        return BACKENDS[backend](Path(text), on_corrupt)
    if any(sign in text for sign in "*?["):
        return FrameFolder.from_glob(text)
    raise FileNotFoundError(f"source {text} does not exist{nearest_file(Path(text))}")
