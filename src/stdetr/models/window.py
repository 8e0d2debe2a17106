"""Which frames each frame samples.

Shape legend: B clips, T frames, F sampled frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """For each frame of each clip, the frames that it samples.

    frames: B,T,F int64, position in the clip, -1 = none
    dt:     B,T,F float32, signed difference in *source* frames to the sampled one; 0 where there is none
    self_only: True when F = 1 and every frame samples only itself, so that the temporal terms vanish
    """

    frames: Tensor
    dt: Tensor
    self_only: bool

    @classmethod
    def build(cls, frame_mask: Tensor, frame_index: Tensor, *, radius: int | None, causal: bool) -> Window:
        """
        frame_mask: B,T bool, real frames; frame_index: B,T int, source frame numbers
        radius: frames of the clip to each side (None: the whole clip); causal: only the frame itself and earlier ones
        """
        clips, length = frame_mask.shape
        device = frame_mask.device
        reach = length - 1 if radius is None else min(radius, length - 1)
        time = torch.arange(length, device=device)
        if radius is None and not causal:
            sampled = time.expand(length, -1)  # the whole clip in order: T slots are enough
        else:
            sampled = time[:, None] + torch.arange(-reach, 1 if causal else reach + 1, device=device)  # T,F
        inside = (sampled >= 0) & (sampled < length)
        position = sampled.clamp(0, length - 1)
        usable = inside[None] & frame_mask[:, position]  # B,T,F
        dt = (frame_index[:, position] - frame_index[:, :, None]).float()
        frames = torch.where(usable, position[None].expand(clips, -1, -1), -1)
        # A padding frame still needs one frame to sample, or its softmax would be over nothing.
        none = ~usable.any(-1, keepdim=True)
        frames = torch.where(none & (sampled == time[:, None]), sampled, frames)
        return cls(frames, torch.where(usable, dt, 0.0), self_only=length == 1 or reach == 0)
