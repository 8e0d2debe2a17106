"""A detector that finds red, green and blue squares by their colour, so that the right answer is known to the pixel."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from stdetr.config import trusting
from stdetr.models.neck import Tokens
from stdetr.structures import ModelOutput, SamplingRecord

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
Place = tuple[int, int, int] | None  # left, top, side of a square; None: absent


class ColourDetector(nn.Module):
    """Query c reports the square of colour c with class c; absent on frames without it."""

    def __init__(self, threshold: float = 0.5, samples: bool = True) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(threshold))
        self.windows: list[tuple[int, ...]] = []
        self.seen = 0
        if not samples:
            self.record_sampling = None
            del self.record_sampling

    def forward(
        self, frames: Tensor, sizes: Tensor, frame_mask: Tensor | None = None, frame_index: Tensor | None = None
    ) -> ModelOutput:
        return self.detect(self.features(frames, sizes), frame_mask, frame_index)

    def features(self, frames: Tensor, sizes: Tensor) -> Tokens:
        """One token per frame, which holds box and presence of the three squares."""
        clips, length = frames.shape[:2]
        self.seen += clips * length
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        boxes, presence = torch.full((clips, 3, length, 4), 0.5), torch.full((clips, 3, length), -8.0)
        for b in range(clips):
            height, width = sizes[b].tolist()
            for t in range(length):
                pixels = frames[b, t, :, :height, :width] * std + mean
                for colour in range(3):
                    others = pixels[[c for c in range(3) if c != colour]].amax(0)
                    rows, columns = torch.nonzero(pixels[colour] - others > self.threshold, as_tuple=True)
                    if len(rows):
                        x1, x2 = columns.min() / width, (columns.max() + 1) / width
                        y1, y2 = rows.min() / height, (rows.max() + 1) / height
                        boxes[b, colour, t] = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
                        presence[b, colour, t] = 4.0
        nothing = torch.zeros(clips, 1)
        features = torch.cat((boxes, presence[..., None]), -1).transpose(1, 2).flatten(2)[:, :, None]
        return Tokens(features, nothing, nothing, nothing, ((1, 1),), nothing, nothing[0])

    def detect(
        self, tokens: Tokens, frame_mask: Tensor | None = None, frame_index: Tensor | None = None
    ) -> ModelOutput:
        clips, length = tokens.features.shape[:2]
        if frame_index is not None:
            self.windows += [tuple(row) for row in frame_index.tolist()]
        boxes, presence = tokens.features[:, :, 0].unflatten(-1, (3, 5)).transpose(1, 2).split((4, 1), -1)
        presence = presence[..., 0]
        if frame_mask is not None:
            presence = torch.where(frame_mask[:, None], presence, -8.0)
        seen = (presence > 0).any(-1)
        logits = torch.full((clips, 3, 3), -8.0)
        for colour in range(3):
            logits[:, colour, colour] = torch.where(seen[:, colour], 3.0 + colour, -8.0)
        return ModelOutput(logits, logits[:, :, None].expand(-1, -1, length, -1), boxes, presence)


class SamplingColourDetector(ColourDetector):
    """Also says where it sampled: four points on the corners of each box, the same on all frames."""

    def record_sampling(
        self, frames: Tensor, sizes: Tensor, frame_mask: Tensor | None = None, frame_index: Tensor | None = None
    ) -> tuple[ModelOutput, list[SamplingRecord]]:
        output = self(frames, sizes, frame_mask, frame_index)
        length = frames.shape[1]
        corner = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]])
        points = output.boxes[..., None, :2] + corner * output.boxes[..., None, 2:]  # B,Q,T,4,2
        locations = points[:, :, None, None, :, None].expand(-1, -1, length, 2, -1, 2, -1, -1)
        weights = torch.full(locations.shape[:-1], 1 / (length * 2 * 4))
        order = torch.arange(length).expand(length, -1)
        return output, [SamplingRecord(locations[b], weights[b], order, output.boxes[b]) for b in range(len(frames))]


def draw_squares(places: list[tuple[Place, Place, Place]], size: tuple[int, int] = (60, 80)) -> np.ndarray:
    """T,h,w,3 uint8: one red, one green and one blue square per frame."""
    frames = np.full((len(places), *size, 3), 30, np.uint8)
    for t, squares in enumerate(places):
        for colour, place in enumerate(squares):
            if place is not None:
                left, top, side = place
                frames[t, top : top + side, left : left + side] = 30
                frames[t, top : top + side, left : left + side, colour] = 230
    return frames


class ArraySource:
    """A video in memory, with the interface of ``stdetr.video.source.VideoSource``."""

    def __init__(self, frames: np.ndarray, fps: float = 8.0, name: str = "squares.mp4") -> None:
        self.pictures, self.fps, self.name = frames, fps, name
        self.size = (frames.shape[1], frames.shape[2])

    @property
    def corrupt(self) -> set[int]:
        return set()

    def __len__(self) -> int:
        return len(self.pictures)

    def frames(self, indices) -> list[np.ndarray]:
        return list(self.read(indices))

    def read(self, indices) -> np.ndarray:
        return self.pictures[list(indices)]

    def iterate(self, start: int = 0, stop: int | None = None, step: int = 1):
        for index in range(start, len(self) if stop is None else min(stop, len(self)), step):
            yield index, self.pictures[index]

    def close(self) -> None: ...


@pytest.fixture(scope="session", autouse=True)
def _importable() -> None:
    """Let configurations name the classes above."""
    module = types.ModuleType("colour_models")
    module.ColourDetector = ColourDetector  # pyright: ignore[reportAttributeAccessIssue]
    module.SamplingColourDetector = SamplingColourDetector  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["colour_models"] = module


@pytest.fixture(autouse=True)
def _trusted() -> Iterator[None]:
    with trusting(["colour_models.ColourDetector", "colour_models.SamplingColourDetector"]):
        yield


@pytest.fixture
def squares() -> Callable[..., np.ndarray]:
    return draw_squares


@pytest.fixture
def array_source() -> type[ArraySource]:
    return ArraySource


@pytest.fixture
def colour_detector() -> type[ColourDetector]:
    return ColourDetector


@pytest.fixture
def write_run() -> Callable[..., Path]:
    """Writes a run folder of a colour detector, in the layout that training leaves."""

    def write(root: Path, target: str = "colour_models.SamplingColourDetector", transforms: tuple = ()) -> Path:
        config = {
            "data": {"frames": 5, "mean": list(MEAN), "std": list(STD), "eval_transforms": list(transforms),
                     "loader": {"pad_to": 16}},
            "model": {"detector": {"_target_": target, "threshold": 0.5}},
        }  # fmt: skip
        for name in ("best", "last"):
            folder = root / "checkpoints" / name
            folder.mkdir(parents=True)
            save_file({"threshold": torch.tensor(0.25)}, folder / "model.safetensors")
            meta = {"class_ids": [7, 3, 5], "class_names": ["red", "green", "blue"], "step": 10, "metrics": {}}
            (folder / "meta.json").write_text(json.dumps(meta))
        OmegaConf.save(OmegaConf.create(config), root / "config.yaml")
        return root

    return write
