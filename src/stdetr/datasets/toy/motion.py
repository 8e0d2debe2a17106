"""Smooth accelerated paths of the toy benchmark's objects.  T frames of a video."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stdetr.datasets.toy.settings import ToyObjects


@dataclass(frozen=True)
class Path2D:
    """Pose of one object: ``centre`` T,2 (x, y) px, ``angle`` T radians, ``radius`` T px (half the nominal size)."""

    centre: np.ndarray
    angle: np.ndarray
    radius: np.ndarray


def _smooth_walk(rng: np.random.Generator, frames: int, deviation: float) -> np.ndarray:
    """T,2 correlated random accelerations (first-order autoregressive, correlation 0.8 between frames)."""
    steps = rng.normal(0.0, deviation * np.sqrt(1 - 0.8**2), size=(frames, 2))
    steps[0] /= np.sqrt(1 - 0.8**2)
    for t in range(1, frames):
        steps[t] += 0.8 * steps[t - 1]
    return steps


def draw_path(rng: np.random.Generator, objects: ToyObjects, frames: int, frame_size: int) -> Path2D:
    """A path with smooth acceleration, scale change and rotation.

    Beyond a margin a spring pulls the object back.  For a share ``leave`` of objects the margin lies outside the
    frame by more than the object's size, so that they disappear and come back; for the others it lies inside.
    """
    size = rng.uniform(*objects.size)
    phase, cycles = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.9)
    time = np.arange(frames)
    change = rng.uniform(0, objects.scale_change) * np.sin(phase + 2 * np.pi * cycles * time / max(frames, 2))
    radius = np.clip(0.5 * size * (1 + change), 0.5 * objects.size[0], 0.5 * objects.size[1])
    leaves = rng.random() < objects.leave
    margin = rng.uniform(0.6, 1.1) * radius.max() if leaves else -rng.uniform(0.3, 1.0) * radius.max()
    low, high = -margin, frame_size + margin
    position = rng.uniform(0.1, 0.9, size=2) * frame_size
    heading, speed = rng.uniform(0, 2 * np.pi), rng.uniform(*objects.speed)
    if leaves:
        # Head for the nearest border, so that there is time to come back.
        side = int(np.argmax(np.abs(position - frame_size / 2)))
        outward = np.sign(position[side] - frame_size / 2) or 1.0
        heading = (0.0 if outward > 0 else np.pi) if side == 0 else (np.pi / 2 if outward > 0 else -np.pi / 2)
        heading += rng.uniform(-0.6, 0.6)
        speed = rng.uniform(0.5 * sum(objects.speed), objects.speed[1])
    velocity = speed * np.array([np.cos(heading), np.sin(heading)])
    acceleration = _smooth_walk(rng, frames, objects.acceleration)
    centre = np.empty((frames, 2))
    for t in range(frames):
        centre[t] = position
        overshoot = np.minimum(position - low, 0) + np.maximum(position - high, 0)
        # Objects slow down and turn within a few frames of the margin.
        velocity = velocity + acceleration[t] - 0.35 * overshoot
        length = float(np.hypot(*velocity))
        velocity *= np.clip(length, objects.speed[0], objects.speed[1]) / max(length, 1e-6)
        position = position + velocity
    angle = rng.uniform(0, 2 * np.pi) + np.deg2rad(rng.uniform(-objects.turn, objects.turn)) * time
    return Path2D(centre=centre, angle=angle, radius=radius)
