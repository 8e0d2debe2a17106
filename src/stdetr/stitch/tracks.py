"""The state of the tracks that are alive while a video is stitched.

Shape legend
    M live tracks      W frames kept (buffer)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

PER_FRAME = ("weights", "scores", "counts")


@dataclass
class Tracks:
    """The live tracks, one row each, and what they reported on the frames still kept.

    ``boxes`` and ``scores`` are weighted sums until divided by ``weights`` and ``counts``; 0 there means no report.
    """

    ids: Tensor  # M int64, -1 until it is confirmed
    votes: Tensor  # M,classes float32, sum of tube scores by class
    windows: Tensor  # M float32, how many windows reported the track
    best: Tensor  # M float32, the highest score of a frame so far
    last_box: Tensor  # M,4 xyxy, at its last report
    last_frame: Tensor  # M int64
    velocity: Tensor  # M,4 change of cxcywh per source frame
    boxes: Tensor  # M,W,4
    weights: Tensor  # M,W
    scores: Tensor  # M,W
    counts: Tensor  # M,W

    @classmethod
    def none(cls) -> Tracks:
        """No track, no frame."""
        rows, whole, frames = torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0)
        boxes = torch.zeros(0, 4)
        return cls(whole, frames, rows, rows, boxes, whole, boxes, torch.zeros(0, 0, 4), frames, frames, frames)

    def __len__(self) -> int:
        return self.ids.shape[0]

    def rows(self, keep: Tensor) -> Tracks:
        """The tracks that the boolean mask or index tensor ``keep`` (M) names."""
        return Tracks(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))

    def columns(self, keep: Tensor) -> Tracks:
        """The frames that the boolean mask or index tensor ``keep`` (W) names."""
        return replace(self, **{name: getattr(self, name)[:, keep] for name in ("boxes", *PER_FRAME)})

    def with_frames(self, count: int) -> Tracks:
        """``count`` more frames at the end, on which nothing is reported yet."""
        grown = {name: pad(getattr(self, name), (0, count)) for name in PER_FRAME}
        return replace(self, boxes=pad(self.boxes, (0, 0, 0, count)), **grown)

    def with_rows(self, count: int, classes: int) -> Tracks:
        """``count`` more tracks at the end, without reports, and room for ``classes`` classes."""

        def extended(rows: Tensor, value: int = 0) -> Tensor:
            return torch.cat([rows, rows.new_full((count, *rows.shape[1:]), value)])

        grown = replace(self, votes=pad(self.votes, (0, max(0, classes - self.votes.shape[1]))))
        columns = {name: extended(getattr(grown, name)) for name in self.__dataclass_fields__}
        return Tracks(**{**columns, "ids": extended(self.ids, -1)})

    def mean_boxes(self) -> Tensor:
        """M,W,4 xyxy, zeros where nothing is reported."""
        return self.boxes / self.weights.clamp_min(1e-12)[..., None]

    def mean_scores(self) -> Tensor:
        """M,W, zero where nothing is reported."""
        return self.scores / self.counts.clamp_min(1)
