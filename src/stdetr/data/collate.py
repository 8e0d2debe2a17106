"""Batches of clips of different sizes and lengths.

Shape legend
    B clips     T frames, the longest clip's     h, w the largest padded size in pixels     N tracks of a clip
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from stdetr.structures import Clip, ClipBatch, ClipTargets, PixelScale


@dataclass(frozen=True)
class Collate:
    """Pads clips at the right, the bottom and the end of time, each side to a multiple of ``pad_to`` px.

    pixels: how the batch normalises uint8 frames; None: clips must be normalised already
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
        first = clips[0].frames
        assert all(clip.frames.dtype == first.dtype for clip in clips), "the clips of a batch have one dtype"
        raw = first.dtype == torch.uint8
        if raw and self.pixels is None:
            raise ValueError("clips must be normalised before they are batched (data.mean, data.std), got torch.uint8")
        shapes = [(len(clip.frames), *clip.frames.shape[-2:]) for clip in clips]
        length = max(frames for frames, _, _ in shapes)
        height, width = (math.ceil(max(shape[axis] for shape in shapes) / self.pad_to) * self.pad_to for axis in (1, 2))
        if first.stride(1) == 1:
            # Decoders give channels as the innermost axis in memory; keeping that copies whole rows.
            frames = first.new_zeros(len(clips), length, height, width, 3).permute(0, 1, 4, 2, 3)
        else:
            frames = first.new_zeros(len(clips), length, 3, height, width)
        for number, (clip, (count, clip_height, clip_width)) in enumerate(zip(clips, shapes, strict=True)):
            frames[number, :count, :, :clip_height, :clip_width] = clip.frames
        return ClipBatch(
            frames=frames,
            sizes=torch.tensor([shape[1:] for shape in shapes], dtype=torch.int64),
            frame_mask=torch.tensor([[t < frames for t in range(length)] for frames, _, _ in shapes]),
            frame_index=torch.tensor([continue_count(clip.info.frame_index, length) for clip in clips]),
            targets=tuple(pad_targets(clip.targets, length) for clip in clips),
            infos=tuple(clip.info for clip in clips),
            pixels=self.pixels if raw else None,
        )


def pad_batch(batch: ClipBatch, length: int, height: int, width: int) -> ClipBatch:
    """The batch with padding up to ``length`` frames of ``height`` x ``width`` px, as if collated with larger clips."""
    _, frames, _, rows, columns = batch.frames.shape
    if (length, height, width) == (frames, rows, columns):
        return batch
    pad = torch.nn.functional.pad
    return replace(
        batch,
        frames=pad(batch.frames, (0, width - columns, 0, height - rows, 0, 0, 0, length - frames)),
        frame_mask=pad(batch.frame_mask, (0, length - frames)),
        frame_index=torch.tensor([continue_count(numbers, length) for numbers in batch.frame_index.tolist()]),
        targets=tuple(pad_targets(target, length) for target in batch.targets),
    )


def continue_count(frame_index: Sequence[int], length: int) -> list[int]:
    """``length`` frame numbers: the given ones, continued with the last step (1 for a single frame)."""
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
