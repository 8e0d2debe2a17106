"""Ignore regions and federated annotation: which unmatched detections do not count.

Federated data sets (LVIS, Gupta et al., 2019; TAO, Dave et al., 2020; LV-VIS, Wang et al., 2023) annotate some classes
of each video.  Their rule: a detection of a class that a video neither shows nor lists among ``neg_category_ids`` is
left out; where a class is among ``not_exhaustive_category_ids``, a detection that matches no annotation is ignored.

Shape legend
    n detections of one class       r ignore regions of that class
"""

from __future__ import annotations

import numpy as np

from stdetr.evaluation.ground_truth import GroundTruth
from stdetr.evaluation.matching import ImageJoin

INSIDE = 0.5
"""A detection of which more than this share lies in one ignore region is ignored unless it matches an object."""


def ignored_unless_matched(gt: GroundTruth, category: int, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """n bool: detections (image n, boxes n,4 xywh) in an ignore region of their class, or of a class that is not
    exhaustively annotated in their video."""
    return _inside_regions(gt, category, image, boxes) | not_exhaustive(gt, gt.image_video[image], category)


def not_exhaustive(gt: GroundTruth, video: np.ndarray, category: int) -> np.ndarray:
    """n bool: detections (in these videos, n) of a class whose objects are not all annotated there."""
    if gt.federation is None:
        return np.zeros(len(video), dtype=bool)
    return ~gt.federation.exhaustive[video, category]


def _inside_regions(gt: GroundTruth, category: int, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    out = np.zeros(len(image), dtype=bool)
    if gt.region is None:
        return out
    regions = np.flatnonzero(gt.region & (gt.category == category))
    join = ImageJoin(gt.image[regions], len(gt.image_ids))
    for pairs in join.overlaps(image, boxes, gt.boxes[regions], crowd=np.ones(len(regions), dtype=bool)):
        out[pairs.det[pairs.iou > INSIDE]] = True
    return out


def region_note(gt: GroundTruth) -> str:
    """How evaluators extend the public rules, which have no ignore regions; empty without ignore regions."""
    if gt.region is None:
        return ""
    return (
        f"an extension of the public rules: the {int(gt.region.sum())} ignore regions are not objects, and an "
        "unmatched detection that lies by more than half in one of its class counts as nothing"
    )


def federation_note(gt: GroundTruth, unmatched: str = "count as nothing") -> str:
    """How evaluators treat classes that were not annotated; empty where everything is annotated.

    unmatched: what happens to unmatched detections of classes that are not annotated exhaustively
    """
    if gt.federation is None:
        return ""
    return (
        "federated annotation, by the rule of LVIS and TAO: detections of classes that a video neither shows nor lists "
        f"in neg_category_ids are left out, unmatched ones of its not_exhaustive_category_ids {unmatched}"
    )
