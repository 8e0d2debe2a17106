"""COCO AP per frame.

Shape legend
    M images            n detections of one class       g ground truth of one class
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stdetr.evaluation.coco_rules import THRESHOLDS, Candidates, CocoRulesEvaluator
from stdetr.evaluation.ignored import not_exhaustive
from stdetr.evaluation.matching import ImageJoin, Pairs
from stdetr.evaluation.protocol import Inputs, Result


class CocoEvaluator(CocoRulesEvaluator):
    """``coco/AP``, ``AP50``, ``AP75``, ``AP_small|medium|large``, ``AR1``, ``AR10``, ``AR100``, ``AR_*``; and, when
    images are marked as degraded, ``AP_degraded``, ``AP50_degraded``, ``AP_clean``, ``AP50_clean``.

    The numbers are those of pycocotools to 1e-9.
    """

    name = "coco"
    rule = "COCO AP: IoU 0.50:0.95 of continuous boxes, 101 recall points, 100 detections per frame and class"
    sizes = (32, 96)

    def evaluate(self, inputs: Inputs) -> Result:
        gt = inputs.gt
        result = super().evaluate(inputs)
        result.details = {"frames": len(gt.image_ids)}
        if gt.degraded is not None:
            for name, images in (("degraded", gt.degraded), ("clean", ~gt.degraded)):
                part = super().evaluate(Inputs(gt.subset(images), inputs.detections.subset(images)))
                result.metrics |= {f"{metric}_{name}": part.metrics[metric] for metric in ("AP", "AP50")}
                result.details[f"frames_{name}"] = int(images.sum())
        return result

    def candidates(self, inputs: Inputs) -> Iterator[Candidates]:
        """``Candidates`` of each class; detections by descending score, ties by ascending image id, then as given."""
        gt, detections = inputs.gt, inputs.detections
        rank = np.empty(len(gt.image_ids), dtype=np.int64)
        rank[np.argsort(gt.image_ids, kind="stable")] = np.arange(len(gt.image_ids))
        for category in range(len(gt.category_ids)):
            rows = np.flatnonzero(detections.category == category)
            rows = rows[np.lexsort((rank[detections.image[rows]], -detections.scores[rows]))]
            gt_rows = np.flatnonzero(gt.category == category)
            image, boxes = detections.image[rows], detections.boxes[rows].astype(np.float64)
            truth, crowd = gt.boxes[gt_rows], gt.crowd[gt_rows]
            join = ImageJoin(gt.image[gt_rows], len(gt.image_ids))
            pairs = [part.take(part.iou >= THRESHOLDS[0]) for part in join.overlaps(image, boxes, truth, crowd=crowd)]
            yield Candidates(
                det_group=image,
                det_area=boxes[:, 2] * boxes[:, 3],
                det_video=gt.image_video[image].astype(np.int32),
                det_ignored=not_exhaustive(gt, gt.image_video[image], category),
                gt_area=gt.area[gt_rows],
                gt_crowd=crowd,
                gt_video=gt.video[gt_rows],
                pairs=Pairs.joined(pairs),
            )
