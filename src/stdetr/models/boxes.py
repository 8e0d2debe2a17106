"""Box arithmetic that torchvision does not have: pairs along a leading axis, logits, tubes.

Shape legend: Q, N tubes; T frames.  Boxes are cxcywh normalised unless a name says xyxy.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_xyxy(boxes: Tensor) -> Tensor:
    """...,4 cxcywh -> ...,4 xyxy, same unit."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centre - size / 2, centre + size / 2), dim=-1)


def to_cxcywh(boxes: Tensor) -> Tensor:
    """...,4 xyxy -> ...,4 cxcywh, same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def logit(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Inverse of the sigmoid, finite at 0 and 1 (the clamp of Deformable DETR, which checkpoints depend on)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def paired_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of boxes that broadcast against each other.

    a, b: ...,4 xyxy with x1 <= x2, y1 <= y2; returns (iou, giou), each of the broadcast shape without the 4.
    Empty boxes give IoU 0.  GIoU: Rezatofighi et al. 2019.
    """
    low = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    area_a = (a_xyxy[..., 2:] - a_xyxy[..., :2]).clamp(min=0).prod(-1)
    area_b = (b_xyxy[..., 2:] - b_xyxy[..., :2]).clamp(min=0).prod(-1)
    union = area_a + area_b - intersection
    iou = intersection / union.clamp(min=1e-9)
    outer_low = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    outer_high = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull = (outer_high - outer_low).clamp(min=0).prod(-1)
    return iou, iou - (hull - union) / hull.clamp(min=1e-9)
