"""The CocoVID index: one annotation file, read once into columns.

Shape legend
    V videos     I images (frames with a record)     A annotations

Columns are numpy arrays sorted by video and frame, so that an index of a million frames pickles to worker processes
as a few buffers.  The file format is COCO's (Lin et al., 2014) with the video fields of MMTracking's CocoVID.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stdetr.structures import ClassNames

DEGRADATIONS = ("blur", "defocus", "noise", "blank")
"""Kinds of degradation that ``images[].degradation`` may name."""


@dataclass(frozen=True)
class PackedNames:
    """Strings in one buffer; a list of a million ``str`` would be pickled and reference counted one by one."""

    buffer: bytes
    stops: np.ndarray

    @classmethod
    def pack(cls, names: list[str]) -> PackedNames:
        encoded = [name.encode() for name in names]
        return cls(b"".join(encoded), np.cumsum([0] + [len(name) for name in encoded], dtype=np.int64)[1:])

    def __len__(self) -> int:
        return len(self.stops)

    def __getitem__(self, index: int) -> str:
        start = int(self.stops[index - 1]) if index > 0 else 0
        return self.buffer[start : int(self.stops[index])].decode()


@dataclass(frozen=True)
class FrameBoxes:
    """Annotations of some images: ``image`` A (position in the request), ``boxes`` A,4 xyxy px and their columns."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    tracks: np.ndarray
    ignored: np.ndarray


@dataclass(frozen=True)
class CocoVid:
    """A parsed annotation file.  ``rows`` number the images from 0 in the order of video and frame.

    video_ids V, video_sizes V,2 (h, w) px, video_lengths V decoded frames (0: unknown), video_names V,
    video_files V ("" where frames are image files), video_start V+1 first row of each video,
    image_ids I, frame_ids I, image_files I ("" where frames come from the video file), degradation I
    (-1 none, else index into ``DEGRADATIONS``), annotation_start I+1,
    boxes A,4 float32 xyxy px clipped to the frame, labels A contiguous from 0, tracks A (-1 unknown), ignored A.
    """

    path: Path
    classes: ClassNames
    video_ids: np.ndarray
    video_sizes: np.ndarray
    video_lengths: np.ndarray
    video_names: PackedNames
    video_files: PackedNames
    video_start: np.ndarray
    image_ids: np.ndarray
    frame_ids: np.ndarray
    image_files: PackedNames
    degradation: np.ndarray
    annotation_start: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    tracks: np.ndarray
    ignored: np.ndarray
    marks_degradation: bool
    clipped: int

    @property
    def videos(self) -> int:
        return len(self.video_ids)

    @property
    def images(self) -> int:
        return len(self.image_ids)

    def rows(self, video: int) -> range:
        """Rows of the frames of video number ``video``."""
        return range(int(self.video_start[video]), int(self.video_start[video + 1]))

    def video_of(self, row: int) -> int:
        """Number of the video that image ``row`` belongs to."""
        return int(np.searchsorted(self.video_start, row, side="right")) - 1

    def annotations(self, rows: np.ndarray) -> FrameBoxes:
        """Boxes of the images ``rows`` (any order, repetition allowed)."""
        starts, stops = self.annotation_start[rows], self.annotation_start[rows + 1]
        counts = stops - starts
        image = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        picked = np.repeat(starts, counts) + within
        return FrameBoxes(image, self.boxes[picked], self.labels[picked], self.tracks[picked], self.ignored[picked])

    def __repr__(self) -> str:
        return f"CocoVid({self.path.name}: {self.videos} videos, {self.images} images, {len(self.boxes)} boxes)"
