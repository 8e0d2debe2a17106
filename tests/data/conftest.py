"""A small toy benchmark, and video files that ffmpeg encodes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stdetr.data.toy import ToyBenchmark, ToySplit


@pytest.fixture(scope="session")
def ffmpeg() -> Callable[..., bytes]:
    """Run ffmpeg with these arguments; returns what it wrote to the standard output."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="the ffmpeg program comes with the extra dev")
    program = imageio_ffmpeg.get_ffmpeg_exe()

    def run(*arguments: object) -> bytes:
        command = [program, "-v", "error", "-y", *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout

    return run


@pytest.fixture(scope="session")
def encode(ffmpeg: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Encode a moving test picture: ``encode("a.mp4", "-c:v", "libx264", frames=75, size="128x96")``."""
    folder = tmp_path_factory.mktemp("videos")

    def make(name: str, *options: str, frames: int = 60, size: str = "128x96", odd: str = "") -> Path:
        path = folder / name
        if not path.exists():
            source = f"testsrc2=size={size}:rate=25:duration={frames / 25}"
            crop = ["-vf", f"format=yuv444p,crop={odd}"] if odd else []
            ffmpeg("-f", "lavfi", "-i", source, *crop, *options, path)
        return path

    return make


@pytest.fixture(scope="session")
def decode(ffmpeg: Callable[..., bytes]) -> Callable[..., np.ndarray]:
    """Every frame of a file by ffmpeg, in order: T,h,w,3 uint8."""

    def run(path: Path, height: int, width: int) -> np.ndarray:
        raw = ffmpeg("-i", path, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
        return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)

    return run


@pytest.fixture(scope="session")
def small_benchmark() -> ToyBenchmark:
    """Six training, two validation and two test videos of 12 frames, 64 px."""
    splits = {"train": ToySplit(6, 11), "val": ToySplit(2, 12), "test": ToySplit(2, 13)}
    return ToyBenchmark(splits=splits, frame_size=64, frames=12)


@pytest.fixture(scope="session")
def small_toy(small_benchmark: ToyBenchmark, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small benchmark."""
    return small_benchmark.prepare(tmp_path_factory.mktemp("toy"))
