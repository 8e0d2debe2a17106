"""The tube decoder: one state and one box per tube and frame, refined by each layer.

Shape legend
    B clips, T frames, Q tubes, C width, S tokens of a frame, F sampled frames, L levels, H heads
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from stdetr.models.attention import STDeformableAttention
from stdetr.models.draws import ClipDropout, TubeAttention
from stdetr.models.encoder import FeedForward
from stdetr.models.heads import BoxHead, MultiLayerPerceptron
from stdetr.models.neck import Tokens
from stdetr.models.position import sine_box
from stdetr.models.window import Window


@dataclass(frozen=True)
class DecoderState:
    """After one layer.  states B,Q,T,C; boxes B,Q,T,4 cxcywh in [0,1], with gradient."""

    states: Tensor
    boxes: Tensor


class FrameAttention(nn.Module):
    """A tube's states attend to each other across the frames of the clip.

    Pre-norm with an output projection that starts at zero, so that it starts as the identity; with one frame there is
    nothing to attend to and it is skipped, so that a single frame is Deformable DETR throughout training.  A bias per
    head over |dt| tells near frames from far ones.  causal: a state attends only to its own and earlier frames; the
    first frame of a tube is then skipped like a single one.
    """

    def __init__(self, *, width: int, heads: int, reach: int, causal: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(heads, reach + 1))
        self.heads, self.reach, self.causal = heads, reach, causal
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(
        self,
        states_BQTC: Tensor,
        position_BQTC: Tensor,
        frame_mask_BT: Tensor,
        index_BT: Tensor,
        exists_BQT: Tensor | None,
    ) -> Tensor:
        clips, tubes, frames, width = states_BQTC.shape
        if frames == 1:
            return states_BQTC
        x = self.norm(states_BQTC)
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = q + position_BQTC, k + position_BQTC
        q, k, v = (rearrange(y, "b q t (h d) -> (b q) h t d", h=self.heads) for y in (q, k, v))
        distance = (index_BT[:, None, :] - index_BT[:, :, None]).long()  # B,T,T: sampled minus current frame
        bias = self.bias[:, distance.abs().clamp(max=self.reach)].movedim(0, 1)  # B,H,T,T
        allowed = frame_mask_BT[:, None, None, :].expand(-1, 1, frames, -1)
        if self.causal:
            allowed = allowed & (distance <= 0)[:, None]
        same_frame = torch.eye(frames, dtype=torch.bool, device=allowed.device)
        bias = bias.masked_fill(~(allowed | same_frame), float("-inf"))
        bias = repeat(bias.to(q.dtype), "b h t s -> (b q) h t s", q=tubes)  # ONNX knows attention over four axes only
        if exists_BQT is not None:
            bias = bias.masked_fill(~(exists_BQT.flatten(0, 1)[:, None, None] | same_frame), float("-inf"))
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        update = self.output(rearrange(y, "(b q) h t d -> b q t (h d)", b=clips))
        if self.causal:
            others = ((bias > float("-inf")) & ~same_frame).any(-1).any(1)
            update = update.masked_fill(~rearrange(others, "(b q) t -> b q t 1", b=clips), 0.0)
        return states_BQTC + update


class DecoderLayer(nn.Module):
    """Self-attention across tubes, attention across the frames of a tube, deformable cross-attention, feed-forward."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        levels: int,
        points: int,
        feed_forward: int,
        dropout: float,
        reach: int,
        causal: bool,
        frame_weights: str,
    ) -> None:
        super().__init__()
        self.self_attention = TubeAttention(width, heads, dropout)
        self.self_norm = nn.LayerNorm(width)
        self.frame_attention = FrameAttention(width=width, heads=heads, reach=reach, causal=causal)
        self.cross_attention = STDeformableAttention(
            width=width, heads=heads, levels=levels, points=points, reach=reach, frame_weights=frame_weights
        )
        self.cross_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, feed_forward, dropout)
        self.dropout = ClipDropout(dropout)

    def forward(
        self,
        states_BQTC: Tensor,
        position_BQTC: Tensor,
        references_BQTn: Tensor,
        memory_BTSC: Tensor,
        tokens: Tokens,
        window: Window,
        frame_mask_BT: Tensor,
        index_BT: Tensor,
        blocked_QQ: Tensor | None,
        exists_BQT: Tensor | None,
    ) -> Tensor:
        clips, tubes, frames, _ = states_BQTC.shape
        content = rearrange(states_BQTC, "b q t c -> (b t) q c")
        keyed = content + rearrange(position_BQTC, "b q t c -> (b t) q c")
        absent = None if exists_BQT is None else rearrange(~exists_BQT, "b q t -> (b t) q")
        mixed = self.self_attention(keyed, keyed, content, attn_mask=blocked_QQ, absent=absent)
        states = self.self_norm(content + self.dropout(mixed))
        states = rearrange(states, "(b t) q c -> b q t c", b=clips)
        states = self.frame_attention(states, position_BQTC, frame_mask_BT, index_BT, exists_BQT)

        # The reference on a sampled frame is the tube's own box there, so that sampling follows the motion.
        where = repeat(window.frames, "b t f -> b q t f", q=tubes)
        if exists_BQT is not None:
            there = exists_BQT.gather(2, where.clamp(min=0).flatten(2)).view_as(where)
            where = torch.where(there, where, -1)
        boxes_here = references_BQTn[:, :, :, None, :].expand(-1, -1, -1, where.shape[-1], -1)
        query = states + position_BQTC
        frame_logits = None
        if window.self_only:
            reference, dt = boxes_here, None
        else:
            gather = where.clamp(min=0).flatten(2)[..., None].expand(-1, -1, -1, references_BQTn.shape[-1])
            reference = references_BQTn.gather(2, gather).view_as(boxes_here)
            dt = repeat(window.dt, "b t f -> b (q t) f", q=tubes)
            frame_logits = self.cross_attention.frame_logits(query, states, window.frames)
            if frame_logits is not None:
                frame_logits = rearrange(frame_logits, "b q h t f -> b (q t) h f")
        update = self.cross_attention(
            query.flatten(1, 2),
            reference.flatten(1, 2),
            self.cross_attention.values(memory_BTSC, tokens.valid),
            tokens.shapes,
            tokens.valid_ratios,
            where.flatten(1, 2),
            dt,
            frame_logits,
        )
        update = rearrange(update, "b (q t) c -> b q t c", q=tubes)
        return self.feed_forward(self.cross_norm(states + self.dropout(update)))


class Decoder(nn.Module):
    """Layers, box refinement and the position embedding of the tubes.

    refine: every layer corrects the boxes (Deformable DETR's iterative refinement); otherwise the reference is fixed
        and each layer's head predicts from it
    position: ``fixed`` keeps the queries' own embedding through all layers (Deformable DETR), ``boxes`` computes it
        from each layer's boxes (DAB-DETR, Liu et al. 2022), which moving tubes need
    look_forward_twice: a layer's loss reaches the previous layer through the boxes (DINO, Zhang et al. 2022)
    window: frames to each side that a tube's state on one frame samples (None: the whole clip)
    causal: a state attends to and samples only its own and earlier frames, and tubes see only tubes that have begun
    frame_weights: ``content``: the tube's own state on a sampled frame enters the weight of that frame; see
        ``STDeformableAttention``
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
        window: int | None = None,
        causal: bool = False,
        reach: int = 8,
        refine: bool = True,
        position: str = "boxes",
        look_forward_twice: bool = False,
        frame_weights: str = "distance",
    ) -> None:
        super().__init__()
        if position not in ("boxes", "fixed"):
            raise ValueError(f"model.decoder.position must be 'boxes' or 'fixed', got {position!r}")
        if width % heads:
            raise ValueError(f"model.width={width} must be a multiple of model.heads={heads}")
        if look_forward_twice and not refine:
            raise ValueError("model.detector.decoder.look_forward_twice=true has no effect with refine=false")
        if frame_weights == "content" and window == 0:
            raise ValueError("model.detector.decoder.frame_weights=content has no effect with model.decoder_window=0")
        self.layers = nn.ModuleList(
            DecoderLayer(
                width=width,
                heads=heads,
                levels=levels,
                points=points,
                feed_forward=feed_forward,
                dropout=dropout,
                reach=reach,
                causal=causal,
                frame_weights=frame_weights,
            )
            for _ in range(layers)
        )
        self.box_heads = nn.ModuleList(BoxHead(width) for _ in range(layers if refine else 1))
        self.position_head = MultiLayerPerceptron(2 * width, width, width, 2) if position == "boxes" else None
        self.refine, self.look_forward_twice = refine, look_forward_twice
        self.window, self.causal, self.width = window, causal, width

    def forward(
        self,
        states_BQTC: Tensor,
        references_BQTn: Tensor,
        position_BQTC: Tensor | None,
        memory_BTSC: Tensor,
        tokens: Tokens,
        frame_mask_BT: Tensor,
        index_BT: Tensor,
        blocked_QQ: Tensor | None = None,
        exists_BQT: Tensor | None = None,
    ) -> list[DecoderState]:
        """
        references_BQTn: n = 2 (points) or 4 (cxcywh) in [0,1] of the unpadded frame, float32
        position_BQTC: the queries' own embedding; needed where ``position`` is ``fixed``
        blocked_QQ: bool, True where a tube must not see another (denoising groups)
        exists_BQT: bool, False on frames before a tube begins, where its states are undefined; None = all True
        returns one DecoderState per layer
        """
        window = Window.build(frame_mask_BT, index_BT, radius=self.window, causal=self.causal)
        results: list[DecoderState] = []
        references, base = references_BQTn.float(), references_BQTn.float()
        states = states_BQTC
        for i, layer in enumerate(self.layers):
            if self.position_head is not None:
                boxes = references if references.shape[-1] == 4 else nn.functional.pad(references, (0, 2))
                position = self.position_head(sine_box(boxes.detach(), self.width).to(states.dtype))
            else:
                assert position_BQTC is not None, "position='fixed' needs queries with an embedding"
                position = position_BQTC
            states = layer(
                states,
                position,
                references.detach(),
                memory_BTSC,
                tokens,
                window,
                frame_mask_BT,
                index_BT,
                blocked_QQ,
                exists_BQT,
            )
            head = self.box_heads[i if self.refine else 0]
            refined = head(states, base).sigmoid()
            results.append(DecoderState(states, refined))
            if self.refine:
                references = refined.detach()
                base = refined if self.look_forward_twice else references
        return results
