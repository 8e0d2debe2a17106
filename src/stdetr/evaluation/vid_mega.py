"""ImageNet VID AP50 as MEGA computes it: where its rules differ from the devkit's.

The rules are those of MEGA (Chen et al., "Memory Enhanced Global-Local Aggregation", 2020) and of the systems built
on its code: a fixed threshold of 0.5, one pixel added twice to every width and height, and everything computed per
class, including which ground truth is outside a motion range.

Shape legend
    n detections of one class       g annotations of one class      p pairs of both
"""

from __future__ import annotations

import numpy as np

from stdetr.evaluation.matching import Pairs
from stdetr.evaluation.vid import VidEvaluator


class VidMegaEvaluator(VidEvaluator):
    """``vid_mega/AP50`` and, with ``motion``, ``vid_mega/AP50_fast|medium|slow``; per class as well."""

    name = "vid_mega"
    rule = "ImageNet VID AP50 as in MEGA: threshold 0.5, widths and heights + 2 pixels, area under the curve"
    grow = 2.0
    class_by_class = True

    def thresholds(self, boxes: np.ndarray) -> np.ndarray:
        return np.full(len(boxes), 0.5)

    def ranking(self, image: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Equal scores: later images come first and inside an image the later detection chooses first, which is how
        MEGA's reversed sort leaves them."""
        order = np.lexsort((-image, -scores))
        image, scores, turn = image[order], scores[order], np.arange(len(order))
        if not len(order):
            return order, turn
        # Number the runs of equal score and image backwards.
        fresh = np.concatenate([[True], (scores[1:] != scores[:-1]) | (image[1:] != image[:-1])])
        start = np.flatnonzero(fresh)
        stop = np.append(start[1:], len(order))
        run = np.cumsum(fresh) - 1
        return order, start[run] + stop[run] - 1 - turn

    def preference(self, pairs: Pairs, ignored: np.ndarray) -> tuple[np.ndarray, ...]:
        """On equal IoU the first ground truth in the motion range, otherwise the last one out of it."""
        out = ignored[pairs.gt]
        return (np.where(out, -pairs.gt, pairs.gt), out, -pairs.iou)
