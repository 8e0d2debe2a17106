"""Overlap of paired boxes.

Shape legend
    p pairs of boxes, xywh in pixels
"""

from __future__ import annotations

import numpy as np


def paired_intersection(a: np.ndarray, b: np.ndarray, grow: float = 0.0) -> np.ndarray:
    """p: intersection of ``a`` and ``b`` (p,4 xywh); ``grow`` is added to every width and height.

    The ImageNet VID devkit counts inclusive pixels, which is ``grow=1``; COCO's boxes are continuous, ``grow=0``.
    """
    width = np.minimum(a[:, 0] + a[:, 2], b[:, 0] + b[:, 2]) - np.maximum(a[:, 0], b[:, 0]) + grow
    height = np.minimum(a[:, 1] + a[:, 3], b[:, 1] + b[:, 3]) - np.maximum(a[:, 1], b[:, 1]) + grow
    np.maximum(width, 0, out=width)
    np.maximum(height, 0, out=height)
    width *= height
    return width


def paired_iou(a: np.ndarray, b: np.ndarray, grow: float = 0.0, over_a: np.ndarray | None = None) -> np.ndarray:
    """p: intersection over union of ``a`` and ``b`` (p,4 xywh), 0 for two empty boxes.

    ``over_a`` (p bool) divides by the area of ``a`` alone there: COCO's rule for a detection ``a`` in a crowd ``b``.
    """
    inter = paired_intersection(a, b, grow)
    area_a = (a[:, 2] + grow) * (a[:, 3] + grow)
    union = area_a + (b[:, 2] + grow) * (b[:, 3] + grow) - inter
    if over_a is not None:
        union = np.where(over_a, area_a, union)
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
