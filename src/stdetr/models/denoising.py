"""Contrastive denoising for tubes: extra training queries made from noised ground truth.

Shape legend: B clips, N tracks of a clip, G groups, Q = G x 2 x max N denoising queries, T frames, C width.

DN-DETR (Li et al. 2022) and DINO (Zhang et al. 2022), extended to tubes: part of the noise is shared by all frames of
a tube and part is drawn per frame, so that queries have the kind of error that linked proposals have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stdetr.models.boxes import to_cxcywh, to_xyxy
from stdetr.models.draws import ClipRandom
from stdetr.structures import ClipTargets


@dataclass(frozen=True)
class DenoisingQueries:
    """states B,Q,T,C; references B,Q,T,4 cxcywh in [0,1]; blocked Q+M,Q+M bool for the M matching queries that follow;
    track B,Q int64 (the track a query was made from, -1 = padding); positive Q bool; exists B,Q,T bool or None: the
    track has been annotated on that frame or earlier (causal)."""

    states: Tensor
    references: Tensor
    blocked: Tensor
    track: Tensor
    positive: Tensor
    exists: Tensor | None = None


class TubeDenoising(ClipRandom):
    """Makes the denoising queries of a batch.

    queries: approximate number per clip; the number of groups follows from the clip with the most tracks
    label_noise: probability of a random label; box_noise: largest corner shift as a share of half the box side, for
        positives; negatives are shifted by one to two times that
    frame_share: share of the noise that is drawn per frame
    causal: a query begins on its track's first frame and knows only the boxes of earlier frames
    most: largest number of tracks in a clip, where other processes hold clips of the same batch
    """

    def __init__(
        self,
        *,
        classes: int,
        width: int = 256,
        queries: int = 100,
        label_noise: float = 0.25,
        box_noise: float = 0.5,
        frame_share: float = 0.3,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.labels = nn.Embedding(classes, width)
        self.classes, self.queries = classes, queries
        self.label_noise, self.box_noise, self.frame_share = label_noise, box_noise, frame_share
        self.causal, self.most = causal, 0

    def forward(self, targets: Sequence[ClipTargets], matching: int) -> DenoisingQueries | None:
        """None when no clip of the batch, on any process, has a track that counts."""
        device = self.labels.weight.device
        kept = [torch.nonzero(t.valid.any(1)).flatten() for t in targets]
        most = max(self.most, *(len(k) for k in kept))
        if most == 0:
            return None
        groups = max(1, self.queries // (2 * most))
        clips, frames = len(targets), targets[0].boxes.shape[1]
        slots = groups * 2 * most
        boxes = torch.full((clips, most, frames, 4), 0.5, device=device)
        labels = torch.zeros(clips, most, dtype=torch.int64, device=device)
        track = torch.full((clips, most), -1, dtype=torch.int64, device=device)
        exists = torch.ones(clips, most, frames, dtype=torch.bool, device=device)
        for i, (target, keep) in enumerate(zip(targets, kept, strict=True)):
            if len(keep):
                boxes[i, : len(keep)] = fill_absent(target.boxes[keep], target.valid[keep], self.causal)
                if self.causal:
                    exists[i, : len(keep)] = target.valid[keep].cummax(1).values
                labels[i, : len(keep)] = target.labels[keep]
                track[i, : len(keep)] = keep
        # Queries in the order group, positive then negative, track.
        boxes, labels = boxes.repeat(1, 2 * groups, 1, 1), labels.repeat(1, 2 * groups)
        track = track.repeat(1, 2 * groups)
        positive = torch.tensor([True] * most + [False] * most, device=device).repeat(groups)

        noise = self.uniform(clips, (slots, 10 + 4 * frames), device)
        flip = noise[..., 0] < self.label_noise
        labels = torch.where(flip, (noise[..., 1] * self.classes).long(), labels)
        sign = noise[..., None, 2:6].round() * 2 - 1
        shared = (noise[..., None, 6:10] + (~positive).float()[None, :, None, None]) * sign
        per_frame = (noise[..., 10:].view(clips, slots, frames, 4) * 2 - 1) * self.frame_share
        half = boxes[..., 2:].repeat(1, 1, 1, 2) / 2
        corners = to_xyxy(boxes) + (shared * (1 - self.frame_share) + per_frame) * half * self.box_noise
        low = torch.minimum(corners[..., :2], corners[..., 2:]).clamp(0, 1)
        high = torch.maximum(corners[..., :2], corners[..., 2:]).clamp(0, 1)
        references = to_cxcywh(torch.cat((low, high), -1)).clamp(1e-3, 1 - 1e-3)

        total = slots + matching
        blocked = torch.zeros(total, total, dtype=torch.bool, device=device)
        blocked[slots:, :slots] = True  # matching queries must not see the answers
        group = torch.arange(slots, device=device) // (2 * most)
        blocked[:slots, :slots] = group[:, None] != group[None, :]
        states = self.labels(labels)[:, :, None].expand(-1, -1, frames, -1)
        exists = exists.repeat(1, 2 * groups, 1) if self.causal else None
        return DenoisingQueries(states, references, blocked, track, positive, exists)


def fill_absent(boxes_NT4: Tensor, valid_NT: Tensor, causal: bool = False) -> Tensor:
    """Fill in boxes on frames without one from the nearest frame that has one (the earlier on a tie).

    Each track needs at least one box.  causal: from the nearest earlier frame, where there is one.
    """
    frames = boxes_NT4.shape[1]
    time = torch.arange(frames, device=boxes_NT4.device)
    gap = (time[None, :] - time[:, None]).float()
    gap = torch.where(gap > 0, gap + frames, -gap) if causal else gap.abs()
    gap = gap[None].expand(len(boxes_NT4), -1, -1)
    nearest = gap.masked_fill(~valid_NT[:, None, :], float("inf")).argmin(-1)
    return boxes_NT4.gather(1, nearest[..., None].expand(-1, -1, 4))
