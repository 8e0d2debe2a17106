"""Spatio-temporal deformable attention: the module around the operator.

Shape legend
    B clips, T frames, S tokens of a frame, Q queries, C = H x D width, H heads, F sampled frames, L levels, K points
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from stdetr.ops import st_deform_attn_fused, st_deform_attn_temporal
from stdetr.ops.reference import accumulation_dtype, form_samples, sampled_points, without_autocast

# psi starts large, so that phi, which starts at zero and learns from clips only, gets far: on the toy, degraded frames
# end at 0.45 of a clean frame's share, with gain 1 at 0.77 (scripts/frame_shares.py, one seed).
KEY_GAIN = 16.0


@dataclass(frozen=True)
class Samples:
    """What the operator used in one call, for figures.

    locations: B,Q,H,F,L,K,2 in [0,1] of the unpadded frame; weights: B,Q,H,F,L,K
    reference: B,Q,F,2|4, the points or boxes that it sampled around; frames: B,Q,F, the sampled frames, -1 = none
    """

    locations: Tensor
    weights: Tensor
    reference: Tensor
    frames: Tensor


class STDeformableAttention(nn.Module):
    """Attention to K learned points per head, level and frame.

    With q the query and dt the signed distance, in source frames, from the query's frame to a sampled one:

        offsets(q, dt) = W q + dt * V q + b(dt)        logits(q, dt) = A q + a(dt)

    so the parameters do not depend on the number of frames; ``st_deform_attn_temporal`` computes the sums.  b and a are
    tables over dt in [-reach, reach] (clamped beyond) without an entry at 0; V and b start at zero and a at
    ``-decay * |dt|``, so that a query initially weighs its own frame most.  With one frame this is Deformable DETR's
    module (Zhu et al. 2020), operation by operation, and its offset initialisation (a star of H directions, growing
    with the point's index) is kept.

    frame_weights: what else decides the weight of a sampled frame.  ``distance``: nothing.  ``content``: what it shows;
        all its points in head h get the logit ``phi_h(q) . psi_h(m) / sqrt(D)`` too, where m is the state at the
        query's place on that frame and phi starts at zero.  ``idle``: the parameters of ``content`` are there and
        unused, for a run that forks from one that uses them
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        levels: int,
        points: int,
        reach: int = 8,
        decay: float = 1.0,
        frame_weights: str = "distance",
    ) -> None:
        super().__init__()
        if frame_weights not in ("distance", "content", "idle"):
            raise ValueError(f"model.frame_weights={frame_weights!r} must be 'distance', 'content' or 'idle'")
        if width % heads:
            raise ValueError(f"model width {width} must be a multiple of heads={heads}")
        self.width, self.heads, self.levels, self.points, self.reach = width, heads, levels, points, reach
        count = heads * levels * points
        self.sampling_offsets = nn.Linear(width, count * 2)
        self.attention_weights = nn.Linear(width, count)
        self.velocity = nn.Linear(width, count * 2, bias=False)
        self.offset_table = nn.Parameter(torch.zeros(2 * reach, count * 2))
        self.logit_table = nn.Parameter(torch.zeros(2 * reach, count))
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.frame_query = self.frame_key = None
        self.weighs_content = frame_weights == "content"
        if frame_weights != "distance":
            # Drawn aside: the other parameters start as they do without it, and learn the same from single frames.
            with torch.random.fork_rng(devices=[]):
                self.frame_query, self.frame_key = nn.Linear(width, width), nn.Linear(width, width, bias=False)
                nn.init.xavier_uniform_(self.frame_key.weight, gain=KEY_GAIN)
            nn.init.zeros_(self.frame_query.weight)
            nn.init.zeros_(self.frame_query.bias)
        self.recorder: Callable[[Samples], None] | None = None
        self._reset(decay)

    def _reset(self, decay: float) -> None:
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        star = torch.stack((angle.cos(), angle.sin()), -1)
        star = star / star.abs().max(-1, keepdim=True).values
        growth = torch.arange(1, self.points + 1, dtype=torch.float32)
        bias = star[:, None, None, :] * growth[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())
            distance = torch.arange(1, self.reach + 1, dtype=torch.float32)
            # Rows: dt = -reach .. -1, then 1 .. reach.
            self.logit_table.copy_(
                (-decay * torch.cat((distance.flip(0), distance)))[:, None].expand_as(self.logit_table)
            )
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        nn.init.zeros_(self.velocity.weight)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def values(self, memory_BTSC: Tensor, valid_BS: Tensor) -> Tensor:
        """B,T,S,H,D values, zero on padding.  Separate from ``forward`` so that callers may share or cache it."""
        value = self.value_proj(memory_BTSC)
        value = value.masked_fill(~valid_BS[:, None, :, None], 0.0)
        return value.unflatten(-1, (self.heads, -1))

    def frame_logits(self, query_BNTC: Tensor, states_BNUC: Tensor, frames_BTF: Tensor) -> Tensor | None:
        """B,N,H,T,F float32 (float64 for float64): what each sampled frame shows to a query; None without ``content``.

        query_BNTC: queries at N places (tubes or tokens) on T frames
        states_BNUC: what is known at these places on the U frames that ``frames_BTF`` numbers, -1 = none
        """
        if not self.weighs_content or self.frame_query is None or self.frame_key is None:
            return None
        precise = accumulation_dtype(query_BNTC.dtype)
        query = rearrange(self.frame_query(query_BNTC), "b n t (h d) -> b n h t d", h=self.heads).to(precise)
        key = rearrange(self.frame_key(states_BNUC), "b n u (h d) -> b n h d u", h=self.heads).to(precise)
        with without_autocast(query.device.type):
            every = query @ key * (self.width // self.heads) ** -0.5
        index = frames_BTF.clamp(min=0)[:, None, None].expand(*every.shape[:3], -1, -1)
        return every.gather(-1, index)

    def forward(
        self,
        query_BQC: Tensor,
        reference: Tensor,
        value_BTSHD: Tensor,
        shapes: tuple[tuple[int, int], ...],
        valid_ratios: Tensor,
        frames_BQF: Tensor,
        dt_BQF: Tensor | None,
        frame_logits: Tensor | None = None,
    ) -> Tensor:
        """
        query_BQC: queries with their position embedding added
        reference: B,Q,F,2|4 float32, point or cxcywh box of the query on each sampled frame, in [0,1] of the unpadded
            frame
        frames_BQF: which of the T frames, -1 = none; dt_BQF: signed distance, None when every query samples its own
            frame only (F = 1), which leaves the temporal terms out
        frame_logits: B,Q,H,F, of the method of that name, or None
        returns B,Q,C
        """
        (clips, queries, _), clip = query_BQC.shape, value_BTSHD.shape[1]
        head_shape = (clips, queries, self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query_BQC).view(*head_shape, 2)
        logits = self.attention_weights(query_BQC).view(head_shape)
        reference = reference.float()
        given = {"frame_index": frames_BQF, "valid_ratios": valid_ratios}
        if dt_BQF is None:
            offsets, logits = offsets[:, :, :, None], logits[:, :, :, None]
            output = st_deform_attn_fused(value_BTSHD, shapes, reference, offsets, logits, **given)
        else:
            entry = (2 * self.reach, self.heads, self.levels, self.points)
            velocity = self.velocity(query_BQC).view(*head_shape, 2)
            tables = self.offset_table.view(*entry, 2), self.logit_table.view(entry)
            temporal = offsets, velocity, logits, *tables, dt_BQF
            output = st_deform_attn_temporal(
                value_BTSHD, shapes, reference, *temporal, **given, frame_logits=frame_logits
            )
            if self.recorder is not None:
                offsets, logits = form_samples(*temporal)
                if frame_logits is not None:
                    logits = logits + frame_logits[..., None, None]
        if self.recorder is not None:
            clip = value_BTSHD.shape[1]
            locations, weights = sampled_points(reference, offsets, logits, frames_BQF, valid_ratios, shapes, clip)
            locations = locations / valid_ratios[:, None, None, None, :, None]
            self.recorder(Samples(locations.detach(), weights.detach(), reference.detach(), frames_BQF))
        return self.output_proj(output)
