"""Faster R-CNN (Ren et al., arXiv 1506.01497) on a feature pyramid (Lin et al., arXiv 1612.03144), for comparison.

torchvision's parts on this project's backbone and neck, trained and evaluated by the same loop.

Shape legend
    B frames, each a clip with T = 1     Q detections of a frame, padded     N classes     h, w padded size in pixels
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from stdetr.models.boxes import logit, to_cxcywh, to_xyxy
from stdetr.models.detector import NEVER, ClipDetector
from stdetr.models.neck import Neck, Tokens
from stdetr.structures import ClipTargets, ModelOutput


class FasterRcnn(nn.Module):
    """Region proposals over the neck's levels, then class and box of each; single frames only.

    Backbone and neck are ``ClipDetector``'s, so that only what comes after the features differs.

    hidden: channels of the box head
    scales: sides of the anchors in strides of their level; each in the aspects 1:2, 1:1 and 2:1
    detections: the most that a frame may have, at least the score ``min_score``
    nms: IoU above which the weaker of two detections of a class is dropped

    The other settings are torchvision's defaults.  ``losses_input`` holds the four losses by name.  Ignore regions
    count as background, as torchvision knows none.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        neck: Neck | Callable[..., Neck],
        classes: int,
        hidden: int = 512,
        scales: Sequence[float] = (1.5, 3.0),
        detections: int = 100,
        min_score: float = 0.001,
        nms: float = 0.5,
    ) -> None:
        super().__init__()
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
        from torchvision.models.detection.roi_heads import RoIHeads
        from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
        from torchvision.ops import MultiScaleRoIAlign

        self.backbone, self.classes, self.detections = backbone, classes, detections
        self.neck = neck if isinstance(neck, Neck) else neck(channels=backbone.channels)
        self.neck.level_embed = None
        self.first_stride = int(backbone.strides[0])  # pyright: ignore[reportIndexIssue, reportOptionalSubscript, reportGeneralTypeIssues]
        strides = [self.first_stride * 2**level for level in range(len(self.neck.projections))]
        anchors = AnchorGenerator(
            tuple(tuple(scale * stride for scale in scales) for stride in strides),  # pyright: ignore[reportArgumentType]
            ((0.5, 1.0, 2.0),) * len(strides),
        )
        self.rpn = RegionProposalNetwork(
            anchors,
            RPNHead(self.neck.width, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": 2000, "testing": 1000},
            nms_thresh=0.7,
        )
        self.roi_heads = RoIHeads(
            MultiScaleRoIAlign([str(level) for level in range(len(strides))], output_size=7, sampling_ratio=2),
            TwoMLPHead(self.neck.width * 7 * 7, hidden),
            FastRCNNPredictor(hidden, classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=512,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=min_score,
            nms_thresh=nms,
            detections_per_img=detections,
        )

    def forward(
        self,
        frames: Tensor,
        sizes: Tensor | None = None,
        frame_mask: Tensor | None = None,
        frame_index: Tensor | None = None,
        targets: Sequence[ClipTargets] | None = None,
    ) -> ModelOutput:
        """Arguments as for ``ClipDetector``, with one frame per clip; raises ValueError for more."""
        return self.detect(self.features(frames, sizes), frame_mask, frame_index, targets)

    features = ClipDetector.features

    def detect(
        self,
        tokens: Tokens,
        frame_mask: Tensor | None = None,
        frame_index: Tensor | None = None,
        targets: Sequence[ClipTargets] | None = None,
    ) -> ModelOutput:
        """A detection is a query with the logit of its score at its class, and no chance at the others."""
        from torchvision.models.detection.image_list import ImageList

        count, frames = tokens.features.shape[:2]
        if frames != 1:
            raise ValueError(f"model=faster_rcnn detects on single frames: set data.frames=1 (got clips of {frames})")
        levels = tokens.features[:, 0].split([height * width for height, width in tokens.shapes], dim=1)
        maps = {
            str(number): level.transpose(1, 2).unflatten(2, shape)
            for number, (level, shape) in enumerate(zip(levels, tokens.shapes, strict=True))
        }
        padded = [side * self.first_stride for side in tokens.shapes[0]]
        ratios = tokens.valid_ratios[:, 0].tolist()  # x, y
        shapes = [(round(padded[0] * y), round(padded[1] * x)) for x, y in ratios]
        known = None if targets is None else [_known(one, size) for one, size in zip(targets, shapes, strict=True)]
        # Of the images only the size is needed, and where and in which precision anchors are made.
        images = ImageList(tokens.features.new_empty(count, 0, *padded), shapes)
        proposals, first = self.rpn(images, maps, known)
        found, second = self.roi_heads(maps, proposals, shapes, known)
        if not found:  # torchvision gives no detections in training
            nothing = {"boxes": tokens.features.new_zeros(0, 4), "scores": tokens.features.new_zeros(0)}
            found = [nothing | {"labels": torch.zeros(0, dtype=torch.int64, device=images.tensors.device)}] * count
        return self._output(found, shapes, tokens.features, {**first, **second} if self.training else None)

    def _output(
        self,
        found: list[dict[str, Tensor]],
        shapes: list[tuple[int, int]],
        like: Tensor,
        losses: dict[str, Tensor] | None,
    ) -> ModelOutput:
        """The detections as tubes of one frame."""
        count = len(shapes)
        logits = like.new_full((count, self.detections, self.classes), NEVER)
        boxes = like.new_full((count, self.detections, 1, 4), 0.5)
        presence = like.new_full((count, self.detections, 1), NEVER)
        for n, (one, (height, width)) in enumerate(zip(found, shapes, strict=True)):
            rows = torch.arange(len(one["scores"]), device=like.device)
            logits[n, rows, one["labels"] - 1] = logit(one["scores"]).to(like.dtype)
            scale = one["boxes"].new_tensor([width, height, width, height])
            boxes[n, rows, 0] = to_cxcywh(one["boxes"] / scale).to(like.dtype)
            presence[n, rows, 0] = -NEVER
        return ModelOutput(logits, logits[:, :, None], boxes, presence, losses)


def _known(targets: ClipTargets, size: tuple[int, int]) -> dict[str, Tensor]:
    """A frame's annotated boxes (xyxy px of the unpadded frame) and labels (from 1) in torchvision's form."""
    height, width = size
    seen = targets.valid[:, 0]
    boxes = to_xyxy(targets.boxes[seen, 0])
    return {"boxes": boxes * boxes.new_tensor([width, height, width, height]), "labels": targets.labels[seen] + 1}


class OwnLosses:
    """The criterion of a model that computes its losses itself: their sum."""

    def __call__(self, output: ModelOutput, targets: Sequence[ClipTargets]) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and the terms by name."""
        terms = output.losses_input
        assert isinstance(terms, dict), "the model is in training and gives its losses"
        return torch.stack(list(terms.values())).sum(), terms
