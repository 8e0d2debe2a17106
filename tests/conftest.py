"""What many tests share: golden files (recorded answers that a change of structure must leave alone), video files that
ffmpeg encodes, a small toy benchmark.

Nothing heavy is imported here: tests/gpu runs on machines that have little more than torch.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np

    from stdetr.datasets.toy import ToyBenchmark

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/*.json anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, Any], Any]:
    """``golden(name, value)``: what ``tests/golden/<name>.json`` holds, for the test to compare with ``value``.

    With ``--update-golden`` the file is written first.
    """

    def recorded(name: str, value: Any) -> Any:
        path = GOLDEN / f"{name}.json"
        if request.config.getoption("--update-golden"):
            path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))

    return recorded


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
    """Encode a moving test picture: ``encode("a.mp4", "-c:v", "libx264", frames=75, size="128x96")``.

    Equal arguments give the same file; others with the same name, one in another folder.
    """
    folders: dict[tuple, Path] = {}

    def make(name: str, *options: str, frames: int = 60, size: str = "128x96", odd: str = "") -> Path:
        key = (options, frames, size, odd)
        folder = folders.get(key) or folders.setdefault(key, tmp_path_factory.mktemp("videos"))
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
    import numpy as np

    def run(path: Path, height: int, width: int) -> np.ndarray:
        raw = ffmpeg("-i", path, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
        return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)

    return run


@pytest.fixture(scope="session")
def small_benchmark() -> ToyBenchmark:
    """Six training, two validation and two test videos of 12 frames, 64 px."""
    from stdetr.datasets.toy import ToyBenchmark, ToySplit

    splits = {"train": ToySplit(6, 11), "val": ToySplit(2, 12), "test": ToySplit(2, 13)}
    return ToyBenchmark(splits=splits, frame_size=64, frames=12)


@pytest.fixture(scope="session")
def small_toy(small_benchmark: ToyBenchmark, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small benchmark."""
    return small_benchmark.prepare(tmp_path_factory.mktemp("toy"))
