"""Inputs and an independent truth for the op: loops over every point in float64, written without PyTorch's help.

Shape legend: B clips, T frames, S tokens of a frame, H heads, D channels per head, Q queries, F sampled frames,
L levels, K points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

SHAPES = [(5, 7), (3, 2)]


def _bilinear(image, x, y):
    """image h,w,D; zero outside."""
    height, width, channels = image.shape
    total = np.zeros(channels)
    if not (math.isfinite(x) and math.isfinite(y)):
        return total
    left, top = math.floor(x), math.floor(y)
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(x - column)) * (1 - abs(y - row)) * image[row, column]
    return total


def brute_force(value, shapes, locations, weights, frame_index=None):
    """The definition of st_deform_attn as loops.  Tensors in, float64 tensor B,Q,H*D out."""
    value, locations, weights = (t.detach().double().numpy() for t in (value, locations, weights))
    batch, clip, _, heads, channels = value.shape
    queries, frames, levels, points = locations.shape[1], *locations.shape[3:6]
    out = np.zeros((batch, queries, heads, channels))
    for b, q, h, f in np.ndindex(batch, queries, heads, frames):
        t = f if frame_index is None else int(frame_index.expand(batch, queries, frames)[b, q, f])
        if not 0 <= t < clip:
            continue
        start = 0
        for level in range(levels):
            height, width = shapes[level]
            image = value[b, t, start : start + height * width, h].reshape(height, width, channels)
            start += height * width
            for k in range(points):
                x, y = locations[b, q, h, f, level, k]
                out[b, q, h] += weights[b, q, h, f, level, k] * _bilinear(image, x * width - 0.5, y * height - 0.5)
    return torch.from_numpy(out.reshape(batch, queries, heads * channels))


@dataclass
class Case:
    """Random arguments of the discrete ops."""

    value: torch.Tensor
    locations: torch.Tensor
    weights: torch.Tensor
    reference: torch.Tensor
    offsets: torch.Tensor
    logits: torch.Tensor
    frame_index: torch.Tensor | None
    valid_ratios: torch.Tensor
    grad_out: torch.Tensor
    shapes: list


def make_case(
    *, B=2, T=3, H=2, D=4, Q=5, F=None, K=2, shapes=SHAPES, masked=False, reference_size=2, seed=0, dtype=torch.float64
):
    """Locations reach a little outside the image; ``masked`` draws frame_index with repeats and -1."""
    made = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.rand(*size, generator=made, dtype=torch.float64)  # noqa: E731
    normal = lambda *size: torch.randn(*size, generator=made, dtype=torch.float64)  # noqa: E731
    F = T if F is None else F
    L, S = len(shapes), sum(h * w for h, w in shapes)
    index = torch.randint(-1, T, (B, Q, F), generator=made, dtype=torch.int32) if masked or T != F else None
    coord = torch.float64 if dtype == torch.float64 else torch.float32
    return Case(
        value=normal(B, T, S, H, D).to(dtype),
        locations=(draw(B, Q, H, F, L, K, 2) * 1.4 - 0.2).to(coord),
        weights=draw(B, Q, H, F, L, K).to(coord),
        reference=draw(B, Q, F, reference_size).to(coord),
        offsets=normal(B, Q, H, F, L, K, 2).to(dtype),
        logits=normal(B, Q, H, F, L, K).to(dtype),
        frame_index=index,
        valid_ratios=(draw(B, L, 2) * 0.5 + 0.5).to(coord),
        grad_out=normal(B, Q, H * D).to(dtype),
        shapes=list(shapes),
    )


def relative_error(got, wanted):
    got, wanted = got.double(), wanted.double()
    return ((got - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


@pytest.fixture(scope="session")
def truth():
    return brute_force


@pytest.fixture(scope="session")
def case():
    return make_case


@pytest.fixture(scope="session")
def error():
    return relative_error


@pytest.fixture
def kernels():
    """Skips where the CPU kernels are not built."""
    from stdetr.ops import backend

    if backend("cpu").name != "cpu":
        pytest.skip(f"CPU kernels are not in use: {backend('cpu').reason}")
    return torch.ops.stdetr
