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

import numpy as np

from stdetr.data.coco_vid_schema import SECTIONS, Table
from stdetr.data.json_file import JsonFile
from stdetr.evaluation.records import check_boxes, first_repeat, index_of, table


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
        ``iscrowd``.  Raises FileNotFoundError, and ValueError naming the record and the key that does not fit.
        """
        if isinstance(source, dict):
            what, document = "annotations", source
        else:
            what = f"annotations file {source}"
            file = JsonFile(Path(source), what)
            if isinstance(file.value, list):
                raise ValueError(f"{what} must hold an object with {', '.join(SECTIONS)}; it holds a list")  # noqa: TRY004
            document = {name: file.records(name) for name in file.value if name in SECTIONS}
        tables: dict[str, Table] = {}
        for name, kind in SECTIONS.items():
            records = document.get(name)
            if not isinstance(records, list) and name != "videos":
                raise ValueError(f"{what} has no list {name!r}; it has {sorted(document)}")
            tables[name] = table(records or [], kind, f"{what}: {name}")
            ids, counts = np.unique(tables[name]["id"], return_counts=True)
            if (counts > 1).any():
                raise ValueError(
                    f"{what}: {name}: id {ids[counts > 1][0]} appears {counts.max()} times; ids are unique"
                )
        if not len(tables["images"]):
            raise ValueError(f"{what} has no image; there is nothing to score")
        return _read(tables, what)


def _names(table: Table) -> tuple[str, ...]:
    """The names of the records; one that several share gets its id behind it, as reports are keyed by name."""
    shared = {name for name, count in Counter(table["name"]).items() if count > 1}
    pairs = zip(table["name"], table["id"], strict=True)
    return tuple(f"{name} ({i})" if name in shared else name for name, i in pairs)


def _read(tables: dict[str, Table], what: str) -> GroundTruth:
    categories, videos, images, annotations = (tables[name] for name in SECTIONS)
    image_ids, frame_ids = images["id"], images["frame_id"]
    if len(videos):
        video_ids, names = videos["id"], _names(videos)
        rates = [np.nan if rate is None else rate for rate in videos["fps"]]
        image_video = index_of(video_ids, images["video_id"], "video_id", f"{what}: images")
    else:
        video_ids, image_video = image_ids, np.arange(len(image_ids))
        names = tuple(str(name or i) for name, i in zip(images["file_name"], image_ids, strict=True))
        rates = np.full(len(image_ids), np.nan)
    order = np.lexsort((frame_ids, image_video))
    image_ids, image_video, frame_ids = image_ids[order], image_video[order], frame_ids[order]
    row = first_repeat(image_video, frame_ids)
    if row is not None:
        raise ValueError(f"{what}: image id {image_ids[row]} repeats frame_id {frame_ids[row]} of its video")
    marked = np.array([isinstance(mark, str) for mark in images["degradation"]], dtype=bool)

    here, category_ids = f"{what}: annotations", categories["id"]
    boxes, area, instance = annotations["bbox"], annotations["area"], annotations["instance_id"]
    check_boxes(boxes, here)
    image = index_of(image_ids, annotations["image_id"], "image_id", here)
    category = index_of(category_ids, annotations["category_id"], "category_id", here)
    keep = np.argsort(image, kind="stable")
    image, category, boxes, area, instance = (column[keep] for column in (image, category, boxes, area, instance))
    region = annotations["ignore"][keep].astype(bool)
    tracked = np.flatnonzero(instance >= 0)
    row = first_repeat(image[tracked], instance[tracked])
    if row is not None:
        track, image_id = instance[tracked[row]], image_ids[image[tracked[row]]]
        raise ValueError(f"{what}: instance_id {track} has two boxes in image id {image_id}; a track has one")
    return GroundTruth(
        video_ids=video_ids,
        video_names=names,
        frame_rate=np.array(rates, np.float64),
        image_ids=image_ids,
        image_video=image_video,
        frame_ids=frame_ids,
        degraded=marked[order] if marked.any() else None,
        category_ids=category_ids,
        category_names=_names(categories),
        annotation_ids=annotations["id"][keep],
        image=image,
        category=category,
        boxes=boxes,
        area=np.where(np.isnan(area), boxes[:, 2] * boxes[:, 3], area),
        crowd=annotations["iscrowd"][keep].astype(bool) | region,
        track=_tracks(image_video[image], instance),
        has_tracks=bool(len(tracked)),
        region=region if region.any() else None,
        federation=_federation(videos, category_ids, (image_video[image], category), what),
    )


def _tracks(video: np.ndarray, instance: np.ndarray) -> np.ndarray:
    """Track number of each box: boxes with equal (video, instance) share one; a box without instance gets a new one."""
    track = np.where(instance < 0, -1 - np.arange(len(instance)), instance)
    return np.unique(np.stack([video, track], axis=1), axis=0, return_inverse=True)[1].reshape(-1)


def _federation(
    videos: Table, category_ids: np.ndarray, annotated: tuple[np.ndarray, np.ndarray], what: str
) -> Federation | None:
    """The federation of the videos (V); None when no record has one of the two keys.

    annotated: video and category (positions, A each) of the annotations.  A video without the keys is fully annotated.
    Raises ValueError for a list that names no category.
    """
    absent, partial = videos["neg_category_ids"], videos["not_exhaustive_category_ids"]
    partly = np.array([a is not None or p is not None for a, p in zip(absent, partial, strict=True)], dtype=bool)
    if not partly.any():
        return None
    scored = np.repeat(~partly[:, None], len(category_ids), axis=1)
    scored[annotated] = True
    exhaustive = np.ones_like(scored)
    for key, listed, mask, value in (
        ("neg_category_ids", absent, scored, True),
        ("not_exhaustive_category_ids", partial, exhaustive, False),
    ):
        for video, ids in enumerate(listed):
            mask[video, index_of(category_ids, np.array(ids or (), np.int64), key, f"{what}: videos")] = value
    return Federation(scored, exhaustive)
