"""Random draws in training that depend only on the clip, not on the process or on the other clips of the batch.

Shape legend: B clips, N rows (B x T, clip by clip), Q queries, H heads, C width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional


def mix(*numbers: int) -> int:
    """Mix several numbers into one 63-bit seed, by the finaliser of splitmix64 (Steele et al. 2014)."""
    state = 0
    for number in numbers:
        state = (state ^ number) * 0xBF58476D1CE4E5B9 + 0x9E3779B97F4A7C15 & (1 << 64) - 1
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
        state = (state ^ state >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
        state ^= state >> 31
    return state >> 1


class ClipRandom(nn.Module):
    """A module that uses a separate random generator for each clip of a batch.

    seeds: one for each clip, set by :func:`seed_clips` before each forward pass; None: the global generator
    """

    seeds: tuple[int, ...] | None = None

    def uniform(self, clips: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """B,*shape float32 in [0, 1), the same numbers on every device."""
        if self.seeds is None:
            return torch.rand(clips, *shape).to(device)
        assert len(self.seeds) == clips, f"{len(self.seeds)} seeds for {clips} clips"
        rows = [torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in self.seeds]
        return torch.stack(rows).to(device, non_blocking=True)


def seed_clips(model: nn.Module, seeds: Sequence[int]) -> None:
    """Make every random module of ``model`` use these seeds, one per clip, in the next forward pass."""
    drawing = [module for module in model.modules() if isinstance(module, ClipRandom)]
    for number, module in enumerate(drawing):
        module.seeds = tuple(mix(seed, number) for seed in seeds)


class ClipDropout(ClipRandom):
    """Dropout (Srivastava et al. 2014) of x N,..., whose first axis holds the clips one after the other.

    A mask depends only on the clip's seed, so a layer that is recomputed in the backward pass drops the same values.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"model.dropout={p} must lie in [0, 1)")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.seeds is None:
            return functional.dropout(x, self.p)
        kept = torch.empty(len(self.seeds), x.numel() // len(self.seeds), dtype=x.dtype, device=x.device)
        for row, seed in zip(kept, self.seeds, strict=True):
            row.bernoulli_(1 - self.p, generator=torch.Generator(x.device).manual_seed(seed))
        return x * kept.div_(1 - self.p).view(x.shape)


class TubeAttention(nn.MultiheadAttention):
    """Multi-head attention N,Q,C between queries, with dropout of the weights by each clip's seed."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(width, heads, batch_first=True)
        self.drop = ClipDropout(dropout)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        absent: Tensor | None = None,
    ) -> Tensor:
        """attn_mask: Q,Q bool, or N x H,Q,Q, True = not attended; absent: N,Q bool, True = attended by no query"""
        if not self.training or self.drop.p == 0:
            mixed, _ = super().forward(
                query, key, value, need_weights=False, attn_mask=attn_mask, key_padding_mask=absent
            )
            return mixed
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            rearrange(functional.linear(x, w, b), "n q (h c) -> n h q c", h=self.num_heads)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        scores = (q * self.head_dim**-0.5) @ k.transpose(-1, -2)
        if attn_mask is not None:
            mask = attn_mask if attn_mask.ndim == 2 else attn_mask.view(-1, self.num_heads, *attn_mask.shape[-2:])
            scores = scores.masked_fill(mask, float("-inf"))
        if absent is not None:
            scores = scores.masked_fill(absent[:, None, None], float("-inf"))
        mixed = self.drop(scores.softmax(-1)) @ v
        return self.out_proj(rearrange(mixed, "n h q c -> n q (h c)"))
