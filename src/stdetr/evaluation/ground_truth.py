"""Ground truth as numpy columns.

Shape legend
    V videos        M images (frames)       A annotations (boxes)       C categories

Boxes are ``xywh`` in source pixels, as in the COCO file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .columns import box_column, check_boxes, column, flags, index_of, load_json, optional_integers


@dataclass(frozen=True, repr=False)
class Federation:
    """What was looked for in which video.

    scored: V,C bool, the class is annotated in the video or known to be absent
    exhaustive: V,C bool, every object of the class is annotated
    """

    scored: np.ndarray
    exhaustive: np.ndarray


@dataclass(frozen=True, repr=False)
class GroundTruth:
    """A CocoVID (or plain COCO) annotation file.

    Videos keep the file's order; images are ordered by video, then ``frame_id``: the order in which the ImageNet VID
    evaluators pool detections.  Annotations are ordered by image and, inside one, as in the file.

    video_ids: V int64              video_names: V strings              frame_rate: V float64 ``fps``, nan where absent
    image_ids: M int64              image_video: M int64, position of its video     frame_ids: M int64
    degraded:  M bool or None       None when no image of the file carries a ``degradation``
    category_ids: C int64           category_names: C strings
    annotation_ids: A int64         image: A int64, position of its image           category: A int64, position
    boxes: A,4 float64 xywh         area: A float64
    crowd: A bool, ``iscrowd`` or ``ignore``: the box neither rewards nor punishes
    track: A int64, number of the track (unique over all videos); boxes without ``instance_id`` are tracks of one box
    has_tracks: whether any annotation carries an ``instance_id``
    region: A bool, the ``ignore`` ones among ``crowd``; None when there are none
    federation: which classes were looked for in which video; None when all were in all
    """

    video_ids: np.ndarray
    video_names: tuple[str, ...]
    frame_rate: np.ndarray
    image_ids: np.ndarray
    image_video: np.ndarray
    frame_ids: np.ndarray
    degraded: np.ndarray | None
    category_ids: np.ndarray
    category_names: tuple[str, ...]
    annotation_ids: np.ndarray
    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    track: np.ndarray
    has_tracks: bool
    region: np.ndarray | None = None
    federation: Federation | None = None

    def __repr__(self) -> str:
        sizes = f"{len(self.video_ids)} videos, {len(self.image_ids)} frames, {len(self.boxes)} boxes"
        return f"GroundTruth({sizes}, {len(self.category_ids)} classes)"

    @property
    def video(self) -> np.ndarray:
        """A int64, position of the video of each annotation."""
        return self.image_video[self.image]

    @property
    def frame_positions(self) -> np.ndarray:
        """M int64, number of the frame among the frames of its video that the file lists, from 0."""
        starts = np.searchsorted(self.image_video, np.arange(len(self.video_ids)))
        return np.arange(len(self.image_ids)) - starts[self.image_video]

    @property
    def video_lengths(self) -> np.ndarray:
        """V int64, number of frames of each video that the file lists."""
        return np.bincount(self.image_video, minlength=len(self.video_ids))

    def subset(self, images: np.ndarray) -> GroundTruth:
        """Only the images that the mask (M bool) names; ids, videos and categories stay."""
        keep = images[self.image]
        position = np.cumsum(images) - 1
        names = ("annotation_ids", "category", "boxes", "area", "crowd", "track")
        return replace(
            self,
            image_ids=self.image_ids[images],
            image_video=self.image_video[images],
            frame_ids=self.frame_ids[images],
            degraded=None if self.degraded is None else self.degraded[images],
            image=position[self.image[keep]],
            region=None if self.region is None else self.region[keep],
            **{name: getattr(self, name)[keep] for name in names},
        )

    def objects(self) -> GroundTruth:
        """Without the ignore regions."""
        if self.region is None:
            return self
        keep = ~self.region
        names = ("annotation_ids", "image", "category", "boxes", "area", "crowd", "track")
        return replace(self, region=None, **{name: getattr(self, name)[keep] for name in names})

    @classmethod
    def from_coco(cls, source: Path | str | dict[str, Any]) -> GroundTruth:
        """Read a CocoVID or COCO file, or the same document as a dict.

        A file without ``videos`` is plain COCO: every image is a video of one frame.  ``ignore`` counts like
        ``iscrowd``.  Raises FileNotFoundError, and ValueError naming the record and the key that does not fit.
        """
        if isinstance(source, dict):
            what, document = "annotations", source
        else:
            what, document = f"annotations file {source}:", load_json(Path(source), "annotations")
        if not isinstance(document, dict):
            raise ValueError(f"{what} must be a JSON object with images, annotations and categories, got a list")  # noqa: TRY004
        for key in ("images", "annotations", "categories"):
            if not isinstance(document.get(key), list):
                raise ValueError(f"{what} has no list {key!r}; it has {sorted(document)}")  # noqa: TRY004
        if not document["images"]:
            raise ValueError(f"{what} has no image; there is nothing to score")
        return _read(document, what)


def _unique(ids: np.ndarray, key: str, what: str) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"{what}: {key} {int(values[counts > 1][0])} appears {int(counts.max())} times; ids are unique"
        )


def _names(records: list[dict[str, Any]], ids: np.ndarray) -> tuple[str, ...]:
    """The names of the records; one that several share gets its id behind it, as reports are keyed by name."""
    names = [str(record.get("name", int(i))) for record, i in zip(records, ids, strict=True)]
    shared = {name for name, count in Counter(names).items() if count > 1}
    return tuple(f"{name} ({int(i)})" if name in shared else name for name, i in zip(names, ids, strict=True))


def _read(document: dict[str, Any], what: str) -> GroundTruth:
    categories, images, annotations = document["categories"], document["images"], document["annotations"]
    category_ids = column(categories, "id", f"{what} categories", integer=True)
    _unique(category_ids, "category id", what)
    image_ids = column(images, "id", f"{what} images", integer=True)
    _unique(image_ids, "image id", what)
    if document.get("videos"):
        videos = document["videos"]
        video_ids = column(videos, "id", f"{what} videos", integer=True)
        _unique(video_ids, "video id", what)
        names = _names(videos, video_ids)
        rates = [record.get("fps") for record in videos]
        filled = [{"fps": float("nan") if rate is None else rate} for rate in rates]
        frame_rate = column(filled, "fps", f"{what} videos")
        owner = column(images, "video_id", f"{what} images", integer=True)
        image_video = index_of(video_ids, owner, "video_id", f"{what} images")
        frame_ids = column(images, "frame_id", f"{what} images", integer=True)
    else:
        video_ids, image_video = image_ids.copy(), np.arange(len(image_ids))
        names = tuple(str(record.get("file_name", int(i))) for record, i in zip(images, image_ids, strict=True))
        frame_ids = np.zeros(len(image_ids), dtype=np.int64)
        frame_rate = np.full(len(image_ids), np.nan)
    order = np.lexsort((frame_ids, image_video))
    same = (np.diff(image_video[order]) == 0) & (np.diff(frame_ids[order]) == 0)
    if same.any():
        image = order[int(np.flatnonzero(same)[0]) + 1]
        raise ValueError(
            f"{what}: image id {int(image_ids[image])} repeats frame_id {int(frame_ids[image])} of its video"
        )
    marks = [record.get("degradation") for record in images]
    degraded = np.array([mark is not None for mark in marks])[order] if any(m is not None for m in marks) else None

    here = f"{what} annotations"
    boxes = box_column(annotations, here)
    check_boxes(boxes, here)
    image = index_of(image_ids[order], column(annotations, "image_id", here, integer=True), "image_id", here)
    category_column = column(annotations, "category_id", here, integer=True)
    category = index_of(category_ids, category_column, "category_id", here)
    annotation_ids = optional_integers(annotations, "id", here, -1)
    area = (
        column(annotations, "area", here)
        if all("area" in record for record in annotations)
        else boxes[:, 2] * boxes[:, 3]
    )
    region = flags(annotations, "ignore", here)
    crowd = flags(annotations, "iscrowd", here) | region
    instance = optional_integers(annotations, "instance_id", here, -1)
    keep = np.argsort(image, kind="stable")
    image, instance = image[keep], instance[keep]
    track = _tracks(image_video[order][image], instance)
    _one_box_per_frame(image_ids[order][image], instance, what)
    looked_for = (image_video[order][image], category[keep])
    federation = _federation(document.get("videos") or [], category_ids, looked_for, what)
    return GroundTruth(
        video_ids=video_ids,
        video_names=names,
        frame_rate=frame_rate,
        image_ids=image_ids[order],
        image_video=image_video[order],
        frame_ids=frame_ids[order],
        degraded=degraded,
        category_ids=category_ids,
        category_names=_names(categories, category_ids),
        annotation_ids=annotation_ids[keep],
        image=image,
        category=category[keep],
        boxes=boxes[keep],
        area=area[keep],
        crowd=crowd[keep],
        track=track,
        has_tracks=bool((instance >= 0).any()),
        region=region[keep] if region.any() else None,
        federation=federation,
    )


def _tracks(video: np.ndarray, instance: np.ndarray) -> np.ndarray:
    """Number of the track of each box: equal (video, instance) share one, a box without instance has its own."""
    lone = instance < 0
    pairs = np.stack([video, np.where(lone, -1 - np.arange(len(instance)), instance)], axis=1)
    if not len(pairs):
        return np.zeros(0, dtype=np.int64)
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)


def _one_box_per_frame(image_id: np.ndarray, instance: np.ndarray, what: str) -> None:
    known = instance >= 0
    pairs = np.stack([image_id[known], instance[known]], axis=1)
    if not len(pairs):
        return
    values, counts = np.unique(pairs, axis=0, return_counts=True)
    if (counts > 1).any():
        image, track = (int(v) for v in values[counts > 1][0])
        raise ValueError(
            f"{what}: instance_id {track} has {int(counts.max())} boxes in image id {image}; a track has one"
        )


def _federation(
    videos: Sequence[dict[str, Any]],
    category_ids: np.ndarray,
    annotated: tuple[np.ndarray, np.ndarray],
    what: str,
) -> Federation | None:
    """The federation of the records ``videos`` (V); None when no record has one of the two keys.

    annotated: video and category (positions, A each) of the annotations.  A video without the keys is fully annotated.
    Raises ValueError for a list that names no category.
    """
    keys = ("neg_category_ids", "not_exhaustive_category_ids")
    partly = np.array([any(key in record for key in keys) for record in videos], dtype=bool)
    if not partly.any():
        return None
    scored = np.repeat(~partly[:, None], len(category_ids), axis=1)
    scored[annotated] = True
    exhaustive = np.ones_like(scored)
    for key, table, value in ((keys[0], scored, True), (keys[1], exhaustive, False)):
        for video, record in enumerate(videos):
            listed = record.get(key) or []
            if not isinstance(listed, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in listed):
                raise ValueError(
                    f"{what} videos record {video}: {key} is {listed!r}, it must be a list of category ids"
                )
            table[video, index_of(category_ids, np.array(listed, np.int64), key, f"{what} videos")] = value
    return Federation(scored, exhaustive)
