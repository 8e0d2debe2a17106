"""From backbone maps to one sequence of tokens per frame.

Shape legend: B clips, T frames, N = B x T, S tokens of a frame (levels in order, row-major), C width, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from stdetr.models.position import sine_map


@dataclass(frozen=True)
class Tokens:
    """Feature tokens of every frame of a batch of clips.

    features:     B,T,S,C
    position:     B,S,C spatial embedding plus the level's (all frames of a clip have one size)
    valid:        B,S bool, False on padding
    valid_ratios: B,L,2 float32 (x, y): the unpadded share of each level
    shapes:       L pairs (h, w)
    centres:      B,S,2 float32 (x, y) of each token in [0,1] of the unpadded frame (beyond 1 on padding)
    levels:       S int64
    """

    features: Tensor
    position: Tensor
    valid: Tensor
    valid_ratios: Tensor
    shapes: tuple[tuple[int, int], ...]
    centres: Tensor
    levels: Tensor

    def frame(self, t: int) -> Tokens:
        """The tokens of one frame of each clip."""
        return replace(self, features=self.features[:, t : t + 1])


class Neck(nn.Module):
    """Projects each backbone level to the model's width and adds coarser levels by strided convolutions.

    The layout (1x1 convolution and GroupNorm per level, 3x3 stride 2 for further ones) is Deformable DETR's.
    ``top_down`` adds each coarser level, upsampled, to the finer one before the projection's norm (Lin et al. 2017):
    cheap context for models without an encoder.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        width: int = 256,
        levels: int = 4,
        norm_groups: int = 32,
        top_down: bool = False,
    ) -> None:
        super().__init__()
        if levels < len(channels):
            raise ValueError(f"neck.levels={levels} is less than the backbone's {len(channels)} levels")
        projections: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(c, width, 1), nn.GroupNorm(norm_groups, width)) for c in channels
        ]
        inputs = channels[-1]
        for _ in range(levels - len(channels)):
            projections.append(nn.Sequential(nn.Conv2d(inputs, width, 3, 2, 1), nn.GroupNorm(norm_groups, width)))
            inputs = width
        self.projections = nn.ModuleList(projections)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, 1, 1) for _ in range(levels - 1)) if top_down else None
        # None without encoder layers, where it would be unused.
        self.level_embed: nn.Parameter | None = nn.Parameter(torch.empty(levels, width))
        self.width, self.levels = width, levels
        nn.init.normal_(self.level_embed)
        for module in self.projections.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, maps: Sequence[Tensor], sizes_B2: Tensor, padded: tuple[int, int], clips: int) -> Tokens:
        """
        maps: backbone levels, each N,channels,h,w with N = clips x T
        sizes_B2: unpadded (h, w) of each clip in pixels; padded: (h, w) of the padded frame in pixels
        """
        sources = [project(x) for project, x in zip(self.projections, maps, strict=False)]
        for i in range(len(maps), self.levels):
            # The first extra level reads the raw backbone map, later ones the previous level (Deformable DETR).
            sources.append(self.projections[i](maps[-1] if i == len(maps) else sources[-1]))
        if self.smooth is not None:
            for i in range(self.levels - 2, -1, -1):
                up = functional.interpolate(sources[i + 1], size=sources[i].shape[-2:], mode="nearest")
                sources[i] = sources[i] + self.smooth[i](up)
        shapes = tuple((int(x.shape[-2]), int(x.shape[-1])) for x in sources)

        pixel_valid = _inside(sizes_B2, padded)
        positions, valids, ratios, centres = [], [], [], []
        for level, (h, w) in enumerate(shapes):
            valid = functional.interpolate(pixel_valid[None].float(), size=(h, w))[0].bool()
            ratio = torch.stack((valid[:, 0, :].sum(1) / w, valid[:, :, 0].sum(1) / h), -1).float()
            position = sine_map(valid, self.width)
            if self.level_embed is not None:
                position = position + self.level_embed[level]
            positions.append(position.flatten(1, 2))
            valids.append(valid.flatten(1))
            ratios.append(ratio)
            centres.append(_centres(h, w, valid.device)[None] / ratio[:, None])
        features = torch.cat([rearrange(x, "n c h w -> n (h w) c") for x in sources], dim=1)
        levels = torch.cat([torch.full((h * w,), i, device=features.device) for i, (h, w) in enumerate(shapes)])
        return Tokens(
            features=rearrange(features, "(b t) s c -> b t s c", b=clips),
            position=torch.cat(positions, dim=1),
            valid=torch.cat(valids, dim=1),
            valid_ratios=torch.stack(ratios, dim=1),
            shapes=shapes,
            centres=torch.cat(centres, dim=1),
            levels=levels,
        )


def _inside(sizes_B2: Tensor, padded: tuple[int, int]) -> Tensor:
    """B,h,w bool: pixels of the padded frame that belong to the unpadded one."""
    rows = torch.arange(padded[0], device=sizes_B2.device) < sizes_B2[:, :1]
    columns = torch.arange(padded[1], device=sizes_B2.device) < sizes_B2[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


def _centres(h: int, w: int, device: torch.device) -> Tensor:
    """h*w,2 token centres (x, y) in [0,1] of the padded map."""
    y = torch.linspace(0.5, h - 0.5, h, device=device) / h
    x = torch.linspace(0.5, w - 0.5, w, device=device) / w
    return torch.stack((x.repeat(h), y.repeat_interleave(w)), dim=-1)
