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

from stdetr.structures import Clip, ClipBatch, ClipTargets


@dataclass(frozen=True)
class Collate:
    """Pads clips at the right, the bottom and the end of time, each side to a multiple of ``pad_to`` px."""

    pad_to: int = 32

    def __post_init__(self) -> None:
        if self.pad_to < 1:
            raise ValueError(f"data.loader.pad_to must be at least 1, got {self.pad_to}")

    def __call__(self, clips: Sequence[Clip]) -> ClipBatch:
        """Batch of the clips; frames must be normalised float32, for 0 is what the padding holds."""
        if not clips:
            raise ValueError("a batch needs at least one clip")
        for clip in clips:
            if not clip.frames.is_floating_point():
                raise ValueError(
                    f"clips must be normalised before they are batched (data.mean, data.std), got {clip.frames.dtype}"
                )
        length = max(clip.frames.shape[0] for clip in clips)
        height, width = (
            math.ceil(max(clip.frames.shape[axis] for clip in clips) / self.pad_to) * self.pad_to for axis in (2, 3)
        )
        frames = _room(len(clips), length, 3, height, width)
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
        )


def _room(*shape: int) -> Tensor:
    """An uninitialised float32 tensor; in a worker process it lies in shared memory, which saves sending a copy."""
    if get_worker_info() is None:
        return torch.empty(shape)
    storage = torch.UntypedStorage._new_shared(4 * math.prod(shape))
    return torch.empty(0).set_(storage, 0, shape)  # pyright: ignore[reportCallIssue, reportArgumentType]


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
