"""Classification losses on sigmoid logits.

Shape legend: ... leading axes, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Element-wise focal loss (Lin et al. 2017) for hard or soft targets.

    For a soft target q the modulation is |q - p|^gamma (quality focal loss, Li et al. 2020), which is the focal loss at
    q in {0, 1}; ``alpha`` weighs positives against negatives in proportion to q.
    """
    p = logits.sigmoid()
    cross_entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    balance = alpha * target + (1 - alpha) * (1 - target)
    return balance * (target - p).abs() ** gamma * cross_entropy


def varifocal_loss(logits: Tensor, target: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """Element-wise varifocal loss (Zhang et al. 2021): positives weigh their quality, negatives are modulated."""
    p = logits.sigmoid().detach()
    weight = torch.where(target > 0, target, alpha * p**gamma)
    return weight * functional.binary_cross_entropy_with_logits(logits, target, reduction="none")


LOSSES = {"focal": focal_loss, "varifocal": varifocal_loss}
