"""Frozen dataclasses that cross part boundaries.

Shape legend
    B clips in a batch      T frames of a clip     Q tube queries     N objects (tracks) or tubes
    H attention heads       F sampled frames       L feature levels   K points per head, level and frame
    h, w height and width in pixels

Boxes are ``cxcywh`` normalised to the *unpadded* frame inside the model (``ClipTargets``, ``ModelOutput``) and
``xyxy`` in source pixels outside it (``Tubes``).  Every field says which.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stdetr.class_names import ClassNames as ClassNames


def _check(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    wrong = tensor.ndim != len(shape) or any(
        want is not None and want != have for want, have in zip(shape, tensor.shape, strict=False)
    )
    if wrong:
        expected = ",".join("*" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must have shape ({expected}), got {tuple(tensor.shape)}")


def _shapes(instance: object, names: tuple[str, ...]) -> str:
    parts = [f"{name}={tuple(getattr(instance, name).shape)}" for name in names]
    return f"{type(instance).__name__}({', '.join(parts)})"


@dataclass(frozen=True, repr=False)
class ClipTargets:
    """What is annotated in one clip: N tracks, each with one class and a box on the frames where it is seen.

    labels:   N int64, contiguous class indices from 0
    boxes:    N,T,4 float32 cxcywh normalised to the unpadded frame; zeros where ``present`` is False
    present:  N,T bool, the track has a box on that frame
    ignored:  N,T bool, the box on that frame is a crowd or ignore region: it counts neither for nor against
    track_ids: N int64, the annotation's ``instance_id`` (unique inside a video; -1 where it has none)

    Raises ValueError when shapes disagree.
    """

    labels: Tensor
    boxes: Tensor
    present: Tensor
    ignored: Tensor
    track_ids: Tensor

    def __post_init__(self) -> None:
        _check("boxes", self.boxes, (None, None, 4))
        tracks, frames = self.boxes.shape[:2]
        _check("labels", self.labels, (tracks,))
        _check("track_ids", self.track_ids, (tracks,))
        _check("present", self.present, (tracks, frames))
        _check("ignored", self.ignored, (tracks, frames))

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __repr__(self) -> str:
        return _shapes(self, ("labels", "boxes", "present", "ignored", "track_ids"))

    @property
    def valid(self) -> Tensor:
        """N,T bool: boxes that count for losses and matching."""
        return self.present & ~self.ignored

    def select(self, keep: Tensor) -> ClipTargets:
        """The tracks that the boolean mask or index tensor ``keep`` (N) names."""
        return ClipTargets(
            self.labels[keep], self.boxes[keep], self.present[keep], self.ignored[keep], self.track_ids[keep]
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ClipTargets:
        move = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in self.__dataclass_fields__}
        return ClipTargets(**move)

    @classmethod
    def empty(cls, frames: int) -> ClipTargets:
        """Targets without tracks on ``frames`` frames."""
        return cls(
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, frames, 4),
            torch.zeros(0, frames, dtype=torch.bool),
            torch.zeros(0, frames, dtype=torch.bool),
            torch.zeros(0, dtype=torch.int64),
        )


@dataclass(frozen=True)
class ClipInfo:
    """Where a clip comes from; plain Python values, so that it pickles cheaply between worker processes.

    source_size: (h, w) of the source frames in pixels, before any transform
    frame_index: decoded frame number of each of the T frames, from 0
    image_ids:   CocoVID image id of each frame; -1 where a frame has no record
    degraded:    True for each frame that the annotation marks as degraded (empty without such marks)
    seed:        for all random draws on this clip in training, whichever process holds it
    last:        the last frame is the last one that is sampled of its video
    """

    video_id: int
    frame_index: tuple[int, ...]
    image_ids: tuple[int, ...]
    source_size: tuple[int, int]
    video_name: str = ""
    degraded: tuple[bool, ...] = ()
    seed: int = 0
    last: bool = False


@dataclass(frozen=True, repr=False)
class Clip:
    """One sample: T frames of one video.

    frames: T,3,h,w uint8 or float32, RGB
    """

    frames: Tensor
    targets: ClipTargets
    info: ClipInfo

    def __post_init__(self) -> None:
        _check("frames", self.frames, (None, 3, None, None))
        _check("targets.boxes", self.targets.boxes, (None, self.frames.shape[0], 4))

    def __repr__(self) -> str:
        return f"Clip(frames={tuple(self.frames.shape)}, targets={self.targets!r}, video={self.info.video_name!r})"


@dataclass(frozen=True)
class PixelScale:
    """How a uint8 pixel becomes a network's input: ``x * scale + shift``, one number for each of R, G and B."""

    scale: tuple[float, float, float]
    shift: tuple[float, float, float]

    def apply(self, frames: Tensor, real: Tensor | None = None) -> Tensor:
        """...,3,h,w uint8 or float32 (0 to 255) -> float32 of the same shape, contiguous; the input is unchanged.

        real: ...,1,h,w bool, False on padding (which is 0, and stays 0); None: there is none
        """
        # One pass converts and, where the channels are the innermost axis in memory, sorts them into planes.
        out = torch.empty(frames.shape, dtype=torch.float32, device=frames.device).copy_(frames)
        scale, shift = (torch.tensor(v, device=frames.device).view(3, 1, 1) for v in (self.scale, self.shift))
        out.mul_(scale)
        return out.add_(shift) if real is None else out.addcmul_(shift, real.float())


@dataclass(frozen=True, repr=False)
class ClipBatch:
    """B clips, padded to one size at the bottom, the right and the end of time.

    frames:      B,T,3,h,w float32, RGB, normalised with the backbone's mean and deviation; padding is 0.  Loaders give
                 uint8 frames (a quarter of the memory to fill, send and copy) and in ``pixels`` how to normalise them;
                 :meth:`normalised` does it
    sizes:       B,2 int64 (h, w) of the unpadded frames inside the padded ones
    frame_mask:  B,T bool, True for real frames, False for frames that only pad a shorter clip
    frame_index: B,T int64 decoded frame number in the source; padding continues the count
    targets:     B ClipTargets, padded in time with present = False
    infos:       B ClipInfo, not padded
    pixels:      how uint8 ``frames`` are normalised; None: they are
    """

    frames: Tensor
    sizes: Tensor
    frame_mask: Tensor
    frame_index: Tensor
    targets: tuple[ClipTargets, ...]
    infos: tuple[ClipInfo, ...]
    pixels: PixelScale | None = None

    def __post_init__(self) -> None:
        _check("frames", self.frames, (None, None, 3, None, None))
        batch, frames = self.frames.shape[:2]
        _check("sizes", self.sizes, (batch, 2))
        _check("frame_mask", self.frame_mask, (batch, frames))
        _check("frame_index", self.frame_index, (batch, frames))

    def __len__(self) -> int:
        return self.frames.shape[0]

    def __repr__(self) -> str:
        return _shapes(self, ("frames", "sizes", "frame_mask", "frame_index"))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ClipBatch:
        """The batch on ``device``, otherwise unchanged."""
        names = ("frames", "sizes", "frame_mask", "frame_index")
        moved = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names}
        return replace(self, targets=tuple(target.to(device, non_blocking) for target in self.targets), **moved)

    def normalised(self) -> ClipBatch:
        """The batch with normalised float32 frames, padded with 0; itself if they are normalised already."""
        if self.pixels is None:
            return self
        rows, columns = (torch.arange(side, device=self.frames.device) for side in self.frames.shape[-2:])
        real_Bhw = (rows < self.sizes[:, :1])[:, :, None] & (columns < self.sizes[:, 1:])[:, None]
        real_BT1hw = self.frame_mask[:, :, None, None, None] & real_Bhw[:, None, None]
        return replace(self, frames=self.pixels.apply(self.frames, real_BT1hw), pixels=None)

    def split_frames(self) -> ClipBatch:
        """The real frames of the batch, each as a separate clip (T = 1), clip by clip."""
        clip, frame = torch.nonzero(self.frame_mask, as_tuple=True)
        targets, infos = [], []
        for b, t in zip(clip.tolist(), frame.tolist(), strict=True):
            whole, info = self.targets[b], self.infos[b]
            seen = torch.nonzero(whole.present[:, t]).flatten()
            part = whole.select(seen)
            targets.append(
                ClipTargets(
                    part.labels,
                    part.boxes[:, t : t + 1],
                    part.present[:, t : t + 1],
                    part.ignored[:, t : t + 1],
                    part.track_ids,
                )
            )
            infos.append(
                replace(
                    info,
                    frame_index=info.frame_index[t : t + 1],
                    image_ids=info.image_ids[t : t + 1],
                    degraded=info.degraded[t : t + 1],
                    seed=info.seed + t,
                )
            )
        return ClipBatch(
            frames=self.frames[clip, frame][:, None],
            sizes=self.sizes[clip],
            frame_mask=torch.ones_like(clip, dtype=torch.bool)[:, None],
            frame_index=self.frame_index[clip, frame][:, None],
            targets=tuple(targets),
            infos=tuple(infos),
            pixels=self.pixels,
        )


@dataclass(frozen=True, repr=False)
class ModelOutput:
    """The detector's output for a batch, before thresholds and conversion to pixels.

    logits:   B,Q,classes class logits of each tube (sigmoid, no background class).  Causal models: B,Q,T,classes, on
              frame t from the frames up to t
    frame_logits: B,Q,T,classes the same from the tube's state on a single frame
    boxes:    B,Q,T,4 cxcywh in [0,1] of the unpadded frame
    presence: B,Q,T logits: is the object on that frame?
              All logits of a causal tube are so low before its first frame that their sigmoid is 0
    losses_input: what the criterion needs beyond that (auxiliary layers, proposals, denoising); None at inference
    """

    logits: Tensor
    frame_logits: Tensor
    boxes: Tensor
    presence: Tensor
    losses_input: object | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return _shapes(self, ("logits", "frame_logits", "boxes", "presence"))

    @property
    def clip_logits(self) -> Tensor:
        """B,Q,classes: the tubes' class logits given all frames."""
        return self.logits if self.logits.ndim == 3 else self.logits[:, :, -1]

    def frames(self, first: int, stop: int) -> ModelOutput:
        """The output for the frames ``first`` to ``stop - 1``; of a causal model, as if no later frame existed."""
        logits = self.logits if self.logits.ndim == 3 else self.logits[:, :, first:stop]
        of_frames = (getattr(self, name)[:, :, first:stop] for name in ("frame_logits", "boxes", "presence"))
        return ModelOutput(logits, *of_frames)


@dataclass(frozen=True, repr=False)
class Tubes:
    """Detections of one clip (or of a whole video, once stitched), in source pixels.

    boxes:       N,T,4 float32 xyxy in pixels of the source frame
    scores:      N,T float32 in [0,1], score of the detection on that frame
    labels:      N int64 contiguous class index from 0
    track_ids:   N int64; equal ids are one object through the video; -1 before stitching
    frame_index: T int64 decoded frame number in the source, from 0
    tube_scores: N float32, the class score of the tube
    present:     N,T bool, frames where the tube is reported (False: outside the tube's life; ignore the box)
    queries:     N int64, the model's query behind the tube; None once stitched
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    track_ids: Tensor
    frame_index: Tensor
    tube_scores: Tensor
    present: Tensor
    queries: Tensor | None = None

    def __post_init__(self) -> None:
        _check("boxes", self.boxes, (None, None, 4))
        tubes, frames = self.boxes.shape[:2]
        _check("scores", self.scores, (tubes, frames))
        _check("present", self.present, (tubes, frames))
        _check("frame_index", self.frame_index, (frames,))
        for name in ("labels", "track_ids", "tube_scores"):
            _check(name, getattr(self, name), (tubes,))

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __repr__(self) -> str:
        return _shapes(self, ("boxes", "labels", "frame_index"))

    def select(self, keep: Tensor) -> Tubes:
        """The tubes that the boolean mask or index tensor ``keep`` (N) names."""
        names = ("boxes", "scores", "labels", "track_ids", "tube_scores", "present")
        queries = None if self.queries is None else self.queries[keep]
        return replace(self, queries=queries, **{name: getattr(self, name)[keep] for name in names})

    def frames(self, first: int) -> Tubes:
        """The tubes on the frames from ``first`` on."""
        parts = {name: getattr(self, name)[:, first:] for name in ("boxes", "scores", "present")}
        return replace(self, frame_index=self.frame_index[first:], **parts)


@dataclass(frozen=True, repr=False)
class SamplingRecord:
    """Where the decoder's last layer sampled in one clip; the input of the sampling figure.

    locations: Q,T,H,F,L,K,2 float32 (x, y) in [0,1] of the unpadded frame; tube q, seen from frame t
    weights:   Q,T,H,F,L,K float32, sum to 1 over F x L x K (0 everywhere when all frames are masked)
    frames:    T,F int64, the sampled frames among the clip's T; -1 = none
    boxes:     Q,T,4 float32 cxcywh in [0,1], the reference boxes that the sampling started from
    """

    locations: Tensor
    weights: Tensor
    frames: Tensor
    boxes: Tensor

    def __repr__(self) -> str:
        return _shapes(self, ("locations", "weights", "frames", "boxes"))
