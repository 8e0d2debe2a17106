"""Opens videos; the only place that chooses a decoder."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from stdetr.names import did_you_mean, nearest_file
from stdetr.video.av_source import AvSource
from stdetr.video.decord_source import DecordSource
from stdetr.video.frame_folder import FrameFolder, natural_key
from stdetr.video.source import IMAGE_SUFFIXES, VIDEO_SUFFIXES, VideoSource
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


def list_sources(source: str | Path | Sequence[str]) -> list[str]:
    """The videos that ``source`` names: itself, or several.

    Several are a list, a folder of video files, a glob that matches video files, or a text file (.txt) with one on each
    line.  Side files (``._name``) are left out.  Raises ValueError where nothing is left, or images are among videos.
    """
    if not isinstance(source, str | Path):
        return [str(item) for item in source]
    path, text = Path(source), str(source)
    if path.suffix.lower() == ".txt" and path.is_file():
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not found:
            raise ValueError(f"source={source} names no video")
        return found
    if path.is_dir():
        files = list(path.iterdir())
    elif any(sign in text for sign in "*?[") and not path.exists():
        files = [Path(item) for item in glob.glob(text, recursive=True)]  # noqa: PTH207 - absolute patterns
    else:
        return [text]
    files = [file for file in files if not file.name.startswith(".")]
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if videos and images:
        raise ValueError(
            f"source={source} holds {len(videos)} videos and {len(images)} images: give the ones or the others"
        )
    return [str(file) for file in sorted(videos, key=natural_key)] or [text]
