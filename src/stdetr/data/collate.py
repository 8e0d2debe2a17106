"""Clips of different sizes and lengths in one batch.

Shape legend
    B clips     T frames, the longest clip's     h, w the largest padded size in pixels     N tracks of a clip
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from stdetr.structures import Clip, ClipBatch, ClipTargets, PixelScale


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

    def __call__(self, clips: Sequence[Clip]) -> ClipBatch:
        """Batch of the clips, padded with 0; their frames are all normalised float32 or all uint8."""
        if not clips:
            raise ValueError("a batch needs at least one clip")
        kinds = {clip.frames.dtype for clip in clips}
        assert len(kinds) == 1, f"the clips of a batch have one dtype, got {kinds}"
        raw = kinds == {torch.uint8}
        if raw and self.pixels is None:
            raise ValueError("clips must be normalised before they are batched (data.mean, data.std), got torch.uint8")
        length = max(clip.frames.shape[0] for clip in clips)
        height, width = (
            math.ceil(max(clip.frames.shape[axis] for clip in clips) / self.pad_to) * self.pad_to for axis in (2, 3)
        )
        interleaved = raw and clips[0].frames.stride(1) == 1
        frames = _room((len(clips), length, 3, height, width), clips[0].frames.dtype, interleaved)
        mask = torch.zeros(len(clips), length, dtype=torch.bool)
        index = torch.zeros(len(clips), length, dtype=torch.int64)
        for number, clip in enumerate(clips):
            count, _, clip_height, clip_width = clip.frames.shape
            frames[number, :count, :, :clip_height, :clip_width] = clip.frames
            # Only the padding is set to zero: clearing the whole batch first would cost as much as filling it.
            frames[number, :count, :, :clip_height, clip_width:] = 0
            frames[number, :count, :, clip_height:] = 0
            frames[number, count:] = 0
            mask[number, :count] = True
            index[number] = continue_count(clip.info.frame_index, length)
        return ClipBatch(
            frames=frames,
            sizes=torch.tensor([clip.frames.shape[2:] for clip in clips], dtype=torch.int64),
            frame_mask=mask,
            frame_index=index,
            targets=tuple(pad_targets(clip.targets, length) for clip in clips),
            infos=tuple(clip.info for clip in clips),
            pixels=self.pixels if raw else None,
        )


def _room(shape: tuple[int, int, int, int, int], dtype: torch.dtype, interleaved: bool) -> Tensor:
    """An uninitialised B,T,3,h,w tensor; in a worker process it lies in shared memory, which saves sending a copy.

    interleaved: the channels are the innermost axis in memory, as decoders give them: rows are then copied whole
    """
    batch, length, channels, height, width = shape
    stored = (batch, length, height, width, channels) if interleaved else shape
    if get_worker_info() is None:
        room = torch.empty(stored, dtype=dtype)
    else:
        storage = torch.UntypedStorage._new_shared(dtype.itemsize * math.prod(shape))
        room = torch.empty(0, dtype=dtype).set_(storage, 0, stored)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return room.permute(0, 1, 4, 2, 3) if interleaved else room


def continue_count(frame_index: Sequence[int], length: int) -> Tensor:
    """``length`` frame numbers: the given ones, then the count goes on by the last step (1 for a single frame)."""
    numbers = list(frame_index)
    step = numbers[-1] - numbers[-2] if len(numbers) > 1 else 1
    numbers += [numbers[-1] + step * (k + 1) for k in range(length - len(numbers))]
    return torch.tensor(numbers, dtype=torch.int64)


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
