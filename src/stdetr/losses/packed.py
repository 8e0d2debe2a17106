"""The targets of a batch, padded to the same number of tracks, so that losses are a few large operations.

Shape legend: B clips, N largest number of tracks in a clip, T frames.  Boxes cxcywh normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stdetr.structures import ClipTargets


@dataclass(frozen=True)
class PackedTargets:
    """labels B,N int64; boxes B,N,T,4; valid, ignored B,N,T bool (padding: both False).  N is at least 1."""

    labels: Tensor
    boxes: Tensor
    valid: Tensor
    ignored: Tensor

    @classmethod
    def pack(cls, targets: Sequence[ClipTargets]) -> PackedTargets:
        most = max(1, *(len(t) for t in targets))

        def stack(parts: list[Tensor]) -> Tensor:
            first = parts[0]
            rows = [
                torch.cat((part, part.new_zeros(most - len(part), *first.shape[1:]))) if len(part) < most else part
                for part in parts
            ]
            return torch.stack(rows)

        return cls(
            labels=stack([t.labels for t in targets]),
            boxes=stack([t.boxes for t in targets]),
            valid=stack([t.valid for t in targets]),
            ignored=stack([t.present & t.ignored for t in targets]),
        )

    @property
    def counted(self) -> Tensor:
        """B,N bool: tracks with at least one frame that counts; the others are not matched."""
        return self.valid.any(-1)


@dataclass(frozen=True)
class Matches:
    """Pairs over the whole batch: tube ``tube[i]`` of clip ``clip[i]`` is matched to its track ``track[i]``; int64."""

    clip: Tensor
    tube: Tensor
    track: Tensor

    def __len__(self) -> int:
        return len(self.clip)
