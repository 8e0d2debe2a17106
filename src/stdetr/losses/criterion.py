"""The training criterion: the weighted sum of the losses of tubes, denoising queries and tokens.

Shape legend: B clips, Q tubes, T frames, N tracks, K classes, M matched pairs of a batch.  Boxes cxcywh normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """Sum of weighted losses over all decoder layers, the denoising queries and the tokens, in float32.

    For each matched tube: class (``classification``: focal or varifocal; the target is 1 or, with ``quality``, the mean
    IoU of the tube), L1 and GIoU on the frames where the track is counted, presence on every frame that is not ignored.
    ``weight_frame_class`` adds a class loss per frame state, so that a clip gives as many class samples as its frames
    would; where the track is absent, the target is "no class".  The target of an unmatched tube is also "no class";
    tubes that mostly cover ignore regions are left out.  Box losses are divided by the number of counted boxes, class
    losses by the number of matched tubes (counted boxes for the frame class).  A causal tube has a class per frame: its
    loss is the mean over frames, and frames before it begins are left out of every loss.

    auxiliary: the layers before the last have losses, too
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
        mask = training.frame_mask
        terms: dict[str, Tensor] = {}

        def add(losses: dict[str, Tensor], prefix: str = "", suffix: str = "", weight: float = 1.0) -> None:
            for name, value in losses.items():
                terms[prefix + name + suffix] = weight * self.weights[name] * value

        for suffix, prediction in self._layers(training.layers):
            matches = self.matcher(prediction.logits, prediction.boxes, packed)
            add(self.tubes(prediction, matches, packed, mask), suffix=suffix)
        if training.denoising_track is not None and training.denoising_positive is not None:
            matches = denoising_matches(training.denoising_track, training.denoising_positive)
            exists = training.denoising_track >= 0
            for suffix, prediction in self._layers(training.denoising):
                losses = self.tubes(prediction, matches, packed, mask, exists)
                add(losses, "dn_", suffix, self.weight_denoising)
        if self.dense is not None:
            if training.dense is None:
                raise ValueError(
                    "criterion.dense needs the predictions of tokens, which learned queries do not give; "
                    "set criterion.dense=null"
                )
            losses = self.dense(training.dense, training.token_valid, training.token_centres, mask, packed)
            add(losses, "dense_", weight=self.weight_dense)
        return torch.stack(list(terms.values())).sum(), terms

    def _layers(self, predictions: Sequence[TubePrediction]) -> list[tuple[str, TubePrediction]]:
        """The layers that have losses, each with the suffix of its terms' names (empty for the last)."""
        *before, last = predictions
        auxiliary = [(f"_{i}", prediction) for i, prediction in enumerate(before)] if self.auxiliary else []
        return [*auxiliary, ("", last)]

    def tubes(
        self,
        prediction: TubePrediction,
        matches: Matches,
        targets: PackedTargets,
        frame_mask_BT: Tensor,
        exists_BQ: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Unweighted losses of one layer.  exists_BQ: bool, False for slots that hold no tube (None: all do)."""
        pairs = _Pairs.gather(prediction, matches, targets, frame_mask_BT)
        weight_BQT = _outside_ignore_regions(prediction.boxes, targets)
        if exists_BQ is not None:
            weight_BQT = weight_BQT * exists_BQ[..., None]
        if prediction.exists is not None:
            weight_BQT = weight_BQT * prediction.exists
        counts = (pairs.counted.sum(), pairs.counted.new_tensor(len(matches)), pairs.has_presence.sum())
        boxes, tubes, presences = reduce_count(torch.stack(counts))
        result = {"class": self._class(prediction, pairs, weight_BQT, frame_mask_BT) / tubes}
        if self.weights["frame_class"] > 0:
            result["frame_class"] = self._frame_class(prediction, pairs, weight_BQT, frame_mask_BT) / boxes
        result["box"] = self._box(pairs) / boxes
        result["giou"] = self._giou(pairs) / boxes
        result["presence"] = self._presence(prediction, pairs) / presences
        return result

    def _class(self, prediction: TubePrediction, pairs: _Pairs, weight_BQT: Tensor, frame_mask_BT: Tensor) -> Tensor:
        """Sum over tubes that are matched or lie outside ignore regions on some frame."""
        weight_BQ = (weight_BQT.sum(-1) > 0).float()
        weight_BQ[pairs.clip, pairs.tube] = 1.0
        target = torch.zeros_like(prediction.logits)  # B,Q,K, or B,Q,T,K of a causal tube
        if target.ndim == 3:
            quality = (pairs.iou * pairs.counted).sum(1) / pairs.counted.sum(1).clamp(min=1)
            target[pairs.clip, pairs.tube, pairs.labels] = self._target(quality)
            return (self.loss(prediction.logits, target).sum(-1) * weight_BQ).sum()
        # Causal: the target is "no class" until the track has been present once.
        seen = pairs.counted.cumsum(1)
        quality = (pairs.iou * pairs.counted).cumsum(1) / seen.clamp(min=1)
        target[pairs.clip, pairs.tube, :, pairs.labels] = self._target(quality) * (seen > 0)
        frames_BQT = weight_BQT * frame_mask_BT[:, None]
        frames_BQT[pairs.clip, pairs.tube] = pairs.has_class.float()
        loss = (self.loss(prediction.logits, target).sum(-1) * frames_BQT).sum(-1) / frames_BQT.sum(-1).clamp(min=1)
        return (loss * weight_BQ).sum()

    def _frame_class(
        self, prediction: TubePrediction, pairs: _Pairs, weight_BQT: Tensor, frame_mask_BT: Tensor
    ) -> Tensor:
        """Sum over the frames of all tubes, without the frames on which a matched track is ignored."""
        weight_BQT = weight_BQT * frame_mask_BT[:, None]
        weight_BQT[pairs.clip, pairs.tube] = pairs.has_presence.float()
        target_BQTK = torch.zeros_like(prediction.frame_logits)
        m, t = torch.nonzero(pairs.counted, as_tuple=True)
        target_BQTK[pairs.clip[m], pairs.tube[m], t, pairs.labels[m]] = self._target(pairs.iou)[m, t]
        return (self.loss(prediction.frame_logits, target_BQTK).sum(-1) * weight_BQT).sum()

    def _target(self, iou: Tensor) -> Tensor:
        """Class target of a matched tube; never 0, which would mean "no class"."""
        return iou.clamp(min=0.01) if self.quality else torch.ones_like(iou)

    @staticmethod
    def _box(pairs: _Pairs) -> Tensor:
        return ((pairs.predicted - pairs.boxes).abs().sum(-1) * pairs.counted).sum()

    @staticmethod
    def _giou(pairs: _Pairs) -> Tensor:
        return ((1 - pairs.giou) * pairs.counted).sum()

    @staticmethod
    def _presence(prediction: TubePrediction, pairs: _Pairs) -> Tensor:
        """Cross-entropy of "the track can be seen on this frame"."""
        logits = prediction.presence[pairs.clip, pairs.tube]
        loss = functional.binary_cross_entropy_with_logits(logits, pairs.counted, reduction="none")
        return (loss * pairs.has_presence).sum()


@dataclass(frozen=True)
class _Pairs:
    """Matched tubes and their tracks.

    clip, tube, labels: M int64; predicted, boxes: M,T,4; iou (without gradient), giou: M,T
    counted: M,T float, 1 where the track has a box that counts and the tube exists
    has_class: M,T bool, real frames where the tube exists; has_presence: those where the track is not ignored, so that
        its presence is known
    """

    clip: Tensor
    tube: Tensor
    labels: Tensor
    predicted: Tensor
    boxes: Tensor
    iou: Tensor
    giou: Tensor
    counted: Tensor
    has_class: Tensor
    has_presence: Tensor

    @classmethod
    def gather(
        cls, prediction: TubePrediction, matches: Matches, targets: PackedTargets, frame_mask_BT: Tensor
    ) -> _Pairs:
        clip, tube, track = matches.clip, matches.tube, matches.track
        predicted, boxes = prediction.boxes[clip, tube], targets.boxes[clip, track]
        iou, giou = paired_iou(to_xyxy(predicted), to_xyxy(boxes))
        valid, real = targets.valid[clip, track], frame_mask_BT[clip]
        if prediction.exists is not None:
            exists = prediction.exists[clip, tube]
            valid, real = valid & exists, real & exists
        return cls(
            clip=clip,
            tube=tube,
            labels=targets.labels[clip, track],
            predicted=predicted,
            boxes=boxes,
            iou=iou.detach(),
            giou=giou,
            counted=valid.float(),
            has_class=real,
            has_presence=~targets.ignored[clip, track] & real,
        )


@torch.no_grad()
def _outside_ignore_regions(boxes_BQT4: Tensor, targets: PackedTargets) -> Tensor:
    """B,Q,T float: 0 where more than half of the tube's box lies in an ignore region of that frame."""
    if not bool(targets.ignored.any()):
        return torch.ones(boxes_BQT4.shape[:3], device=boxes_BQT4.device)
    predicted, regions = to_xyxy(boxes_BQT4)[:, :, None], to_xyxy(targets.boxes)[:, None]
    low = torch.maximum(predicted[..., :2], regions[..., :2])
    high = torch.minimum(predicted[..., 2:], regions[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (predicted[..., 2:] - predicted[..., :2]).clamp(min=1e-6).prod(-1)
    covered = (shared / area > 0.5) & targets.ignored[:, None]
    return (~covered.any(2)).float()


def denoising_matches(track_BQ: Tensor, positive_Q: Tensor) -> Matches:
    """Each positive denoising query is matched to the track it was made from."""
    clip, tube = torch.nonzero((track_BQ >= 0) & positive_Q, as_tuple=True)
    return Matches(clip, tube, track_BQ[clip, tube])
