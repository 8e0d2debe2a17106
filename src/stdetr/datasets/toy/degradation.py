"""Degradations of single frames; the neighbouring frames show what is hidden.

Shape legend
    T frames of a video     h, w height and width in pixels     N objects
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from stdetr.datasets.toy.settings import ToyDegradation


def draw_schedule(rng: np.random.Generator, settings: ToyDegradation, frames: int) -> list[str | None]:
    """Kind of degradation of each frame, or None; at most ``limit`` degraded in any ``window`` consecutive frames."""
    count = int(settings.rate * frames + rng.random())
    degraded = np.zeros(frames, dtype=np.int64)
    for frame in rng.permutation(frames):
        if degraded.sum() >= count:
            break
        degraded[frame] = 1
        near = degraded[max(0, frame - settings.window + 1) : frame + settings.window]
        if np.convolve(near, np.ones(settings.window, dtype=np.int64), mode="full").max() > settings.limit:
            degraded[frame] = 0
    return [str(rng.choice(settings.kinds)) if hit else None for hit in degraded]


def motion_blur(frame: np.ndarray, length: float, angle: float) -> np.ndarray:
    """Mean of the frame (h,w,3) shifted along a line of ``length`` px; borders are mirrored."""
    samples = max(int(length), 2)
    along = np.linspace(-length / 2, length / 2, samples)
    shift = np.rint(along[:, None] * np.array([np.sin(angle), np.cos(angle)])).astype(np.int64)
    pad = int(np.abs(shift).max())
    height, width = frame.shape[:2]
    padded = np.pad(frame, ((pad, pad), (pad, pad), (0, 0)), mode="symmetric")
    total = np.zeros_like(frame)
    for dy, dx in shift:
        total += padded[pad + dy : pad + dy + height, pad + dx : pad + dx + width]
    return total / samples


def defocus(frame: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of the frame (h,w,3), ``sigma`` in px."""
    return ndimage.gaussian_filter(frame, sigma=(sigma, sigma, 0), mode="reflect", truncate=2.5)


def noise_burst(rng: np.random.Generator, frame: np.ndarray, sigma: float, contrast: float) -> np.ndarray:
    """Contrast falls to ``contrast`` and noise drowns the rest: half of it fine, half in blocks of 6 px."""
    height, width = frame.shape[:2]
    blocks = rng.normal(0, 0.6 * sigma, size=(-(-height // 6), -(-width // 6), 3))
    coarse = np.repeat(np.repeat(blocks, 6, axis=0), 6, axis=1)[:height, :width]
    fine = rng.normal(0, sigma, size=frame.shape)
    mean = frame.mean(axis=(0, 1), keepdims=True)
    return (mean + contrast * (frame - mean) + coarse + fine).astype(np.float32)


def blank_out(
    rng: np.random.Generator, frame: np.ndarray, background: np.ndarray, boxes: np.ndarray, decoys: int = 2
) -> np.ndarray:
    """Cover each object with a piece of the empty background taken from elsewhere.

    frame, background: h,w,3; boxes: N,4 xyxy px.  Patches are larger than the object and off its centre, edges are
    soft, and ``decoys`` places without an object are covered too, so that a patch reveals little.
    """
    height, width = frame.shape[:2]
    sides = boxes[:, 2:] - boxes[:, :2] if len(boxes) else np.full((1, 2), 24.0)
    fake_centre = rng.uniform(0, 1, size=(decoys, 2)) * (width, height)
    fake_side = sides[rng.integers(len(sides), size=decoys)]
    fakes = np.concatenate([fake_centre - fake_side / 2, fake_centre + fake_side / 2], axis=1)
    out = frame.copy()
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    for box in np.concatenate([boxes, fakes]):
        x1, y1 = box[:2] - rng.uniform(1.5, 8, size=2)
        x2, y2 = box[2:] + rng.uniform(1.5, 8, size=2)
        across = np.clip(np.minimum(x - x1, x2 - x) / 1.5 + 0.5, 0, 1)
        down = np.clip(np.minimum(y - y1, y2 - y) / 1.5 + 0.5, 0, 1)
        cover = (down[:, None] * across[None, :])[..., None].astype(np.float32)
        dy, dx = rng.integers(-10, 11, size=2)
        patch = np.roll(background, (int(dy), int(dx)), axis=(0, 1))
        out += cover * (patch - out)
    return out


def degrade(
    rng: np.random.Generator,
    settings: ToyDegradation,
    kind: str,
    frame: np.ndarray,
    background: np.ndarray,
    boxes: np.ndarray,
) -> np.ndarray:
    """The degraded frame, h,w,3 float32.  ``boxes``: N,4 xyxy px of every object, annotated or not."""
    if kind == "blur":
        return motion_blur(frame, rng.uniform(*settings.blur_length), rng.uniform(0, np.pi))
    if kind == "defocus":
        return defocus(frame, rng.uniform(*settings.defocus_sigma))
    if kind == "noise":
        return noise_burst(rng, frame, rng.uniform(*settings.noise_sigma), rng.uniform(*settings.noise_contrast))
    assert kind == "blank", kind
    return blank_out(rng, frame, background, boxes)
