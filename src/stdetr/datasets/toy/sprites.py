"""Textured sprites of the toy benchmark.

Shape legend
    T frames of a video     P side of a square patch in pixels     M points of an outline

A class is a silhouette together with a texture.  A silhouette is star-shaped about its centre, so that one table
``radius(angle)`` gives the anti-aliased mask, the exact outline and thereby a box that is tight to a fraction of a
pixel.  Texture coordinates turn and scale with the object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stdetr.datasets.toy.motion import Path2D
from stdetr.datasets.toy.settings import ToyObjects, ToySplit

_ANGLES = 720
_FloatArray = np.ndarray


def _polygon_radius(corners: np.ndarray) -> np.ndarray:
    """Distance from the centre to the outline of the polygon ``corners`` (M,2) in each of ``_ANGLES`` directions."""
    angles = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    direction = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    radius = np.full(_ANGLES, np.inf)
    for start, stop in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        edge = stop - start
        # Solve s * direction = start + k * edge for s, where 0 <= k <= 1 and s > 0.
        cross = direction[:, 0] * edge[1] - direction[:, 1] * edge[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (start[0] * edge[1] - start[1] * edge[0]) / cross
            along = (start[0] * direction[:, 1] - start[1] * direction[:, 0]) / cross
        hit = (distance > 0) & (along >= -1e-9) & (along <= 1 + 1e-9)
        radius = np.where(hit, np.minimum(radius, distance), radius)
    assert np.isfinite(radius).all()
    return radius


def _regular(corners: int, inner: float = 1.0) -> np.ndarray:
    """Corners of a regular polygon of circumradius 1; with ``inner`` < 1 a star with that many tips."""
    count = corners if inner == 1.0 else 2 * corners
    angles = np.arange(count) * (2 * np.pi / count) - np.pi / 2
    radius = np.ones(count)
    if inner != 1.0:
        radius[1::2] = inner
    return radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


_SILHOUETTES: dict[str, np.ndarray] = {
    "disc": np.full(_ANGLES, 0.95),
    "square": _polygon_radius(0.86 * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])),
    "triangle": _polygon_radius(1.12 * _regular(3)),
    "star": _polygon_radius(1.15 * _regular(5, inner=0.6)),
    "hexagon": _polygon_radius(1.0 * _regular(6)),
}


@dataclass(frozen=True)
class SpriteClass:
    """One class: the name in the annotation file, its silhouette and its texture."""

    name: str
    silhouette: str
    texture: str


SPRITE_CLASSES = (
    SpriteClass("striped disc", "disc", "stripes"),
    SpriteClass("checkered square", "square", "checks"),
    SpriteClass("dotted triangle", "triangle", "dots"),
    SpriteClass("ringed star", "star", "rings"),
    SpriteClass("sectored hexagon", "hexagon", "sectors"),
)
"""The classes in the order in which ``classes: n`` takes them."""


@dataclass(frozen=True)
class Sprite:
    """Appearance of one object: two colours (3,) in 0-255, texture frequency in cycles per radius and its phase."""

    silhouette: str
    texture: str
    colours: tuple[np.ndarray, np.ndarray]
    frequency: float
    phase: tuple[float, float]
    aspect: float


@dataclass(frozen=True)
class Layer:
    """What one object paints: ``rgb`` T,P,P,3 in 0-255, ``alpha`` T,P,P in 0-1, ``corner`` T,2 int (y, x)."""

    rgb: np.ndarray
    alpha: np.ndarray
    corner: np.ndarray


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    return 255 * (value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1))


def draw_sprite(rng: np.random.Generator, kind: SpriteClass, objects: ToyObjects, split: ToySplit) -> Sprite:
    """Random bright colours, texture frequency (of the split's range), phase and aspect for an object of a class."""
    centre = SPRITE_CLASSES.index(kind) / len(SPRITE_CLASSES)
    hue = (centre + objects.palette * (2 * rng.uniform(*split.hue) - 1)) % 1.0
    bright = _hsv(hue, rng.uniform(0.65, 1.0), rng.uniform(0.85, 1.0))
    if rng.random() < 0.5:
        other = _hsv((hue + 0.5) % 1.0, rng.uniform(0.0, 0.25), rng.uniform(0.9, 1.0))
    else:
        other = _hsv((hue + 0.5) % 1.0, rng.uniform(0.3, 1.0), rng.uniform(0.05, 0.2))
    return Sprite(
        silhouette=kind.silhouette,
        texture=kind.texture,
        colours=(bright, other),
        frequency=rng.uniform(*split.texture_frequency),
        phase=(rng.uniform(0, 1), rng.uniform(0, 1)),
        aspect=rng.uniform(*objects.aspect),
    )


def _texture(sprite: Sprite, u: np.ndarray, v: np.ndarray, rho: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Share of the first colour in [0,1]; ``u``, ``v`` are object coordinates in radii."""
    turn = np.float32(2 * np.pi * sprite.frequency)
    first, second = (np.float32(2 * np.pi * phase) for phase in sprite.phase)
    if sprite.texture == "plain":
        return np.ones_like(u)
    if sprite.texture == "stripes":
        wave = np.sin(turn * u + first)
    elif sprite.texture == "checks":
        wave = 1.8 * np.sin(turn * 0.85 * u + first) * np.sin(turn * 0.85 * v + second)
    elif sprite.texture == "dots":
        wave = np.cos(turn * 1.1 * u + first) + np.cos(turn * 1.1 * v + second) - np.float32(0.55)
    elif sprite.texture == "rings":
        wave = np.sin(turn * 1.1 * rho + first)
    elif sprite.texture == "sectors":
        wave = np.sin(np.float32(3 * round(sprite.frequency)) * theta + first)
    else:
        raise ValueError(f"texture {sprite.texture!r} is unknown")
    return np.clip(np.float32(0.5) + np.float32(1.6) * wave, 0, 1)


def render_sprite(sprite: Sprite, path: Path2D) -> Layer:
    """Paint the sprite along its path: anti-aliased mask and texture on a patch of each frame."""
    largest = float(path.radius.max()) * 1.2 * max(sprite.aspect, 1 / sprite.aspect) + 2
    half = int(np.ceil(largest))
    base = np.floor(path.centre).astype(np.int64)
    grid = np.arange(-half, half + 1, dtype=np.float32)
    # Pixel i covers [i, i + 1): its centre lies at i + 0.5.
    fraction = (path.centre - base).astype(np.float32)
    dx = (grid[None, :] + 0.5 - fraction[:, :1])[:, None, :]
    dy = (grid[None, :] + 0.5 - fraction[:, 1:])[:, :, None]
    cos = np.cos(path.angle).astype(np.float32)[:, None, None]
    sin = np.sin(path.angle).astype(np.float32)[:, None, None]
    radius = path.radius.astype(np.float32)[:, None, None]
    u = (cos * dx + sin * dy) / (radius * np.float32(sprite.aspect))
    v = (cos * dy - sin * dx) / radius
    rho = np.sqrt(u * u + v * v)
    theta = np.arctan2(v, u)
    table = _SILHOUETTES[sprite.silhouette]
    # The slope turns a difference of radii into a distance from the outline, so that edges are one pixel soft.
    derivative = np.gradient(np.concatenate([table[-1:], table, table[:1]]))[1:-1] * (_ANGLES / (2 * np.pi))
    slope = (table / np.hypot(table, derivative)).astype(np.float32)
    index = (np.rint(theta * np.float32(_ANGLES / (2 * np.pi))).astype(np.int32)) % _ANGLES
    distance = (rho - table.astype(np.float32)[index]) * slope[index] * radius
    alpha = np.clip(np.float32(0.5) - distance, 0, 1)
    share = _texture(sprite, u, v, rho, theta)[..., None]
    first, second = (colour.astype(np.float32) for colour in sprite.colours)
    return Layer(rgb=second + share * (first - second), alpha=alpha, corner=base[:, ::-1] - half)


def outline_boxes(sprite: Sprite, path: Path2D) -> np.ndarray:
    """T,4 float64 xyxy in pixels: extent of the whole silhouette, frame borders and occluders disregarded."""
    angles = np.arange(_ANGLES) * (2 * np.pi / _ANGLES)
    table = _SILHOUETTES[sprite.silhouette]
    local = table[:, None] * np.stack([np.cos(angles) * sprite.aspect, np.sin(angles)], axis=1)
    cos, sin = np.cos(path.angle)[:, None], np.sin(path.angle)[:, None]
    x = path.centre[:, :1] + path.radius[:, None] * (cos * local[:, 0] - sin * local[:, 1])
    y = path.centre[:, 1:] + path.radius[:, None] * (sin * local[:, 0] + cos * local[:, 1])
    return np.stack([x.min(1), y.min(1), x.max(1), y.max(1)], axis=1)
