"""Which frames make a clip.

Shape legend
    T frames of a clip     rows: images of a CocoVID index, numbered from 0 in the order of video and frame

A clip is a tuple of rows of one video, in temporal order.  Only frames with a record are sampled: a frame without one
may show unannotated objects.  Training samplers draw clip ``index`` of ``epoch`` from ``(seed, epoch, index)``
alone, so the clips do not depend on the number of workers or on where a run was resumed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np

from stdetr.data.coco_vid import CocoVid


class ClipSampler(Protocol):
    """Turns an index into clips."""

    @property
    def frames(self) -> int:
        """T."""
        ...

    def count(self, index: CocoVid) -> int:
        """Number of clips per epoch."""
        ...

    def clip(self, index: CocoVid, epoch: int, number: int) -> tuple[int, ...]:
        """Clip ``number`` of ``epoch``."""
        ...

    def with_frames(self, frames: int) -> ClipSampler:
        """The same sampler for clips of ``frames`` frames."""
        ...


def _check_positive(key: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{key} must be at least 1, got {value}")


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch visits rows; cached, since every clip of the epoch uses it."""
    return np.random.default_rng([seed, epoch]).permutation(count)


@dataclass(frozen=True)
class RandomWindows:
    """Training clips: windows of T frames, ``stride`` rows apart, at random places.

    stride: one number, or several to draw from (``[1, 2, 4]``); too short a video gets the largest stride that fits
    frames_per_epoch: frames per epoch, counted before padding; None: as many as the index has.  T = 1 and T = 5 thus
        see equally many frames per epoch, T = 5 in a fifth of the clips.

    Every row serves as the anchor of a window equally often, so that long videos weigh as much as their frames.  A
    video of fewer than T frames gives a shorter clip, padded when clips are batched.
    """

    frames: int
    stride: int | tuple[int, ...] = 1
    frames_per_epoch: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        strides = (self.stride,) if isinstance(self.stride, int) else tuple(self.stride)
        object.__setattr__(self, "stride", strides)
        _check_positive("data.train_sampler.frames", self.frames)
        for stride in strides:
            _check_positive("data.train_sampler.stride", stride)
        if self.frames_per_epoch is not None:
            _check_positive("data.train_sampler.frames_per_epoch", self.frames_per_epoch)

    def count(self, index: CocoVid) -> int:
        return max(1, (self.frames_per_epoch or index.images) // self.frames)

    def clip(self, index: CocoVid, epoch: int, number: int) -> tuple[int, ...]:
        lap, place = divmod(number, index.images)
        anchor = int(_permutation(self.seed, epoch + 1_000_003 * lap, index.images)[place])
        rng = np.random.default_rng([self.seed, epoch, number, 1])
        rows = index.rows(index.video_of(anchor))
        assert isinstance(self.stride, tuple)
        fitting = (len(rows) - 1) // max(self.frames - 1, 1)
        stride = max(1, min(int(rng.choice(self.stride)), fitting))
        if len(rows) <= (self.frames - 1) * stride:
            return tuple(rows)
        start = anchor - int(rng.integers(self.frames)) * stride
        start = min(max(start, rows.start), rows.stop - 1 - (self.frames - 1) * stride)
        return tuple(range(start, start + self.frames * stride, stride))

    def with_frames(self, frames: int) -> RandomWindows:
        return replace(self, frames=frames)


@dataclass(frozen=True)
class KeyframeReferences:
    """Training clips of a key frame with T - 1 references drawn from the rows within ``reach`` of it.

    causal: references come from the past only

    The frames are put in order of time.  This is the sampling of FGFA and its successors, and it suits data where
    only some frames carry boxes.
    """

    frames: int
    reach: int = 12
    causal: bool = False
    frames_per_epoch: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_positive("data.train_sampler.frames", self.frames)
        _check_positive("data.train_sampler.reach", self.reach)

    def count(self, index: CocoVid) -> int:
        return max(1, (self.frames_per_epoch or index.images) // self.frames)

    def clip(self, index: CocoVid, epoch: int, number: int) -> tuple[int, ...]:
        lap, place = divmod(number, index.images)
        key = int(_permutation(self.seed, epoch + 1_000_003 * lap, index.images)[place])
        rng = np.random.default_rng([self.seed, epoch, number, 1])
        rows = index.rows(index.video_of(key))
        last = key if self.causal else min(key + self.reach, rows.stop - 1)
        near = np.array([row for row in range(max(key - self.reach, rows.start), last + 1) if row != key], dtype=int)
        references = rng.choice(near, size=min(self.frames - 1, len(near)), replace=False)
        return tuple(sorted([key, *(int(row) for row in references)]))

    def with_frames(self, frames: int) -> KeyframeReferences:
        return replace(self, frames=frames)


@lru_cache(maxsize=8)
def _clips_per_video(starts: bytes, frames: int) -> np.ndarray:
    """V+1 cumulative count of covering clips before each video; ``starts``: their first rows, int64, as bytes."""
    return np.concatenate([[0], np.cumsum(-(-np.diff(np.frombuffer(starts, np.int64)) // frames))])


@dataclass(frozen=True)
class CoveringWindows:
    """Evaluation clips: every frame of every video exactly once, in order; the last clip of a video may be shorter."""

    frames: int

    def __post_init__(self) -> None:
        _check_positive("data.eval_sampler.frames", self.frames)

    def _table(self, index: CocoVid) -> np.ndarray:
        # Cached by the bytes, since every clip needs it: hashing those of a thousand videos takes microseconds.
        return _clips_per_video(index.video_start.astype(np.int64, copy=False).tobytes(), self.frames)

    def count(self, index: CocoVid) -> int:
        return int(self._table(index)[-1])

    def clip(self, index: CocoVid, epoch: int, number: int) -> tuple[int, ...]:
        table = self._table(index)
        video = int(np.searchsorted(table, number, side="right")) - 1
        rows = index.rows(video)
        start = (number - int(table[video])) * self.frames
        return tuple(rows[start : start + self.frames])

    def with_frames(self, frames: int) -> CoveringWindows:
        return replace(self, frames=frames)
