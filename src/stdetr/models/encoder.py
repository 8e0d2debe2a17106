"""Spatio-temporal deformable encoder: every token samples a few points of its own and neighbouring frames.

Shape legend: B clips, T frames, S tokens of a frame, C width, F sampled frames.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stdetr.models.attention import STDeformableAttention
from stdetr.models.draws import ClipDropout
from stdetr.models.neck import Tokens
from stdetr.models.window import Window


class FeedForward(nn.Module):
    """Two linear layers with ReLU, residual and LayerNorm after (post-norm, as in Deformable DETR)."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = ClipDropout(dropout)
        for linear in (self.expand, self.contract):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.contract(self.expand(x).relu())))


class EncoderLayer(nn.Module):
    """Deformable self-attention of the tokens across space, scales and the frames of the window; feed-forward."""

    def __init__(self, *, attention: STDeformableAttention, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.norm = nn.LayerNorm(attention.width)
        self.dropout = ClipDropout(dropout)
        self.feed_forward = FeedForward(attention.width, feed_forward, dropout)

    def forward(
        self, features_BTSC: Tensor, tokens: Tokens, window: Window, before_BTSC: Tensor | None = None
    ) -> Tensor:
        """before: the layer's input on earlier frames, which come first in ``window``; None = there are none"""
        clips, frames, count, _ = features_BTSC.shape
        sampled_BTSC = features_BTSC if before_BTSC is None else torch.cat((before_BTSC, features_BTSC), 1)
        value = self.attention.values(sampled_BTSC, tokens.valid)
        query = features_BTSC + tokens.position[:, None]
        sampled = window.frames.shape[-1]
        reference = tokens.centres[:, None, :, None].expand(-1, frames, -1, sampled, -1).flatten(1, 2)
        where = repeat(window.frames, "b t f -> b (t s) f", s=count)
        dt, frame_logits = None, None
        if not window.self_only:
            dt = repeat(window.dt, "b t f -> b (t s) f", s=count)
            here, there = query.transpose(1, 2), sampled_BTSC.transpose(1, 2)
            frame_logits = self.attention.frame_logits(here, there, window.frames)
            if frame_logits is not None:
                frame_logits = rearrange(frame_logits, "b s h t f -> b (t s) h f")
        update = self.attention(
            query.flatten(1, 2), reference, value, tokens.shapes, tokens.valid_ratios, where, dt, frame_logits
        )
        update = rearrange(update, "b (t s) c -> b t s c", t=frames)
        return self.feed_forward(self.norm(features_BTSC + self.dropout(update)))


class Encoder(nn.Module):
    """A stack of encoder layers; ``layers=0`` passes the tokens through.

    window: frames to each side that a token samples (None: the whole clip); its cost per frame does not depend on T
    causal: sample only the token's own and earlier frames
    frame_weights: ``content``: the token at the same place of a sampled frame enters the weight of that frame; see
        ``STDeformableAttention``
    checkpointing: recompute each layer in the backward pass instead of keeping its activations
    """

    def __init__(
        self,
        *,
        width: int = 256,
        heads: int = 8,
        levels: int = 4,
        points: int = 4,
        layers: int = 6,
        feed_forward: int = 1024,
        dropout: float = 0.1,
        window: int | None = 1,
        causal: bool = False,
        reach: int = 8,
        frame_weights: str = "distance",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if frame_weights == "content" and layers and window == 0:
            raise ValueError("model.detector.encoder.frame_weights=content has no effect with model.window=0")
        self.layers = nn.ModuleList(
            EncoderLayer(
                attention=STDeformableAttention(
                    width=width, heads=heads, levels=levels, points=points, reach=reach, frame_weights=frame_weights
                ),
                feed_forward=feed_forward,
                dropout=dropout,
            )
            for _ in range(layers)
        )
        self.dropout = ClipDropout(dropout if layers else 0.0)
        self.window, self.causal, self.checkpointing = window, causal, checkpointing

    def forward(self, tokens: Tokens, frame_mask_BT: Tensor, frame_index_BT: Tensor) -> Tensor:
        """returns the memory, B,T,S,C"""
        window = Window.build(frame_mask_BT, frame_index_BT, radius=self.window, causal=self.causal)
        memory = self.dropout(tokens.features)
        for layer in self.layers:
            if self.checkpointing and self.training:
                memory = checkpoint(layer, memory, tokens, window, use_reentrant=False)
                assert isinstance(memory, Tensor)
            else:
                memory = layer(memory, tokens, window)
        return memory

    def extend(self, tokens: Tokens, frame_index_BT: Tensor, past: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """The memory of one more frame of a clip (T = 1), and the state for the next frame; causal encoders only.

        frame_index_BT: numbers of at least those earlier frames that it may sample, and then its own
        past: the state returned for the previous frame (the layers' inputs on frames that may be sampled); None for the
            first frame of a clip
        """
        assert self.causal
        memory, inputs = self.dropout(tokens.features), []
        for i, layer in enumerate(self.layers):
            before = None if past is None else past[i]
            known = memory if before is None else torch.cat((before, memory), 1)
            index = frame_index_BT[:, -known.shape[1] :]
            window = Window.build(torch.ones_like(index, dtype=torch.bool), index, radius=self.window, causal=True)
            window = replace(window, frames=window.frames[:, -1:], dt=window.dt[:, -1:])
            memory = layer(memory, tokens, window, before)
            inputs.append(known if self.window is None else known[:, max(0, known.shape[1] - self.window) :])
        return memory, inputs
