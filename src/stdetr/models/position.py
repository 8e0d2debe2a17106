"""Sine position embeddings of feature maps and of boxes.

Shape legend: N frames (B x T), h x w feature map, C width; sizes in tokens.
The formulas are those of DETR (Carion et al. 2020) with the half-token shift of Deformable DETR (Zhu et al. 2020).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _frequencies(features: int, temperature: float, device: torch.device) -> Tensor:
    index = torch.arange(features, device=device, dtype=torch.float32)
    return temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / features)


def _interleave(angle: Tensor) -> Tensor:
    """``... x features`` angles -> sine on even and cosine on odd features."""
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2)


def sine_map(valid_Nhw: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Position of each token inside the unpadded part of its map.

    valid_Nhw: bool, True on tokens that are not padding
    returns N,h,w,width float32: width/2 features of y, then width/2 of x
    """
    mask = valid_Nhw.float()
    y, x = mask.cumsum(1), mask.cumsum(2)
    # Half a token back, so that the position is the token's centre; scaled to a full turn over the valid extent.
    y = (y - 0.5) / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
    x = (x - 0.5) / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
    frequencies = _frequencies(width // 2, temperature, valid_Nhw.device)
    return torch.cat((_interleave(y[..., None] / frequencies), _interleave(x[..., None] / frequencies)), dim=-1)


def sine_box(box: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Embedding of boxes or points.

    box: ...,n float (n = 4: cxcywh, n = 2: cxcy) normalised to [0,1]
    returns ...,n * width/2 float32, the coordinates in their order
    """
    frequencies = _frequencies(width // 2, temperature, box.device)
    angle = box.float()[..., None] * (2 * math.pi) / frequencies
    return _interleave(angle).flatten(-2)
