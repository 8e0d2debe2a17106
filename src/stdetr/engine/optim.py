"""Parameter groups, optimiser and learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

SCHEDULES = ("cosine", "step", "constant")


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """AdamW with groups, warm-up and a schedule over the whole run.

    backbone_factor, offset_factor: learning rate of the backbone, and of the sampling-offset and reference-point
        projections, relative to ``lr`` (Deformable DETR trains both at 0.1)
    warmup: steps of linear warm-up (a fraction of the run when below 1)
    schedule: ``cosine`` to ``final_factor``, ``step`` (x 0.1 at each fraction in ``drops``), ``constant``
    clip_norm: gradients are scaled down to this norm; 0 = never
    """

    lr: float = 2e-4
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    backbone_factor: float = 0.1
    offset_factor: float = 0.1
    warmup: float = 0.02
    schedule: str = "cosine"
    final_factor: float = 0.01
    drops: tuple[float, ...] = (0.8,)
    clip_norm: float = 0.1

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ValueError(f"optim.schedule={self.schedule!r}; known: {', '.join(SCHEDULES)}")
        if self.lr <= 0:
            raise ValueError(f"optim.lr={self.lr} must be positive")

    def groups(self, model: nn.Module) -> list[dict]:
        """Named parameter groups; only the weights of linear maps and convolutions are decayed.

        Biases, norms, embeddings and the tables over time are not.
        """
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if name.startswith("backbone."):
                kind = "backbone"
            elif any(part in name for part in ("sampling_offsets", "velocity", "offset_table", "queries.reference")):
                kind = "offsets"
            else:
                kind = "main"
            decayed = parameter.ndim > 1 and name.endswith("weight") and id(parameter) not in embeddings
            groups.setdefault((kind, decayed), []).append(parameter)
        factor = {"main": 1.0, "backbone": self.backbone_factor, "offsets": self.offset_factor}
        return [
            {
                "params": parameters,
                "lr": self.lr * factor[kind],
                "weight_decay": self.weight_decay if decayed else 0.0,
                "name": kind if decayed else f"{kind}_no_decay",
            }
            for (kind, decayed), parameters in sorted(groups.items(), key=lambda item: str(item[0]))
        ]

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.groups(model), lr=self.lr, betas=self.betas)

    def set_rates(self, optimizer: Any, step: int, max_steps: int) -> None:
        """Set the learning rates of ``step``."""
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * self.factor(step, max_steps)

    def factor(self, step: int, max_steps: int) -> float:
        """Learning rate of ``step`` relative to the base rate."""
        warmup = self.warmup * max_steps if self.warmup < 1 else self.warmup
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1.0, max_steps - warmup))
        if self.schedule == "cosine":
            return self.final_factor + (1 - self.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "step":
            return 0.1 ** sum(step >= drop * max_steps for drop in self.drops)
        return 1.0
