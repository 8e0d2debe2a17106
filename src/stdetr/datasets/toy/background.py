"""Muted moving backgrounds, plain distractor shapes and occluding bars of the toy benchmark.

Shape legend
    T frames of a video     h, w height and width in pixels     P side of a square patch
"""

from __future__ import annotations

import numpy as np

from stdetr.datasets.toy.motion import Path2D
from stdetr.datasets.toy.settings import ToyBackground, ToySplit
from stdetr.datasets.toy.sprites import Layer, Sprite, render_sprite

_PLAIN = ("disc", "square", "triangle", "star", "hexagon")


def noise_texture(rng: np.random.Generator, side: int, roughness: float) -> np.ndarray:
    """side,side float32 periodic noise of mean 0 and deviation 1: octaves of amplitude ``frequency ** -roughness``."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]) * side
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(side, side))) * frequency**-roughness
    noise = np.fft.irfft2(spectrum, s=(side, side))
    return (noise / noise.std()).astype(np.float32)


def scroll(noise: np.ndarray, offset: np.ndarray, size: int) -> np.ndarray:
    """T,size,size float32: windows of a periodic texture at the sub-pixel offsets ``offset`` T,2 (x, y)."""
    side = noise.shape[0]
    base = np.floor(offset).astype(np.int64)
    fx, fy = ((offset - base).astype(np.float32)[:, axis, None, None] for axis in (0, 1))
    columns = (base[:, :1] + np.arange(size + 1)) % side
    rows = (base[:, 1:] + np.arange(size + 1)) % side
    window = noise[rows[:, :, None], columns[:, None, :]]
    window = window[:, :-1] + fy * (window[:, 1:] - window[:, :-1])
    return window[:, :, :-1] + fx * (window[:, :, 1:] - window[:, :, :-1])


def draw_background(
    rng: np.random.Generator, settings: ToyBackground, split: ToySplit, frames: int, size: int
) -> np.ndarray:
    """T,h,w,3 float32 in 0-255: two sheets of noise that scroll at different speeds over a muted colour."""
    hue = 2 * np.pi * rng.uniform(*split.background_hue)
    # Colour differences in a plane of constant brightness: low saturation by construction.
    tint = np.array([np.cos(hue), np.cos(hue - 2 * np.pi / 3), np.cos(hue + 2 * np.pi / 3)], dtype=np.float32)
    base = rng.uniform(*settings.level) + rng.uniform(4, 14) * tint
    grey = np.zeros((frames, size, size), dtype=np.float32)
    colour = np.zeros_like(grey)
    contrast = rng.uniform(*settings.contrast)
    for sheet, strength in ((grey, contrast), (colour, 0.5 * contrast)):
        noise = noise_texture(rng, int(1.5 * size), rng.uniform(*split.roughness))
        heading, speed = rng.uniform(0, 2 * np.pi), rng.uniform(*settings.scroll)
        step = speed * np.array([np.cos(heading), np.sin(heading)])
        start = rng.uniform(0, 1.5 * size, size=2)
        sheet += strength * scroll(noise, start + np.arange(frames)[:, None] * step, size)
    return base.astype(np.float32) + grey[..., None] + colour[..., None] * tint


def draw_distractors(
    rng: np.random.Generator, settings: ToyBackground, level: np.ndarray, frames: int, size: int
) -> list[Layer]:
    """Untextured low-contrast shapes that drift: silhouettes of the classes without their texture."""
    layers = []
    for _ in range(int(rng.integers(int(settings.distractors[0]), int(settings.distractors[1]) + 1))):
        sign = rng.choice([-1.0, 1.0])
        colour = level + sign * rng.uniform(*settings.distractor_contrast) + rng.uniform(-6, 6, size=3)
        sprite = Sprite(str(rng.choice(_PLAIN)), "plain", (colour, colour), 1.0, (0.0, 0.0), rng.uniform(0.6, 1.6))
        heading, speed = rng.uniform(0, 2 * np.pi), rng.uniform(*settings.scroll)
        step = speed * np.array([np.cos(heading), np.sin(heading)])
        centre = rng.uniform(0, size, size=2) + (np.arange(frames)[:, None] - frames / 2) * step
        turn = rng.uniform(0, 2 * np.pi) + rng.uniform(-0.05, 0.05) * np.arange(frames)
        path = Path2D(centre, turn, np.full(frames, rng.uniform(4, 11)))
        layers.append(render_sprite(sprite, path))
    return layers


def draw_bars(
    rng: np.random.Generator, settings: ToyBackground, level: np.ndarray, frames: int, size: int
) -> list[Layer]:
    """Upright or lying bars across the whole frame, in front of every object."""
    layers = []
    for _ in range(int(rng.integers(int(settings.bars[0]), int(settings.bars[1]) + 1))):
        width, speed = rng.uniform(*settings.bar_width), rng.uniform(-0.8, 0.8)
        centre = rng.uniform(0.15, 0.85) * size + speed * (np.arange(frames) - frames / 2)
        along = np.arange(size) + 0.5
        profile = np.clip(width / 2 + 0.5 - np.abs(along - centre[:, None]), 0, 1).astype(np.float32)
        alpha = np.broadcast_to(profile[:, None, :], (frames, size, size))
        if rng.random() < 0.5:
            alpha = alpha.transpose(0, 2, 1)
        colour = np.clip(level + rng.choice([-1.0, 1.0]) * rng.uniform(15, 40), 20, 200)
        rgb = np.broadcast_to(colour.astype(np.float32), (frames, size, size, 3))
        layers.append(Layer(rgb=rgb, alpha=alpha, corner=np.zeros((frames, 2), dtype=np.int64)))
    return layers
