"""Exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """Average of parameters and buffers, with a warm-up: decay(step) = min(decay, (1 + step) / (10 + step)).

    Integer buffers are copied.  ``model`` is the averaged module, in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"trainer.ema_decay={decay} must lie between 0 and 1 (or be null for no averaging)")
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.step = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        self.step += 1
        averaged, current = [], []
        for mine, theirs in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if mine.is_floating_point():
                averaged.append(mine)
                current.append(theirs.to(mine.device))
            else:
                mine.copy_(theirs)
        torch._foreach_lerp_(averaged, current, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def state_dict(self) -> dict:
        return {"model": self.model.state_dict(), "step": self.step}

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.step = state["step"]
