"""Clip transforms: torchvision's ``transforms.v2`` on tv_tensors, one random draw for the whole clip.

Shape legend
    T frames of a clip     M boxes of a clip, over all tracks and frames     h, w height and width in pixels

A clip is one ``tv_tensors.Image`` T,3,h,w and one ``tv_tensors.BoundingBoxes`` M,4 (xyxy px); torchvision draws its
random parameters once per call, so frames and boxes of a clip move together.  (The kernels of ``Image`` take any
leading dimension, and unlike ``Video`` every transform accepts it.)  Any v2 transform may be listed in a
configuration.  torchvision is slower to import than torch, so it is imported only where a clip is transformed; mere
normalisation does not need it.  Boxes that a crop cuts are clipped; those that it removes vanish from
``present``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stdetr.structures import PixelScale


class ClipTransform(nn.Module):
    """Applies v2 transforms to a clip, cleans the boxes and normalises the frames at the end.

    transforms: v2 transforms in order; an empty list only normalises
    mean, std:  of the RGB channels in [0,1]; both None leaves uint8 frames
    min_side:   px; smaller boxes, as a crop leaves them at the border, are dropped
    min_share:  boxes of which a crop leaves less than this share of the area are dropped
    """

    def __init__(
        self,
        transforms: Sequence[nn.Module] = (),
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        min_side: float = 1.0,
        min_share: float = 0.0,
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError("data.mean and data.std go together: give both or neither")
        for key, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != 3:
                raise ValueError(f"data.{key} must have one number for each of R, G and B, got {list(values)}")
        if std is not None and min(std) <= 0:
            raise ValueError(f"data.std must be positive, got {list(std)}")
        self.transforms = nn.ModuleList(transforms)
        self.min_side, self.min_share = min_side, min_share
        # uint8 -> (x / 255 - mean) / std as one product and one sum.
        self.scale = None if std is None else (1 / (255 * torch.tensor(std))).view(1, 3, 1, 1)
        self.shift = None if std is None or mean is None else (-torch.tensor(mean) / torch.tensor(std)).view(1, 3, 1, 1)

    @property
    def pixels(self) -> PixelScale | None:
        """How frames are normalised; None when they are not."""
        if self.scale is None or self.shift is None:
            return None
        red, green, blue = self.scale.flatten().tolist()
        shift_red, shift_green, shift_blue = self.shift.flatten().tolist()
        return PixelScale((red, green, blue), (shift_red, shift_green, shift_blue))

    def forward(self, frames: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """frames T,3,h,w uint8; boxes M,4 xyxy px.

        Returns frames T,3,h',w' (float32 when normalising), boxes M,4 xyxy px clipped to them, and keep M bool.
        """
        video, clipped, keep = self.move(frames, boxes)
        return self.normalise(video), clipped, keep

    def move(self, frames: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`forward`, but frames stay what the transforms leave: uint8, or floats in [0,1]."""
        moved = boxes
        height, width = frames.shape[-2:]
        if self.transforms:
            from torchvision import tv_tensors

            video: Any = tv_tensors.Image(frames)
            wrapped: Any = tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue] - None is a clamping mode
                boxes, format="XYXY", canvas_size=(height, width), clamping_mode=None
            )
            for transform in self.transforms:
                video, wrapped = transform(video, wrapped)
            frames, moved = video.as_subclass(Tensor), wrapped.as_subclass(Tensor)
        clipped, keep = self.clip_boxes(moved.numpy(), (frames.shape[-2], frames.shape[-1]))
        return frames, torch.from_numpy(clipped), torch.from_numpy(keep)

    def clip_boxes(self, boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Boxes M,4 xyxy px clipped to a frame of ``size`` (h, w), and which of them (M bool) are worth keeping."""
        height, width = size
        clipped = np.clip(boxes, 0, np.array([width, height, width, height], boxes.dtype))
        side = clipped[:, 2:] - clipped[:, :2]
        # Boxes come back unclipped (clamping_mode=None), so what a crop left of each can be measured.
        keep = np.asarray((side >= self.min_side).all(axis=1))
        if self.min_share > 0:
            whole = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)
            keep &= side.prod(axis=1) >= self.min_share * whole
        return clipped, keep

    def normalise(self, frames: Tensor) -> Tensor:
        """T,3,h,w uint8 or float in [0,1] -> float32 normalised; unchanged without mean and std."""
        if self.pixels is None:
            return frames.contiguous()
        return self.pixels.apply(frames * 255 if frames.is_floating_point() else frames)


class ResizeShortSide(nn.Module):
    """Resize so that the short side becomes one of ``sizes`` px (drawn at random), the long side at most ``longest``.

    The rule of Faster R-CNN and DETR; aspect ratio is kept up to rounding.
    """

    def __init__(self, sizes: Sequence[int] | int, longest: int | None = None) -> None:
        super().__init__()
        self.sizes = [sizes] if isinstance(sizes, int) else [int(size) for size in sizes]
        self.longest = longest
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"data: ResizeShortSide.sizes must be positive numbers, got {sizes}")
        if longest is not None and longest < 1:
            raise ValueError(f"data: ResizeShortSide.longest must be positive, got {longest}")

    def forward(self, video: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Video T,3,h,w and boxes M,4 resized together."""
        from torchvision.transforms.v2 import functional

        short = self.sizes[int(torch.randint(len(self.sizes), ()))]
        height, width = video.shape[-2:]
        scale = short / min(height, width)
        if self.longest is not None:
            scale = min(scale, self.longest / max(height, width))
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        if size == [height, width]:
            return video, boxes
        return functional.resize(video, size, antialias=True), functional.resize(boxes, size)


class RandomZoomCrop(nn.Module):
    """With probability ``p`` crop a random window of ``scale`` (share of each side) out of the clip.

    Unlike a crop drawn per image, the window holds still over the clip, so motion stays what it was.

    keep_aspect: both sides get the same share; clips then resize to like shapes, and a batch is padded little
    """

    def __init__(self, scale: tuple[float, float] = (0.5, 1.0), p: float = 0.5, keep_aspect: bool = False) -> None:
        super().__init__()
        low, high = (float(value) for value in scale)
        if not 0 < low <= high <= 1:
            raise ValueError(f"data: RandomZoomCrop.scale must satisfy 0 < low <= high <= 1, got {list(scale)}")
        self.scale, self.p, self.keep_aspect = (low, high), p, keep_aspect

    def forward(self, video: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Video T,3,h,w and boxes M,4 cropped together."""
        from torchvision.transforms.v2 import functional

        if float(torch.rand(())) >= self.p:
            return video, boxes
        height, width = video.shape[-2:]
        low, high = self.scale
        share = low + (high - low) * torch.rand(1 if self.keep_aspect else 2).expand(2)
        crop_height = max(1, round(height * float(share[0])))
        crop_width = max(1, round(width * float(share[1])))
        top = int(torch.randint(height - crop_height + 1, ()))
        left = int(torch.randint(width - crop_width + 1, ()))
        window = (top, left, crop_height, crop_width)
        return functional.crop(video, *window), functional.crop(boxes, *window)
