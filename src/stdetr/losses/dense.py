"""Supervision of every token, frame by frame.

Shape legend: B clips, T frames, S tokens of a frame, N tracks, K classes.  Boxes cxcywh normalised.

A clip has far fewer matched queries than its frames would have as single images; the tokens restore that supervision.
Task-aligned assignment (TOOD, Feng et al. 2021): each box takes the tokens inside it with the highest p^a x IoU^b.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stdetr.losses.classification import varifocal_loss
from stdetr.losses.normaliser import reduce_count
from stdetr.losses.packed import PackedTargets
from stdetr.models.boxes import paired_iou, to_xyxy
from stdetr.models.queries import DenseOutput


class DenseLoss:
    """Class (varifocal, target = alignment scaled to the best IoU of its box), L1 and GIoU of the tokens.

    positives: tokens per box; alpha, beta: exponents of the class score and the IoU in the alignment; floor: minimum
        quality of a box's best token, which decides how fast classes are learned while boxes are still poor
    Tokens whose centre lies in an ignore region are left out of the class loss, unless they are positive.
    """

    def __init__(self, *, positives: int = 8, alpha: float = 1.0, beta: float = 4.0, floor: float = 0.05) -> None:
        self.positives, self.alpha, self.beta, self.floor = positives, alpha, beta, floor

    def __call__(
        self,
        dense: DenseOutput,
        valid_BS: Tensor,
        centres_BS2: Tensor,
        frame_mask_BT: Tensor,
        targets: PackedTargets,
    ) -> dict[str, Tensor]:
        """returns ``class``, ``box``, ``giou``: float32 scalars, each normalised by the summed quality of the positives

        ``dense`` may be of any precision: the loss is computed in float32.
        """
        logits, boxes = dense.logits.float(), dense.boxes.float()
        track, score = self.assign(logits, boxes, valid_BS, centres_BS2, targets)
        b, t, s = torch.nonzero(track >= 0, as_tuple=True)
        chosen, weight = track[b, t, s], score[b, t, s]
        quality = torch.zeros_like(logits)
        quality[b, t, s, targets.labels[b, chosen]] = weight
        counted = valid_BS[:, None] & frame_mask_BT[..., None]
        if bool(targets.ignored.any()):
            hidden = _inside(centres_BS2, targets.boxes) & targets.ignored[..., None]
            counted = counted & ~(hidden.any(1) & (track < 0))
        norm = reduce_count(weight.sum())
        loss = varifocal_loss(logits, quality).sum(-1)
        predicted, target_boxes = boxes[b, t, s], targets.boxes[b, chosen, t]
        giou = paired_iou(to_xyxy(predicted), to_xyxy(target_boxes))[1]
        return {
            "class": (loss * counted).sum() / norm,
            "box": ((predicted - target_boxes).abs().sum(-1) * weight).sum() / norm,
            "giou": ((1 - giou) * weight).sum() / norm,
        }

    @torch.no_grad()
    def assign(
        self, logits: Tensor, boxes: Tensor, valid_BS: Tensor, centres_BS2: Tensor, targets: PackedTargets
    ) -> tuple[Tensor, Tensor]:
        """The track each token is assigned to (B,T,S int64, -1 = none), and its quality in [0,1] (B,T,S)."""
        clips, frames, tokens, _ = boxes.shape
        tracks = targets.labels.shape[1]
        target_boxes = targets.boxes.transpose(1, 2)  # B,T,N,4
        iou = paired_iou(to_xyxy(target_boxes)[:, :, :, None], to_xyxy(boxes)[:, :, None])[0].clamp(min=0)  # B,T,N,S
        labels = targets.labels[:, None, None].expand(-1, frames, tokens, -1)
        score = logits.sigmoid().gather(3, labels).transpose(2, 3)  # B,T,N,S
        inside = _inside(centres_BS2, targets.boxes).transpose(1, 2)  # B,T,N,S
        # A box too small to hold a token centre takes the nearest token.
        distance = (target_boxes[:, :, :, None, :2] - centres_BS2[:, None, None]).square().sum(-1)
        real = valid_BS[:, None, None]
        distance = distance.masked_fill(~real, float("inf"))
        nearest = torch.nn.functional.one_hot(distance.argmin(-1), tokens).bool()
        inside = torch.where((inside & real).any(-1, keepdim=True), inside, nearest)
        usable = inside & real & targets.valid.transpose(1, 2)[..., None]
        # The small distance term decides while the boxes are still uninformative, and breaks ties by geometry.
        aligned = (score.clamp(min=1e-4) ** self.alpha) * ((iou + 1e-3) ** self.beta) * (1 - distance.clamp(max=0.9))
        aligned = aligned.masked_fill(~usable, 0.0)
        best = aligned.topk(min(self.positives, tokens), dim=-1).indices
        chosen = torch.zeros_like(usable).scatter_(-1, best, torch.ones_like(best, dtype=torch.bool)) & usable
        # A token that several boxes claim goes to the one it overlaps most.
        claim = torch.where(chosen, iou + 1e-6, torch.zeros_like(iou))
        strongest, track = claim.max(2)  # B,T,S
        track = torch.where(strongest > 0, track, -1)
        mine = track[:, :, None] == torch.arange(tracks, device=track.device)[:, None]
        kept = torch.where(mine, aligned, torch.zeros_like(aligned))
        top = kept.amax(-1, keepdim=True).clamp(min=1e-12)
        best_iou = torch.where(mine, iou, torch.zeros_like(iou)).amax(-1, keepdim=True)
        quality = (kept / top * best_iou.clamp(min=self.floor)).amax(2)
        assert track.shape == (clips, frames, tokens)
        return track, quality


def _inside(centres_BS2: Tensor, boxes_BNT4: Tensor) -> Tensor:
    """B,N,T,S bool: is the token's centre inside the box?"""
    corners = to_xyxy(boxes_BNT4)[:, :, :, None]
    x, y = centres_BS2[:, None, None, :, 0], centres_BS2[:, None, None, :, 1]
    return (x > corners[..., 0]) & (x < corners[..., 2]) & (y > corners[..., 1]) & (y < corners[..., 3])
