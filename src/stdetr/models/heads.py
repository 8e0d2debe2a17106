"""Prediction heads: class per tube, box and presence per tube and frame.

Shape legend: B clips, Q tubes, T frames, C width.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from stdetr.models.boxes import logit


class MultiLayerPerceptron(nn.Module):
    """Linear layers with ReLU between."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int) -> None:
        super().__init__()
        sizes = [inputs, *[hidden] * (layers - 1), outputs]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class BoxHead(nn.Module):
    """Correction of a reference, in logit space.  Starts at zero: the first prediction is the reference itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = MultiLayerPerceptron(width, width, 4, 3)
        last = self.mlp.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, states: Tensor, references: Tensor) -> Tensor:
        """states ...,C; references ...,2|4 in [0,1]; returns ...,4 logits of cxcywh, float32."""
        delta = self.mlp(states).float()
        base = logit(references)
        if base.shape[-1] == 4:
            return delta + base
        return torch.cat((delta[..., :2] + base, delta[..., 2:]), dim=-1)


class ClassHead(nn.Module):
    """Class logits; the bias starts at ``prior`` (Lin et al. 2017, focal loss)."""

    def __init__(self, width: int, classes: int, prior: float = 0.01) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)
        nn.init.constant_(self.linear.bias, -math.log((1 - prior) / prior))

    def forward(self, states: Tensor) -> Tensor:
        return self.linear(states)


class ClipPool(nn.Module):
    """One clip state per tube from its frame states: a learned weighted mean, as the class belongs to the clip and the
    box to the frame (SeqFormer, Wu et al. 2022).  The weights start equal; with one frame the state is the frame's.

    causal: one state per frame instead, the mean of the tube's states up to that frame
    """

    def __init__(self, width: int, causal: bool = False) -> None:
        super().__init__()
        self.weight, self.causal = nn.Linear(width, 1), causal
        nn.init.zeros_(self.weight.weight)
        nn.init.zeros_(self.weight.bias)

    def forward(self, states_BQTC: Tensor, frame_mask_BT: Tensor, exists_BQT: Tensor | None = None) -> Tensor:
        """returns B,Q,C; causal: B,Q,T,C.  exists: False on frames before a causal tube begins, None = all True"""
        frames = states_BQTC.shape[2]
        if frames == 1 and not self.causal:
            return states_BQTC[:, :, 0]
        if not self.causal:
            logits = self.weight(states_BQTC).float().masked_fill(~frame_mask_BT[:, None, :, None], float("-inf"))
            return (logits.softmax(2).to(states_BQTC.dtype) * states_BQTC).sum(2)
        usable = frame_mask_BT[:, None] if exists_BQT is None else frame_mask_BT[:, None] & exists_BQT
        past = torch.ones(frames, frames, dtype=torch.bool, device=states_BQTC.device).tril()
        same_frame = torch.eye(frames, dtype=torch.bool, device=states_BQTC.device)
        # The frame's own state always counts, so that the mean is never over nothing.
        logits = self.weight(states_BQTC).float().transpose(2, 3)  # B,Q,1,T
        logits = logits.masked_fill(~((usable[:, :, None] & past) | same_frame), float("-inf"))
        return logits.softmax(3).to(states_BQTC.dtype) @ states_BQTC
