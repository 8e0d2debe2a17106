"""Hungarian matching of whole tubes to annotated tracks.

Shape legend: B clips, Q tubes, N tracks of a clip, T frames, K classes.  Boxes cxcywh normalised.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from stdetr.losses.packed import Matches, PackedTargets
from stdetr.models.boxes import paired_iou, to_xyxy


class TubeMatcher:
    """One tube per track, at the lowest total cost (DETR, Carion et al. 2020; whole tubes as in VisTR and SeqFormer).

    cost = cost_class x focal class cost + mean over the track's counted frames of
           (cost_box x L1 of cxcywh + cost_giou x (1 - GIoU))

    A track without a counted frame (absent, or ignored throughout) is not matched.
    """

    def __init__(
        self,
        *,
        cost_class: float = 2.0,
        cost_box: float = 5.0,
        cost_giou: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        if cost_class == cost_box == cost_giou == 0:
            raise ValueError("matcher: at least one of cost_class, cost_box, cost_giou must not be 0")
        self.cost_class, self.cost_box, self.cost_giou = cost_class, cost_box, cost_giou
        self.alpha, self.gamma = alpha, gamma

    @torch.no_grad()
    def cost(self, logits: Tensor, boxes: Tensor, targets: PackedTargets) -> Tensor:
        """logits B,Q,K, or B,Q,T,K (averaged over the track's counted frames); boxes B,Q,T,4 -> B,Q,N float32; the
        columns of tracks that are not counted are meaningless."""
        weight = targets.valid.float() / targets.valid.sum(-1, keepdim=True).clamp(min=1)
        weight = weight[:, None]
        probability = logits.float().sigmoid()
        negative = (1 - self.alpha) * probability**self.gamma * -(1 - probability + 1e-8).log()
        positive = self.alpha * (1 - probability) ** self.gamma * -(probability + 1e-8).log()
        queries = logits.shape[1]
        labels = targets.labels[:, None].expand(-1, queries, -1)
        classes = positive - negative
        if classes.ndim == 3:
            classes = classes.gather(2, labels)
        else:
            classes = classes.gather(3, labels[:, :, None].expand(-1, -1, logits.shape[2], -1))
            classes = (classes.transpose(2, 3) * weight).sum(-1)
        cost = self.cost_class * classes
        predicted, target_boxes = boxes.float()[:, :, None], targets.boxes[:, None]  # B,Q,1,T,4 and B,1,N,T,4
        l1 = ((predicted - target_boxes).abs().sum(-1) * weight).sum(-1)
        giou = (paired_iou(to_xyxy(predicted), to_xyxy(target_boxes))[1] * weight).sum(-1)
        return cost + self.cost_box * l1 + self.cost_giou * (1 - giou)

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, targets: PackedTargets) -> Matches:
        """logits B,Q,K; boxes B,Q,T,4 -> pairs of the whole batch, ordered by clip and tube."""
        cost = self.cost(logits, boxes, targets).cpu().numpy()
        counted = targets.counted.cpu().numpy()
        # Outputs that have diverged: any match will do, since the loss is not finite either.
        cost = np.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6)
        clips, tubes, tracks = [], [], []
        for i, columns in enumerate(counted):
            usable = np.flatnonzero(columns)
            rows, chosen = linear_sum_assignment(cost[i][:, usable])
            clips.append(np.full(len(rows), i))
            tubes.append(rows)
            tracks.append(usable[chosen])
        device = logits.device
        return Matches(*(torch.from_numpy(np.concatenate(part)).long().to(device) for part in (clips, tubes, tracks)))
