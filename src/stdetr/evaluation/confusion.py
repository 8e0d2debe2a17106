"""Which class the detector gives to the objects of each class.

Shape legend
    C classes       g annotated boxes       p pairs of a detection and an annotated box of its frame
"""

from __future__ import annotations

import numpy as np

from stdetr.evaluation.matching import ImageJoin
from stdetr.evaluation.protocol import Inputs

IOU = 0.5


def confusion(inputs: Inputs) -> np.ndarray:
    """C,C+1 int64: annotated boxes by their class and the class of the most confident detection on them.

    A detection of whatever class lies on a box from an IoU of 0.5 on; the last column counts boxes without one.  Of
    equal scores the first detection counts.  Ignore regions and crowds are left out.
    """
    gt, found = inputs.gt, inputs.detections
    classes = len(gt.category_ids)
    best = np.full(len(gt.boxes), -np.inf)
    given = np.full(len(gt.boxes), classes)
    for pairs in ImageJoin(gt.image, len(gt.image_ids)).overlaps(found.image, found.boxes, gt.boxes):
        near = pairs.take(pairs.iou >= IOU)
        # By box, then score: the last pair of each box is its best.  Of equal scores the first detection comes last.
        near = near.take(np.lexsort((-near.det, found.scores[near.det], near.gt)))
        last = np.flatnonzero(np.append(near.gt[1:] != near.gt[:-1], len(near.gt) > 0))
        box, det = near.gt[last], near.det[last]
        better = found.scores[det] > best[box]
        best[box[better]], given[box[better]] = found.scores[det[better]], found.category[det[better]]
    counted = ~gt.crowd
    out = np.zeros((classes, classes + 1), np.int64)
    np.add.at(out, (gt.category[counted], given[counted]), 1)
    return out
