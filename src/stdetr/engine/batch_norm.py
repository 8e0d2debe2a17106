"""Batch normalisation over the batch of all processes.

Shape legend: N frames, C channels, h, w pixels of the feature map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SharedBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose statistics in training are those of the whole batch, on GPUs and on the CPU
    (``nn.SyncBatchNorm`` supports only GPUs)."""

    def forward(self, input: Tensor) -> Tensor:
        """N,C,h,w -> the same"""
        if not self.training:
            return super().forward(input)
        x = input.float()
        # Sums per channel and the number of values in them: processes may hold different numbers of clips.
        sums = torch.cat((x.sum((0, 2, 3)), x.new_tensor([x.numel() / x.shape[1]])))
        sums = all_reduce(sums)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        variance = all_reduce((x - mean[:, None, None]).square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]).to(input.dtype)


def share_statistics(module: nn.Module) -> None:
    """Turn each trainable batch normalisation in ``module`` into a :class:`SharedBatchNorm2d`, in place."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = SharedBatchNorm2d
