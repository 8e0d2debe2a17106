"""Ground truth as numpy columns.

Shape legend
    V videos        M images (frames)       A annotations (boxes)       C categories

Boxes are ``xywh`` in source pixels, as in the COCO file.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stdetr.data.coco_vid_rules import BORDER, FRAMES, faults, positions
from stdetr.data.coco_vid_schema import CocoVidFile, Table
from stdetr.evaluation.records import check_boxes
from stdetr.names import did_you_mean


@dataclass(frozen=True, repr=False)
class Federation:
    """Which classes are annotated in which video.

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
    crowd: A bool, ``iscrowd`` or ``ignore``: the box counts neither for nor against
    track: A int64, number of the track (unique over all videos); boxes without ``instance_id`` are tracks of one box
    has_tracks: whether any annotation carries an ``instance_id``
    region: A bool, the ``ignore`` ones among ``crowd``; None when there are none
    federation: which classes are annotated in which video; None when all are in all videos
    video_records: V, the videos as they stand in the file; empty for plain COCO
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
    video_records: tuple[msgspec.Raw, ...] = ()

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

    def video_field(self, name: str) -> tuple[str, ...]:
        """V strings: a field of the videos, as text; raises ValueError where a video has no such text or number."""
        records = [msgspec.json.decode(record) for record in self.video_records]
        if not records:
            raise ValueError(f"these annotations have no videos, so no field {name!r} of videos")
        without = next((record for record in records if not isinstance(record.get(name), str | int)), None)
        if without is not None:
            shared = sorted(set.intersection(*(set(record) for record in records)))
            raise ValueError(
                f"video {without['name']!r} has no {name!r} in the annotations; fields of all videos: "
                f"{', '.join(shared)}{did_you_mean(name, shared)}"
            )
        return tuple(str(record[name]) for record in records)

    def subset(self, images: np.ndarray) -> GroundTruth:
        """Only the images that the mask (M bool) names; ids, videos and categories stay."""
        part = self._take(images[self.image])
        return replace(
            part,
            image_ids=self.image_ids[images],
            image_video=self.image_video[images],
            frame_ids=self.frame_ids[images],
            degraded=None if self.degraded is None else self.degraded[images],
            image=(np.cumsum(images) - 1)[part.image],
        )

    def objects(self) -> GroundTruth:
        """Without the ignore regions."""
        return self if self.region is None else replace(self._take(~self.region), region=None)

    def _take(self, keep: np.ndarray) -> GroundTruth:
        """Only the annotations that the mask (A bool) names."""
        names = ("annotation_ids", "image", "category", "boxes", "area", "crowd", "track")
        region = None if self.region is None else self.region[keep]
        return replace(self, region=region, **{name: getattr(self, name)[keep] for name in names})

    @classmethod
    def from_coco(cls, source: Path | str | dict[str, Any]) -> GroundTruth:
        """Read a CocoVID or COCO file, or the same document as a dict.

        A file without ``videos`` is plain COCO: every image is a video of one frame.  ``ignore`` counts like
        ``iscrowd``.  Raises FileNotFoundError and ValueError for what ``data action=validate`` finds, except boxes that
        leave their frame and missing frames, which do not matter here.
        """
        file = CocoVidFile(source if isinstance(source, dict) else Path(source), stills=True)
        for fault in faults(file, but=frozenset({BORDER, FRAMES})):
            raise ValueError(f"annotations file {fault.line}" if isinstance(file.path, Path) else fault.line)
        return _read(file)


def _names(videos: Table) -> tuple[str, ...]:
    """The names of the videos; one that several share gets its id behind it, as reports are keyed by name."""
    shared = {name for name, count in Counter(videos["name"]).items() if count > 1}
    pairs = zip(videos["name"], videos["id"], strict=True)
    return tuple(f"{name} ({i})" if name in shared else name for name, i in pairs)


def _read(file: CocoVidFile) -> GroundTruth:
    categories, videos, images, annotations = file.categories, file.videos, file.images, file.annotations
    video_ids, category_ids = videos["id"], categories["id"]
    image_video, frame_ids = positions(video_ids, images["video_id"]), images["frame_id"]
    order = np.lexsort((frame_ids, image_video))
    image_ids, image_video, frame_ids = images["id"][order], image_video[order], frame_ids[order]
    marked = np.array([isinstance(mark, str) for mark in images["degradation"]], dtype=bool)
    boxes, area, instance = annotations["bbox"], annotations["area"], annotations["instance_id"]
    check_boxes(boxes, f"annotations file {file.path}: annotations")
    image = positions(image_ids, annotations["image_id"])
    category = positions(category_ids, annotations["category_id"])
    keep = np.argsort(image, kind="stable")
    image, category, boxes, area, instance = (column[keep] for column in (image, category, boxes, area, instance))
    region = annotations["ignore"][keep].astype(bool)
    return GroundTruth(
        video_ids=video_ids,
        video_names=_names(videos),
        frame_rate=np.array([np.nan if rate is None else rate for rate in videos["fps"]], np.float64),
        image_ids=image_ids,
        image_video=image_video,
        frame_ids=frame_ids,
        degraded=marked[order] if marked.any() else None,
        category_ids=category_ids,
        category_names=tuple(categories["name"]),
        annotation_ids=annotations["id"][keep],
        image=image,
        category=category,
        boxes=boxes,
        area=np.where(np.isnan(area), boxes[:, 2] * boxes[:, 3], area),
        crowd=annotations["iscrowd"][keep].astype(bool) | region,
        track=_tracks(image_video[image], instance),
        has_tracks=bool((instance >= 0).any()),
        region=region if region.any() else None,
        video_records=tuple(record.copy() for record in videos.records),
        federation=_federation(videos, category_ids, (image_video[image], category)),
    )


def _tracks(video: np.ndarray, instance: np.ndarray) -> np.ndarray:
    """Track number of each box: boxes with equal (video, instance) share one; a box without instance gets a new one."""
    track = np.where(instance < 0, -1 - np.arange(len(instance)), instance)
    return np.unique(np.stack([video, track], axis=1), axis=0, return_inverse=True)[1].reshape(-1)


def _federation(videos: Table, category_ids: np.ndarray, annotated: tuple[np.ndarray, np.ndarray]) -> Federation | None:
    """The federation of the videos (V); None when no record has one of the two keys.

    annotated: video and category (positions, A each) of the annotations.  A video without the keys is fully annotated.
    """
    absent, partial = videos["neg_category_ids"], videos["not_exhaustive_category_ids"]
    partly = np.array([a is not None or p is not None for a, p in zip(absent, partial, strict=True)], dtype=bool)
    if not partly.any():
        return None
    scored = np.repeat(~partly[:, None], len(category_ids), axis=1)
    scored[annotated] = True
    exhaustive = np.ones_like(scored)
    for listed, mask, value in ((absent, scored, True), (partial, exhaustive, False)):
        for video, ids in enumerate(listed):
            mask[video, positions(category_ids, np.array(ids or (), np.int64))] = value
    return Federation(scored, exhaustive)
