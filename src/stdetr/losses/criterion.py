"""The training criterion: everything a clip's tubes are told.

Shape legend: B clips, Q tubes, T frames, N tracks, K classes.  Boxes cxcywh normalised.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from stdetr.losses.classification import LOSSES
from stdetr.losses.dense import DenseLoss
from stdetr.losses.matcher import TubeMatcher
from stdetr.losses.normaliser import reduce_count
from stdetr.losses.packed import Matches, PackedTargets
from stdetr.models.boxes import paired_iou, to_xyxy
from stdetr.models.detector import TrainingOutput, TubePrediction
from stdetr.structures import ClipTargets, ModelOutput


class TubeCriterion:
    """Sum of weighted losses over all decoder layers, the denoising queries and the tokens.

    For each matched tube: class (``classification``: focal or varifocal; the target is 1 or, with ``quality``, the mean
    IoU of the tube), L1 and GIoU on the frames where the track is counted, presence on every frame that is not ignored.
    ``weight_frame_class`` adds the class loss of each frame's own state, so that a clip teaches as many class samples
    as its frames would; a frame where the track is absent teaches "nothing".  Unmatched tubes are told "nothing",
    except those that mostly cover ignore regions.  Box losses are divided by the number of counted boxes, class losses
    by the number of matched tubes (frames for the frame class).  A causal tube has a class on each frame: its loss is
    the mean over them, and frames before it begins take no part in any.
    """

    def __init__(
        self,
        *,
        matcher: TubeMatcher,
        dense: DenseLoss | None = None,
        classification: str = "varifocal",
        quality: bool = True,
        weight_class: float = 2.0,
        weight_box: float = 5.0,
        weight_giou: float = 2.0,
        weight_presence: float = 1.0,
        weight_frame_class: float = 1.0,
        weight_dense: float = 1.0,
        weight_denoising: float = 1.0,
        auxiliary: bool = True,
    ) -> None:
        if classification not in LOSSES:
            raise ValueError(f"criterion.classification={classification!r}; known: {', '.join(LOSSES)}")
        self.matcher, self.dense, self.loss = matcher, dense, LOSSES[classification]
        self.quality, self.auxiliary = quality, auxiliary
        self.weights = {
            "class": weight_class,
            "box": weight_box,
            "giou": weight_giou,
            "presence": weight_presence,
            "frame_class": weight_frame_class,
        }
        self.weight_dense, self.weight_denoising = weight_dense, weight_denoising

    def __call__(self, output: ModelOutput, targets: Sequence[ClipTargets]) -> tuple[Tensor, dict[str, Tensor]]:
        """returns the total and every weighted term by name (``class``, ``box_0``, ``dn_class``, ``dense_giou``)"""
        training = output.losses_input
        assert isinstance(training, TrainingOutput), "call the model with targets to train it"
        packed = PackedTargets.pack(targets)
        terms: dict[str, Tensor] = {}
        last = len(training.layers) - 1
        for i, prediction in enumerate(training.layers):
            if i < last and not self.auxiliary:
                continue
            matches = self.matcher(prediction.logits, prediction.boxes, packed)
            suffix = "" if i == last else f"_{i}"
            for name, value in self.tubes(prediction, matches, packed, training.frame_mask).items():
                terms[name + suffix] = self.weights[name] * value
        if training.denoising_track is not None and training.denoising_positive is not None:
            matches = denoising_matches(training.denoising_track, training.denoising_positive)
            real = training.denoising_track >= 0
            for i, prediction in enumerate(training.denoising):
                suffix = "" if i == last else f"_{i}"
                found = self.tubes(prediction, matches, packed, training.frame_mask, counted=real)
                for name, value in found.items():
                    terms["dn_" + name + suffix] = self.weight_denoising * self.weights[name] * value
        if self.dense is not None and training.dense is not None:
            found = self.dense(
                training.dense, training.token_valid, training.token_centres, training.frame_mask, packed
            )
            for name, value in found.items():
                terms["dense_" + name] = self.weight_dense * self.weights[name] * value
        return torch.stack(list(terms.values())).sum(), terms

    def tubes(
        self,
        prediction: TubePrediction,
        matches: Matches,
        targets: PackedTargets,
        frame_mask: Tensor,
        counted: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Unweighted losses of one layer.  counted: B,Q bool, tubes that exist at all (None = every one)."""
        clip, tube, track = matches.clip, matches.tube, matches.track
        boxes, valid = targets.boxes[clip, track], targets.valid[clip, track]  # M,T,4 and M,T
        exists = (
            torch.ones_like(prediction.presence, dtype=torch.bool) if prediction.exists is None else prediction.exists
        )
        valid = valid & exists[clip, tube]
        ignored, labels = targets.ignored[clip, track], targets.labels[clip, track]
        predicted = prediction.boxes[clip, tube]
        iou, giou = paired_iou(to_xyxy(predicted), to_xyxy(boxes))
        frames = valid.float()
        boxes_count = reduce_count(frames.sum())
        tubes_count = reduce_count(frames.new_tensor(len(matches)))

        weight = self._not_ignored(prediction.boxes, targets) * exists
        if counted is not None:
            weight = weight * counted[..., None]
        tube_weight = (weight.sum(-1) > 0).float()
        tube_weight[clip, tube] = 1.0
        target = torch.zeros_like(prediction.logits)
        if target.ndim == 3:
            mean_iou = (iou.detach() * frames).sum(1) / frames.sum(1).clamp(min=1)
            target[clip, tube, labels] = mean_iou.clamp(min=0.01) if self.quality else torch.ones_like(mean_iou)
            class_loss = self.loss(prediction.logits, target).sum(-1)
        else:
            # On each frame what the frames up to it have shown: nothing until the track was there once.
            seen = frames.cumsum(1)
            mean_iou = (iou.detach() * frames).cumsum(1) / seen.clamp(min=1)
            soft = mean_iou.clamp(min=0.01) if self.quality else torch.ones_like(mean_iou)
            target[clip, tube, :, labels] = soft * (seen > 0)
            counted_frames = weight * frame_mask[:, None]
            counted_frames[clip, tube] = (exists[clip, tube] & frame_mask[clip]).float()
            class_loss = (self.loss(prediction.logits, target).sum(-1) * counted_frames).sum(-1)
            class_loss = class_loss / counted_frames.sum(-1).clamp(min=1)
        result = {"class": (class_loss * tube_weight).sum() / tubes_count}
        if self.weights["frame_class"] > 0:
            wanted = torch.zeros_like(prediction.frame_logits)  # B,Q,T,K
            soft = iou.detach().clamp(min=0.01) if self.quality else torch.ones_like(iou)
            m, t = torch.nonzero(valid, as_tuple=True)
            wanted[clip[m], tube[m], t, labels[m]] = soft[m, t]
            frame_weight = weight * frame_mask[:, None]
            frame_weight[clip, tube] = (~ignored).float() * frame_mask[clip] * exists[clip, tube]
            frame_loss = self.loss(prediction.frame_logits, wanted).sum(-1)
            result["frame_class"] = (frame_loss * frame_weight).sum() / boxes_count
        result["box"] = ((predicted - boxes).abs().sum(-1) * frames).sum() / boxes_count
        result["giou"] = ((1 - giou) * frames).sum() / boxes_count
        asked = (~ignored) & frame_mask[clip] & exists[clip, tube]
        presence = functional.binary_cross_entropy_with_logits(
            prediction.presence[clip, tube], frames, reduction="none"
        )
        result["presence"] = (presence * asked).sum() / reduce_count(asked.sum())
        return result

    @staticmethod
    @torch.no_grad()
    def _not_ignored(boxes_BQT4: Tensor, targets: PackedTargets) -> Tensor:
        """B,Q,T float: 0 where more than half of the tube's box lies in an ignore region of that frame."""
        if not bool(targets.ignored.any()):
            return torch.ones(boxes_BQT4.shape[:3], device=boxes_BQT4.device)
        predicted, wanted = to_xyxy(boxes_BQT4)[:, :, None], to_xyxy(targets.boxes)[:, None]
        low = torch.maximum(predicted[..., :2], wanted[..., :2])
        high = torch.minimum(predicted[..., 2:], wanted[..., 2:])
        shared = (high - low).clamp(min=0).prod(-1)
        area = (predicted[..., 2:] - predicted[..., :2]).clamp(min=1e-6).prod(-1)
        covered = (shared / area > 0.5) & targets.ignored[:, None]
        return (~covered.any(2)).float()


def denoising_matches(track_BQ: Tensor, positive_Q: Tensor) -> Matches:
    """Each positive denoising query is matched to the track it was made from."""
    clip, tube = torch.nonzero((track_BQ >= 0) & positive_Q, as_tuple=True)
    return Matches(clip, tube, track_BQ[clip, tube])
