"""Clips of an annotated data set.

Shape legend
    N tracks of a clip     T frames of a clip     M boxes of a clip     h, w height and width in pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from stdetr.data.coco_vid import CocoVid
from stdetr.data.sampling import ClipSampler
from stdetr.data.transforms import ClipTransform
from stdetr.structures import ClassNames, Clip, ClipInfo, ClipTargets
from stdetr.video.cache import FrameCache, NoCache
from stdetr.video.frame_folder import read_image

_MIX = 0x9E3779B97F4A7C15
"""Odd 64-bit constant (golden ratio) that spreads neighbouring seeds apart."""


def clip_seed(seed: int, epoch: int, number: int) -> int:
    """63-bit seed for all random draws on one clip; the same in whichever process loads it."""
    state = np.random.SeedSequence([seed, epoch, number, 2]).generate_state(1, np.uint64)[0]
    return (int(state) ^ _MIX) & (2**63 - 1)


class ClipDataset(Dataset[Clip]):
    """Clips of a CocoVID index, cut by a sampler and changed by transforms.

    Frames stay uint8 where the transforms leave them so: batches are normalised where they are used, see
    :class:`~stdetr.structures.ClipBatch`.

    index:   the annotation file; root: folder that its file names are relative to
    sampler: which frames make clip ``number`` of an epoch
    seed:    for all random draws on the clips in training

    ``dataset[number]`` is a clip of the current epoch (:meth:`set_epoch`), ``dataset[epoch, number]`` of any epoch;
    loaders use the latter, so that workers that live through several epochs need no message.

    Raises FileNotFoundError when a video file is missing.
    """

    def __init__(
        self,
        index: CocoVid,
        root: str | Path,
        sampler: ClipSampler,
        transforms: ClipTransform,
        *,
        cache: FrameCache | None = None,
        backend: str = "av",
        seed: int = 0,
        check_files: bool = True,
    ) -> None:
        self.index, self.root, self.sampler, self.transforms = index, Path(root), sampler, transforms
        self.cache: FrameCache = cache or NoCache()
        self.backend, self.seed, self.epoch = backend, seed, 0
        if check_files:
            self._check_files()

    def _check_files(self) -> None:
        for video in range(self.index.videos):
            name = self.index.video_files[video]
            if name and not (self.root / name).is_file():
                raise FileNotFoundError(
                    f"{self.root / name} does not exist, but {self.index.path} names it (videos id "
                    f"{self.index.video_ids[video]}); is data.root={self.root} right?"
                )

    @property
    def classes(self) -> ClassNames:
        return self.index.classes

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose clips ``dataset[number]`` gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.sampler.count(self.index)

    def __getitem__(self, key: int | tuple[int, int]) -> Clip:
        epoch, number = key if isinstance(key, tuple) else (self.epoch, key)
        if not 0 <= number < len(self):
            raise IndexError(f"clip {number} of {len(self)}")
        rows = np.array(self.sampler.clip(self.index, epoch, number))
        annotations = self.index.annotations(rows)
        frames = torch.from_numpy(np.stack(self._frames(rows))).permute(0, 3, 1, 2)
        seed = clip_seed(self.seed, epoch, number)
        if self.transforms.transforms:
            # Seed the global generator for the length of the transform: results must not depend on earlier draws.
            state = torch.get_rng_state()
            torch.default_generator.manual_seed(seed)
            try:
                # Transforms on interleaved channels are several times slower.
                frames, moved, kept = self.transforms.move(frames.contiguous(), torch.from_numpy(annotations.boxes))
            finally:
                torch.set_rng_state(state)
            if frames.is_floating_point():
                frames = self.transforms.normalise(frames)
            size = (frames.shape[-2], frames.shape[-1])
            boxes, keep = moved.numpy(), kept.numpy()
        else:
            size = (frames.shape[-2], frames.shape[-1])
            boxes, keep = self.transforms.clip_boxes(annotations.boxes, size)
        targets = pack_tracks(
            image=annotations.image[keep],
            boxes=normalised_boxes(boxes[keep], size),
            labels=annotations.labels[keep],
            tracks=annotations.tracks[keep],
            ignored=annotations.ignored[keep],
            frames=len(rows),
        )
        return Clip(frames, targets, self._info(rows, seed))

    def videos(self) -> np.ndarray:
        """The video (its position in the index) of each clip of an evaluation."""
        first = (self.sampler.clip(self.index, 0, number)[0] for number in range(len(self)))
        return np.fromiter((self.index.video_of(row) for row in first), np.int64, len(self))

    def _frames(self, rows: np.ndarray) -> Sequence[np.ndarray]:
        """T arrays h,w,3 uint8 RGB."""
        video = self.index.video_of(int(rows[0]))
        name = self.index.video_files[video]
        height, width = (int(side) for side in self.index.video_sizes[video])
        if name:
            frames = self.cache.frames(self.root / name, self.index.frame_ids[rows].tolist(), self.backend)
        else:
            files = [self.root / self.index.image_files[int(row)] for row in rows]
            frames = [read_image(file, (height, width)) for file in files]
        for row, frame in zip(rows.tolist(), frames, strict=True):
            if frame.shape[:2] != (height, width):
                raise ValueError(
                    f"{self.root / (name or self.index.image_files[row])} has frames of {frame.shape[1]}x"
                    f"{frame.shape[0]}, but {self.index.path} says {width}x{height} (videos id "
                    f"{self.index.video_ids[video]}): its boxes would be wrong"
                )
        return frames

    def _info(self, rows: np.ndarray, seed: int) -> ClipInfo:
        video = self.index.video_of(int(rows[0]))
        degraded = (self.index.degradation[rows] >= 0).tolist() if self.index.marks_degradation else []
        height, width = self.index.video_sizes[video].tolist()
        return ClipInfo(
            video_id=int(self.index.video_ids[video]),
            frame_index=tuple(self.index.frame_ids[rows].tolist()),
            image_ids=tuple(self.index.image_ids[rows].tolist()),
            source_size=(height, width),
            video_name=self.index.video_names[video],
            degraded=tuple(degraded),
            seed=seed,
            last=int(rows[-1]) + 1 == self.index.rows(video).stop,
        )


def normalised_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """M,4 xyxy px -> M,4 float32 cxcywh of a frame of ``size`` (h, w)."""
    height, width = size
    low, high = boxes[:, :2], boxes[:, 2:]
    return np.concatenate([(low + high) / 2, high - low], axis=1) / np.array([width, height] * 2, np.float32)


def pack_tracks(
    *, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, tracks: np.ndarray, ignored: np.ndarray, frames: int
) -> ClipTargets:
    """Group M boxes into tracks.

    image M frame of the clip, boxes M,4 cxcywh normalised, labels, tracks, ignored M.  Boxes with one id and one
    class are a track; a box without an id (-1), or a second one with the same id on a frame, is a separate track.
    """
    if len(boxes) == 0:
        return ClipTargets.empty(frames)
    places: dict[tuple[int, int, int], int] = {}
    which: list[int] = []
    taken: set[tuple[int, int]] = set()
    for number, (frame, label, track) in enumerate(zip(image.tolist(), labels.tolist(), tracks.tolist(), strict=True)):
        key = (track, label, 0) if track >= 0 else (-1, number, 1)
        if key in places and (places[key], frame) in taken:
            key = (track, number, 1)
        place = places.setdefault(key, len(places))
        which.append(place)
        taken.add((place, frame))
    count = len(places)
    packed_boxes = np.zeros((count, frames, 4), np.float32)
    present, packed_ignored = np.zeros((2, count, frames), np.bool_)
    packed_labels, packed_tracks = np.zeros((2, count), np.int64)
    packed_boxes[which, image] = boxes
    present[which, image] = True
    packed_ignored[which, image] = ignored
    packed_labels[which] = labels
    packed_tracks[which] = tracks
    packed = (packed_labels, packed_boxes, present, packed_ignored, packed_tracks)
    return ClipTargets(*(torch.from_numpy(column) for column in packed))
