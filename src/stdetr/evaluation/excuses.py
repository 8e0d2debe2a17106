"""Detections that are neither right nor wrong: inside ignore regions, or of classes that nobody looked for.

Federated data sets (LVIS, Gupta et al., 2019; TAO, Dave et al., 2020; LV-VIS, Wang et al., 2023) annotate some classes
of each video.  Their rule: a detection of a class that a video neither shows nor lists among ``neg_category_ids`` is
left out; where a class is among ``not_exhaustive_category_ids``, a detection that matches no annotation is ignored.

Shape legend
    V videos    C categories    n detections    A annotations   r ignore regions    p pairs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .boxes import paired_intersection
from .columns import index_of
from .matching import ImageJoin, chunks

if TYPE_CHECKING:
    from .ground_truth import GroundTruth

INSIDE = 0.5
"""A detection of which more than this share lies in an ignore region is excused."""
PAIRS = 1 << 20  # pairs whose overlaps are held at a time


@dataclass(frozen=True, repr=False)
class Federation:
    """What was looked for in which video.

    scored: V,C bool, the class is annotated in the video or known to be absent
    exhaustive: V,C bool, every object of the class is annotated
    """

    scored: np.ndarray
    exhaustive: np.ndarray


def read_federation(
    videos: Sequence[dict[str, Any]],
    category_ids: np.ndarray,
    annotated: tuple[np.ndarray, np.ndarray],
    what: str,
) -> Federation | None:
    """The federation of the records ``videos`` (V); None when no record has one of the two keys.

    annotated: video and category (positions, A each) of the annotations.  A video without the keys is fully annotated.
    Raises ValueError for a list that names no category.
    """
    keys = ("neg_category_ids", "not_exhaustive_category_ids")
    if not any(key in record for record in videos for key in keys):
        return None
    partly = np.array([any(key in record for key in keys) for record in videos])
    scored = np.repeat(~partly[:, None], len(category_ids), axis=1)
    scored[annotated] = True
    exhaustive = np.ones_like(scored)
    for key, table, value in ((keys[0], scored, True), (keys[1], exhaustive, False)):
        for video, record in enumerate(videos):
            listed = record.get(key) or []
            if not isinstance(listed, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in listed):
                raise ValueError(
                    f"{what} videos record {video}: {key} is {listed!r}, it must be a list of category ids"
                )
            table[video, index_of(category_ids, np.array(listed, np.int64), key, f"{what} videos")] = value
    return Federation(scored, exhaustive)


def inside_regions(gt: GroundTruth, category: int, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """n bool: more than half of the box (n,4 xywh) lies in one ignore region of that class in its image (n)."""
    out = np.zeros(len(image), dtype=bool)
    if gt.region is None:
        return out
    mine = np.flatnonzero(gt.region & (gt.category == category))
    join = ImageJoin(gt.image[mine], len(gt.image_ids))
    area = boxes[:, 2].astype(np.float64) * boxes[:, 3]
    for start, stop in chunks(join.counts[image], PAIRS):
        d, r = join.pairs(image[start:stop])
        d += start
        shared = paired_intersection(boxes[d].astype(np.float64), gt.boxes[mine[r]])
        out[d[shared > INSIDE * area[d]]] = True
    return out


def not_exhaustive(gt: GroundTruth, video: np.ndarray, category: int) -> np.ndarray:
    """n bool: detections (in these videos, n) of a class whose objects are not all annotated there."""
    if gt.federation is None:
        return np.zeros(len(video), dtype=bool)
    return ~gt.federation.exhaustive[video, category]


def excused(gt: GroundTruth, category: int, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """n bool: detections of one class that are ignored unless they match an object."""
    return inside_regions(gt, category, image, boxes) | not_exhaustive(gt, gt.image_video[image], category)


def region_note(gt: GroundTruth) -> str:
    """What an evaluator without ignore regions of its own does about them; empty where there are none."""
    if gt.region is None:
        return ""
    return (
        f"an extension of the public rules: the {int(gt.region.sum())} ignore regions are no objects, and an unmatched "
        "detection that lies by more than half in one of its class counts as nothing"
    )


def federation_note(gt: GroundTruth) -> str:
    """What is done about classes that nobody looked for; empty where everything is annotated."""
    if gt.federation is None:
        return ""
    return (
        "federated annotation, by the rule of LVIS and TAO: detections of classes that a video neither shows nor lists "
        "in neg_category_ids are left out, unmatched ones of its not_exhaustive_category_ids count as nothing"
    )
