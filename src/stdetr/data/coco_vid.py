"""The CocoVID index: one valid annotation file as columns sorted by video and frame.

Shape legend
    V videos     I images (frames with a record)     A annotations

Columns are numpy arrays, so that an index of a million frames pickles to worker processes as a few buffers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stdetr.class_names import ClassNames
from stdetr.data.coco_vid_rules import BORDER, BORDER_TOLERANCE, faults, overhang, positions
from stdetr.data.coco_vid_schema import DEGRADATIONS, CocoVidFile


@dataclass(frozen=True)
class PackedNames:
    """Strings in one buffer, as a list of a million ``str`` would be pickled and reference counted one by one."""

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


def read_coco_vid(path: str | Path, *, strict: bool = True) -> CocoVid:
    """Load and check one annotation file.

    strict: a box without area, or that leaves its frame by more than a pixel, is an error; otherwise boxes are clipped
    to the frame and those that lie wholly outside are dropped (``CocoVid.clipped`` counts both).

    Raises FileNotFoundError when the file is absent and ValueError, in one line that names file, record and fix, for
    any other violation.
    """
    file = CocoVidFile(Path(path))
    for fault in faults(file, but=frozenset() if strict else frozenset({BORDER})):
        fix = "; correct such boxes, or set data.strict=false to clip them" if fault.kind == BORDER else ""
        raise ValueError(f"{fault.line}{fix} (stdetr data action=validate path={path} lists all that is wrong)")
    classes = dict(sorted(zip(file.categories["id"].tolist(), file.categories["name"], strict=True)))
    videos, images = file.videos, file.images
    by_id = np.argsort(videos["id"])
    sizes = np.array([videos["height"], videos["width"]], np.int64).T[by_id]
    video = positions(videos["id"][by_id], images["video_id"])
    order = np.lexsort((images["frame_id"], video))
    codes = {None: -1, msgspec.UNSET: -1, **{name: code for code, name in enumerate(DEGRADATIONS)}}
    return CocoVid(
        path=Path(path),
        classes=ClassNames(tuple(classes), tuple(classes.values())),
        video_ids=videos["id"][by_id],
        video_sizes=sizes,
        video_lengths=np.array(videos["length"], np.int64)[by_id],
        video_names=PackedNames.pack([videos["name"][place] for place in by_id]),
        video_files=PackedNames.pack([videos["file_name"][place] or "" for place in by_id]),
        video_start=np.searchsorted(video[order], np.arange(len(videos) + 1)),
        image_ids=images["id"][order],
        frame_ids=images["frame_id"][order],
        image_files=PackedNames.pack([images["file_name"][place] or "" for place in order]),
        degradation=np.array([codes[images["degradation"][place]] for place in order], np.int8),
        marks_degradation=any(mark is not msgspec.UNSET for mark in images["degradation"]),
        **_annotations(file, tuple(classes), images["id"][order], sizes[video[order]]),
    )


def _annotations(
    file: CocoVidFile, classes: tuple[int, ...], image_ids: np.ndarray, sizes: np.ndarray
) -> dict[str, Any]:
    """Columns of the annotations, sorted by image row; ``sizes`` I,2 (h, w) px."""
    table = file.annotations
    rows = positions(image_ids, table["image_id"])
    limits = sizes[rows][:, ::-1].astype(np.float64)
    boxes = table["bbox"]
    far = overhang(boxes, limits) > BORDER_TOLERANCE
    boxes[:, 2:] += boxes[:, :2]
    boxes = np.clip(boxes, 0, np.concatenate([limits, limits], axis=1))
    keep = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    order = np.argsort(rows, kind="stable")
    order = order[keep[order]]
    return {
        "annotation_start": np.searchsorted(rows[order], np.arange(len(image_ids) + 1)),
        "boxes": boxes[order].astype(np.float32),
        "labels": positions(np.array(classes), table["category_id"])[order],
        "tracks": table["instance_id"][order],
        "ignored": ((table["iscrowd"] + table["ignore"]) > 0)[order],
        "clipped": int((far | ~keep).sum()),
    }
