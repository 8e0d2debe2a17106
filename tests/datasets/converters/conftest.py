"""Small faithful source folders, and a conversion that is always validated."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from stdetr.data.coco_vid import read_coco_vid
from stdetr.datasets.converters.convert import convert
from stdetr.datasets.validate import Validation

# The formats' source folders are fixtures of their test files, and test_trains.py needs them all.
sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture
def write() -> Callable[[Path, str], Path]:
    """Write text, making the folders."""

    def _write(path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return _write


@pytest.fixture
def images() -> Callable[..., None]:
    """Write tiny JPEG or PNG frames: images(folder, ["000001.jpg", ...], (width, height))."""

    def _images(folder: Path, names: list[str], size: tuple[int, int]) -> None:
        for number, name in enumerate(names):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            form = "PNG" if path.suffix == ".png" else "JPEG"
            Image.new("RGB", size, (20 * number % 255, 90, 160)).save(path, format=form)

    return _images


@pytest.fixture
def video() -> Callable[..., Path]:
    """Encode an MPEG-4 video of flat frames: video(path, frames, (width, height))."""

    def _video(path: Path, frames: int, size: tuple[int, int]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuv420p"
            for number in range(frames):
                picture = np.full((size[1], size[0], 3), 12 * number % 255, np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
        return path

    return _video


class Converted:
    """The output of one conversion, as lists of records."""

    def __init__(self, folder: Path, counts: dict[str, Any], problems: Any) -> None:
        self.folder, self.counts, self.problems = folder, counts, problems

    def document(self, split: str = "all") -> dict[str, Any]:
        return json.loads((self.folder / f"{split}.json").read_text())

    def boxes(self, split: str = "all") -> list[tuple[int, int, int, list[float], int]]:
        """(frame_id, category_id, instance_id, bbox, ignore) in the file's order."""
        document = self.document(split)
        frames = {image["id"]: image["frame_id"] for image in document["images"]}
        return [
            (frames[a["image_id"]], a["category_id"], a["instance_id"], a["bbox"], a.get("ignore", 0))
            for a in document["annotations"]
        ]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Converted]:
    """run(format, source, **keys): convert, then require that each written file is valid."""

    def _run(format: str, source: Path, output: Path | None = None, **keys: Any) -> Converted:
        output = tmp_path / "converted" if output is None else output
        direct = {name: keys.pop(name) for name in ("strict", "link", "splits", "follow_links") if name in keys}
        counts, problems = convert(format, source, output, options=keys, **direct)
        root = source if direct.get("link") == "none" else None
        for split in counts:
            validation = Validation(output / f"{split}.json", root=root, check_media=keys.get("check_media", True))
            assert list(validation.violations()) == []
            assert read_coco_vid(output / f"{split}.json").images == counts[split].images
        return Converted(output, counts, problems)

    return _run
