"""Clips of different sizes and lengths in one batch.

Shape legend
    B clips     T frames, the longest clip's     h, w the largest padded size in pixels     N tracks of a clip
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stdetr.structures import Clip, ClipBatch, ClipInfo, ClipTargets, PixelScale


@dataclass(frozen=True, repr=False)
class DecodedClip:
    """A :class:`~stdetr.structures.Clip` whose frames are still where the decoder left them.

    frames: T arrays h,w,3 uint8 RGB of one size, not to be written to
    """

    frames: Sequence[np.ndarray]
    targets: ClipTargets
    info: ClipInfo

    def stacked(self) -> Clip:
        """The clip with its frames in one tensor."""
        return Clip(torch.from_numpy(np.stack(self.frames)).permute(0, 3, 1, 2), self.targets, self.info)


def _new(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype)


@dataclass(frozen=True)
class Collate:
    """Pads clips at the right, the bottom and the end of time, each side to a multiple of ``pad_to`` px.

    pixels: how the batch is to normalise uint8 frames; None: clips must come normalised
    """

    pad_to: int = 32
    pixels: PixelScale | None = None

    def __post_init__(self) -> None:
        if self.pad_to < 1:
            raise ValueError(f"data.loader.pad_to must be at least 1, got {self.pad_to}")

    def __call__(
        self, clips: Sequence[Clip] | Sequence[DecodedClip], room: Callable[[Sequence[int], torch.dtype], Tensor] = _new
    ) -> ClipBatch:
        """Batch of the clips, padded with 0; their frames are all normalised float32 or all uint8.

        room: gives the memory for the frames, a contiguous tensor of that shape and dtype whose content does not matter
        """
        if not clips:
            raise ValueError("a batch needs at least one clip")
        shapes = [_shape(clip) for clip in clips]
        kinds = {torch.uint8 if isinstance(clip, DecodedClip) else clip.frames.dtype for clip in clips}
        assert len(kinds) == 1, f"the clips of a batch have one dtype, got {kinds}"
        (kind,) = kinds
        raw = kind == torch.uint8
        if raw and self.pixels is None:
            raise ValueError("clips must be normalised before they are batched (data.mean, data.std), got torch.uint8")
        length = max(frames for frames, _, _ in shapes)
        height, width = (math.ceil(max(shape[axis] for shape in shapes) / self.pad_to) * self.pad_to for axis in (1, 2))
        # Decoders give the channels as the innermost axis in memory; kept so, rows are copied whole.
        interleaved = isinstance(clips[0], DecodedClip) or (raw and clips[0].frames.stride(1) == 1)
        sides = (height, width, 3) if interleaved else (3, height, width)
        stored = room((len(clips), length, *sides), kind)
        # NumPy's slices cost less than PyTorch's, which matters between two decoded clips.
        planes = stored.numpy() if interleaved else stored.permute(0, 1, 3, 4, 2).numpy()  # B,T,h,w,3
        for number, (clip, (count, clip_height, clip_width)) in enumerate(zip(clips, shapes, strict=True)):
            pictures = clip.frames if isinstance(clip, DecodedClip) else clip.frames.permute(0, 2, 3, 1).numpy()
            for place, picture in enumerate(pictures):
                planes[number, place, :clip_height, :clip_width] = picture
            # Only the padding is set to zero: clearing the whole batch first would cost as much as filling it.
            planes[number, :count, :clip_height, clip_width:] = 0
            planes[number, :count, clip_height:] = 0
            planes[number, count:] = 0
        return ClipBatch(
            frames=stored.permute(0, 1, 4, 2, 3) if interleaved else stored,
            sizes=torch.tensor([shape[1:] for shape in shapes], dtype=torch.int64),
            frame_mask=torch.tensor([[t < frames for t in range(length)] for frames, _, _ in shapes]),
            frame_index=torch.tensor([continue_count(clip.info.frame_index, length) for clip in clips]),
            targets=tuple(pad_targets(clip.targets, length) for clip in clips),
            infos=tuple(clip.info for clip in clips),
            pixels=self.pixels if raw else None,
        )


def _shape(clip: Clip | DecodedClip) -> tuple[int, int, int]:
    """(T, h, w)."""
    if isinstance(clip, DecodedClip):
        return (len(clip.frames), *clip.frames[0].shape[:2])
    count, _, height, width = clip.frames.shape
    return count, height, width


def continue_count(frame_index: Sequence[int], length: int) -> list[int]:
    """``length`` frame numbers: the given ones, then the count goes on by the last step (1 for a single frame)."""
    numbers = list(frame_index)
    step = numbers[-1] - numbers[-2] if len(numbers) > 1 else 1
    return numbers + [numbers[-1] + step * (k + 1) for k in range(length - len(numbers))]


def pad_targets(targets: ClipTargets, length: int) -> ClipTargets:
    """The targets with absent boxes appended up to ``length`` frames."""
    missing = length - targets.boxes.shape[1]
    if missing == 0:
        return targets
    pad = torch.nn.functional.pad
    return ClipTargets(
        labels=targets.labels,
        boxes=pad(targets.boxes, (0, 0, 0, missing)),
        present=pad(targets.present, (0, missing)),
        ignored=pad(targets.ignored, (0, missing)),
        track_ids=targets.track_ids,
    )
