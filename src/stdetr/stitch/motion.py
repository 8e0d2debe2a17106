"""Constant velocity with damping: where a track that is not seen will be.

Boxes are xyxy in source pixels; velocities are changes of (cx, cy, w, h) per source frame.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert


def fit_velocity(boxes: Tensor, seen: Tensor, frames: Tensor) -> Tensor:
    """Least-squares slope of the box centres over time; the size is taken as constant.

    boxes M,W,4 xyxy; seen M,W bool; frames W int64.  Returns M,4 (vx, vy, 0, 0), zero for tracks seen on one frame.
    """
    weight = seen.to(boxes.dtype)
    count = weight.sum(1, keepdim=True).clamp_min(1)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    # Time relative to the first kept frame: a long video's frame numbers would eat the float's precision.
    time = (frames - frames[0]).to(boxes.dtype)[None].expand_as(weight)
    time = time - (time * weight).sum(1, keepdim=True) / count
    centre = centre - (centre * weight[..., None]).sum(1, keepdim=True) / count[..., None]
    spread = (weight * time**2).sum(1, keepdim=True)
    slope = (weight[..., None] * time[..., None] * centre).sum(1) / spread.clamp_min(1e-6)
    slope = torch.where(spread > 0, slope, 0.0)
    return torch.cat([slope, torch.zeros_like(slope)], 1)


def extrapolate(boxes: Tensor, velocity: Tensor, gap: Tensor, damping: float) -> Tensor:
    """Boxes of M tracks after ``gap`` frames (M,N, may differ by column): M,N,4 xyxy.

    With damping d the distance travelled in g frames is v (d + d^2 + ... + d^g), which stays finite however long the
    gap is: a track that is lost for long stops somewhere near instead of leaving the frame.
    """
    steps = gap.clamp_min(0).to(boxes.dtype)
    travelled = steps if damping == 1 else damping * (1 - damping**steps) / (1 - damping)
    moved = box_convert(boxes, "xyxy", "cxcywh")[:, None] + velocity[:, None] * travelled[..., None]
    return box_convert(moved, "cxcywh", "xyxy")
