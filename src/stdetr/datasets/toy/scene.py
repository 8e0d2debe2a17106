"""One video of the toy benchmark: paints the layers and derives the annotations from them.

Shape legend
    T frames of a video     h, w height and width in pixels     P side of a square patch     N objects

Annotation rule.  A box is the extent of the object's whole silhouette (occluded parts included), clipped to the
frame.  An object has no box on a frame where less than ``min_inside`` of its area lies inside the frame, or where
less than ``min_visible`` of the part inside is not covered by other objects and bars.  Degradations never remove
a box: detectors should still find the object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stdetr.datasets.toy.background import draw_background, draw_bars, draw_distractors
from stdetr.datasets.toy.degradation import degrade, draw_schedule
from stdetr.datasets.toy.motion import draw_path
from stdetr.datasets.toy.settings import ToyBackground, ToyDegradation, ToyObjects, ToySplit
from stdetr.datasets.toy.sprites import SPRITE_CLASSES, Layer, draw_sprite, outline_boxes, render_sprite


@dataclass(frozen=True)
class Scene:
    """A finished video.

    frames:     T,h,w,3 uint8 RGB
    labels:     N int, index into ``SPRITE_CLASSES``
    boxes:      N,T,4 float64 xyxy px, clipped to the frame
    annotated:  N,T bool
    visibility: N,T float64, uncovered share of the area inside the frame
    degradation: T kinds or None
    """

    frames: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    annotated: np.ndarray
    visibility: np.ndarray
    degradation: list[str | None]


def _overlap(layer: Layer, t: int, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Slices of the frame and of the patch where they overlap on frame ``t``; None where they do not."""
    y, x = (int(value) for value in layer.corner[t])
    height, width = layer.alpha.shape[1:]
    y1, x1, y2, x2 = max(y, 0), max(x, 0), min(y + height, size), min(x + width, size)
    if y1 >= y2 or x1 >= x2:
        return None
    return (slice(y1, y2), slice(x1, x2)), (slice(y1 - y, y2 - y), slice(x1 - x, x2 - x))


def _paint(frames: np.ndarray, layer: Layer) -> np.ndarray:
    """Blend a layer over the frames (T,h,w,3) in place; returns its coverage T,h,w in 0-1."""
    coverage = np.zeros(frames.shape[:3], dtype=np.float32)
    for t in range(len(frames)):
        place = _overlap(layer, t, frames.shape[1])
        if place is None:
            continue
        inside, patch = place
        alpha = layer.alpha[t][patch]
        coverage[t][inside] = alpha
        target = frames[t][inside]
        target += alpha[..., None] * (layer.rgb[t][patch] - target)
    return coverage


def draw_scene(
    rng: np.random.Generator,
    *,
    classes: int,
    frames: int,
    size: int,
    split: ToySplit,
    objects: ToyObjects,
    background: ToyBackground,
    degradation: ToyDegradation,
) -> Scene:
    """Draw one video; equal generators give equal videos."""
    canvas = draw_background(rng, background, split, frames, size)
    level = canvas.mean(axis=(0, 1, 2))
    for layer in draw_distractors(rng, background, level, frames, size):
        _paint(canvas, layer)
    empty = canvas.copy()

    count = int(rng.integers(int(objects.count[0]), int(objects.count[1]) + 1))
    labels = rng.integers(classes, size=count)
    whole = np.empty((count, frames, 4))
    inside = np.empty((count, frames))
    coverage = []
    for n, label in enumerate(labels):
        path = draw_path(rng, objects, frames, size)
        sprite = draw_sprite(rng, SPRITE_CLASSES[label], objects, split)
        layer = render_sprite(sprite, path)
        coverage.append(_paint(canvas, layer))
        whole[n] = outline_boxes(sprite, path)
        inside[n] = coverage[n].sum(axis=(1, 2)) / layer.alpha.sum(axis=(1, 2))
    bars = [_paint(canvas, layer) for layer in draw_bars(rng, background, level, frames, size)]

    visibility = np.zeros((count, frames))
    uncovered = np.ones_like(canvas[..., 0])
    for bar in bars:
        uncovered *= 1 - bar
    for n in reversed(range(count)):
        area = coverage[n].sum(axis=(1, 2))
        visibility[n] = (coverage[n] * uncovered).sum(axis=(1, 2)) / np.maximum(area, 1e-6)
        uncovered *= 1 - coverage[n]

    schedule = draw_schedule(rng, degradation, frames)
    for t, kind in enumerate(schedule):
        if kind is not None:
            canvas[t] = degrade(rng, degradation, kind, canvas[t], empty[t], whole[inside[:, t] > 0, t])
    annotated = (inside >= objects.min_inside) & (visibility >= objects.min_visible)
    return Scene(
        frames=np.clip(np.rint(canvas), 0, 255).astype(np.uint8),
        labels=labels,
        boxes=np.clip(whole, 0, size),
        annotated=annotated,
        visibility=visibility,
        degradation=schedule,
    )
