"""The state of live tracks while a video is stitched, their motion, and filling gaps in finished tracks.

Shape legend
    M live tracks      W frames kept (buffer)      k reported boxes of one track      n boxes filled in

Boxes are xyxy in source pixels; velocities are changes of (cx, cy, w, h) per source frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
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
        """No tracks and no frames."""
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


def fit_velocity(boxes: Tensor, seen: Tensor, frames: Tensor) -> Tensor:
    """Least-squares slope of the box centres over time; the size is taken as constant.

    boxes M,W,4 xyxy; seen M,W bool; frames W int64.  Returns M,4 (vx, vy, 0, 0), zero for tracks seen on one frame.
    """
    weight = seen.to(boxes.dtype)
    count = weight.sum(1, keepdim=True).clamp_min(1)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    # Time relative to the first kept frame: large frame numbers would cost float precision.
    time = (frames - frames[0]).to(boxes.dtype)[None].expand_as(weight)
    time = time - (time * weight).sum(1, keepdim=True) / count
    centre = centre - (centre * weight[..., None]).sum(1, keepdim=True) / count[..., None]
    spread = (weight * time**2).sum(1, keepdim=True)
    slope = (weight[..., None] * time[..., None] * centre).sum(1) / spread.clamp_min(1e-6)
    slope = torch.where(spread > 0, slope, 0.0)
    return torch.cat([slope, torch.zeros_like(slope)], 1)


def extrapolate(boxes: Tensor, velocity: Tensor, gap: Tensor, damping: float) -> Tensor:
    """Boxes of M tracks after ``gap`` frames (M,N, may differ by column): M,N,4 xyxy.

    With damping d the distance travelled in g frames is v (d + d^2 + ... + d^g), which stays bounded for any gap: a
    long-lost track stops nearby instead of leaving the frame.
    """
    steps = gap.clamp_min(0).to(boxes.dtype)
    travelled = steps if damping == 1 else damping * (1 - damping**steps) / (1 - damping)
    from torchvision.ops import box_convert  # slow to import, and a detector is built without it

    moved = box_convert(boxes, "xyxy", "cxcywh")[:, None] + velocity[:, None] * travelled[..., None]
    return box_convert(moved, "cxcywh", "xyxy")


def fill_gaps(
    positions: np.ndarray, boxes: np.ndarray, scores: np.ndarray, max_gap: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes for a track's gaps of at most ``max_gap`` positions, on the straight line between the ends of each gap (as
    ByteTrack and OC-SORT complete their tracks: arXiv 2110.06864, 2203.14360).

    For complete results only: a stream cannot wait for the end of a gap.

    positions: k int, increasing     boxes: k,4     scores: k
    Returns positions (n), boxes (n,4) and scores (n), the score being the lower one of the two ends.
    """
    gaps = np.diff(positions) - 1
    ends = np.flatnonzero((gaps > 0) & (gaps <= max_gap))
    steps = np.concatenate([np.arange(1, gaps[end] + 1) for end in ends] or [np.zeros(0, np.int64)])
    end = np.repeat(ends, gaps[ends])
    share = (steps / (gaps[end] + 1))[:, None]
    return (
        positions[end] + steps,
        ((1 - share) * boxes[end] + share * boxes[end + 1]).astype(boxes.dtype),
        np.minimum(scores[end], scores[end + 1]),
    )
