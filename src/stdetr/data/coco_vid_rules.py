"""Every rule of CocoVID beyond the types, checked on whole columns.

Shape legend
    n rows of a section
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from stdetr.data.coco_vid_schema import DEGRADATIONS, SECTIONS, CocoVidFile, Table, leaves_folder
from stdetr.data.json_file import ABSENT
from stdetr.names import nearest

# Rounded annotations overhang by a fraction of a pixel, which is harmless.
BORDER_TOLERANCE = 1.0


BORDER, FRAMES = "border", "frames"


class Fault(NamedTuple):
    """One violation in one line.

    kind: ``border``, a box without area or outside its frame, which a reader may clip; ``frames``, a video or image
        that leads to no frames, which evaluation does not need; else empty
    """

    line: str
    kind: str = ""


class _Rule(NamedTuple):
    """The rows that violate a rule, and the message for one of them."""

    rows: np.ndarray
    tell: Callable[[int], str]
    kind: str = ""


def faults(file: CocoVidFile, *, but: frozenset[str] = frozenset()) -> Iterator[Fault]:
    """What is wrong with a file, section by section in the order of the records: ``file:12: images[3] (id 7): ...``.

    but: kinds that are not reported
    """
    for name in SECTIONS if not file.stills else ("categories", "images", "annotations"):
        if name not in file.json.value:
            yield Fault(f"{file.path}: section {name!r} is missing{_hint(name, file.json.value)}")
        elif not file.tables[name].records and name != "annotations":
            yield Fault(f"{file.path}: section {name!r} is empty")
    rules = (_categories, _videos, _images, _annotations)
    for (name, table), rules_of in zip(file.tables.items(), rules, strict=True):
        broken = [rule for rule in rules_of(file) if len(rule.rows) and rule.kind not in but]
        malformed = np.array(table.malformed, np.int64)
        # A million faults are a million lines: yield them one at a time.
        rows = np.concatenate([*(rule.rows for rule in broken), malformed])
        numbers = np.concatenate([*(table.numbers[rule.rows] for rule in broken), malformed])
        kinds = np.repeat(np.arange(len(broken) + 1), [*(len(rule.rows) for rule in broken), len(malformed)])
        for entry in np.argsort(numbers, kind="stable"):
            place = file.place(name, int(numbers[entry]))
            if kinds[entry] == len(broken):
                yield Fault(f"{place}: {table.misfit(int(numbers[entry]))}")
            else:
                rule = broken[kinds[entry]]
                yield Fault(f"{place}: {rule.tell(int(rows[entry]))}", rule.kind)
    for video in np.setdiff1d(file.videos["id"], file.images["video_id"]) if FRAMES not in but else ():
        yield Fault(f"{file.path}: video id {video} has no image record", FRAMES)


def _hint(name: str, sections: dict[str, Any]) -> str:
    near = nearest(name, sections)
    if near:
        return f"; there is {near!r}"
    return "; convert plain COCO with: stdetr data action=convert format=coco" if name == "videos" else ""


def _categories(file: CocoVidFile) -> Iterator[_Rule]:
    names = file.categories["name"]
    yield _ids_unique(file.categories)
    yield _Rule(repeated(_codes(names)), lambda row: f"name {names[row]!r} was already used")


def _videos(file: CocoVidFile) -> Iterator[_Rule]:
    videos, known = file.videos, set(file.categories["id"].tolist())
    yield _ids_unique(videos)
    yield _names_inside(videos["file_name"])
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        unknown = [sorted(set(ids or ()) - known) for ids in videos[key]]
        lost = [f"{key} has {ids[0]}, which is not among the categories" if ids else "" for ids in unknown]
        yield _Rule(_where(map(bool, lost)), lost.__getitem__)


def _images(file: CocoVidFile) -> Iterator[_Rule]:
    images, videos = file.images, file.videos
    owner, frame, marks, files = images["video_id"], images["frame_id"], images["degradation"], images["file_name"]
    video = positions(videos["id"], owner)
    known = video >= 0
    # The last entry stands for an unknown video (position -1), which cannot be checked.
    length = np.array([*videos["length"], np.iinfo(np.int64).max])
    has_file = np.array([*map(bool, videos["file_name"]), True])
    yield _ids_unique(images)
    yield _unknown("video_id", owner, videos, "videos")
    yield _Rule(
        np.flatnonzero(known & ((frame < 0) | (frame >= length[video]))),
        lambda row: f"frame_id {frame[row]} is outside 0..{length[video[row]] - 1} of video {owner[row]}",
    )
    yield _Rule(
        repeated(owner, frame, known),
        lambda row: f"frame_id {frame[row]} of video {owner[row]} has a second image record",
    )
    image_size = np.array([[side or 0 for side in images[key]] for key in ("width", "height")], np.int64)
    size = np.array([[*videos[key], 0] for key in ("width", "height")], np.int64)[:, video]
    yield _Rule(
        np.flatnonzero(((image_size > 0) & (image_size != size) & known).any(axis=0)),
        lambda row: "is {}x{}, its video {}x{}".format(
            *np.where(image_size[:, row] > 0, image_size[:, row], size[:, row]), *size[:, row]
        ),
    )
    yield _Rule(
        _where(mark not in (*DEGRADATIONS, None, msgspec.UNSET) for mark in marks),
        lambda row: f"degradation {marks[row]!r} is not one of {', '.join(DEGRADATIONS)}",
    )
    yield _names_inside(files)
    nowhere = ~np.array([*map(bool, files)], dtype=bool) & ~has_file[video]
    yield _Rule(np.flatnonzero(nowhere), lambda row: "has no file_name, and neither has its video", FRAMES)


def _annotations(file: CocoVidFile) -> Iterator[_Rule]:
    table, images, videos = file.annotations, file.images, file.videos
    boxes, category, track, claimed = table["bbox"], table["category_id"], table["instance_id"], table["video_id"]
    image = positions(images["id"], table["image_id"])
    held = np.append(images["video_id"], ABSENT)[image]
    size = np.array([[*videos[key], np.nan] for key in ("width", "height")]).T[positions(videos["id"], held)]
    yield _ids_unique(table)
    yield _unknown("category_id", category, file.categories, "categories")
    yield _unknown("image_id", table["image_id"], images, "images")
    yield _Rule(
        np.flatnonzero((claimed != ABSENT) & (image >= 0) & (claimed != held)),
        lambda row: f"video_id is {claimed[row]}, but its image belongs to video {held[row]}",
    )
    flat = (boxes[:, 2:] <= 0).any(axis=1)
    yield _Rule(np.flatnonzero(flat), lambda row: f"bbox {_plain(boxes[row])} has no area", BORDER)
    yield _Rule(
        np.flatnonzero(~flat & (overhang(boxes, size) > BORDER_TOLERANCE)),
        lambda row: "bbox {} leaves its {:g}x{:g} frame".format(_plain(boxes[row]), *size[row]),
        BORDER,
    )
    yield _Rule(
        np.flatnonzero(table["area"] < 0), lambda row: f"area must be a number from 0, it is {table['area'][row]:g}"
    )
    yield _Rule(
        np.flatnonzero((table["track_id"] != ABSENT) & (track < 0)),
        lambda row: f"track_id {table['track_id'][row]}, but no instance_id: CocoVID calls it instance_id; rename it",
    )
    tracked = (track >= 0) & (image >= 0)
    yield _Rule(
        repeated(table["image_id"], track, tracked),
        lambda row: f"instance_id {track[row]} has a second box on image {table['image_id'][row]}",
    )
    first = _first(held, track)
    yield _Rule(
        np.flatnonzero(tracked & (category[first] != category)),
        lambda row: (
            f"instance_id {track[row]} is category {category[row]} here, and {category[first[row]]} elsewhere in "
            f"video {held[row]}"
        ),
    )


def positions(ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Position in ``ids`` of each of ``wanted`` (n int64), -1 where it is not there; the last of equal ids counts."""
    if not len(ids):
        return np.full(len(values), -1)
    order = np.argsort(ids, kind="stable")
    match = order[np.maximum(np.searchsorted(ids[order], values, side="right") - 1, 0)]
    return np.where(ids[match] == values, match, -1)


def overhang(xywh: np.ndarray, size: np.ndarray) -> np.ndarray:
    """How far each box (n,4) leaves its frame (n,2 w, h; nan: unknown), in pixels; negative inside."""
    return np.maximum((-xywh[:, :2]).max(axis=1), (xywh[:, :2] + xywh[:, 2:] - size).max(axis=1))


def _first(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """For each pair of keys (n) the first row that has the same pair."""
    order = np.lexsort((two, one))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(one[order]) != 0) | (np.diff(two[order]) != 0)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    return first


def repeated(one: np.ndarray, two: np.ndarray | None = None, among: np.ndarray | None = None) -> np.ndarray:
    """Rows (within the mask ``among``) whose keys repeat those of an earlier row."""
    rows = np.arange(len(one)) if among is None else np.flatnonzero(among)
    first = _first(one[rows], one[rows] if two is None else two[rows])
    return rows[first != np.arange(len(rows))]


def _ids_unique(table: Table) -> _Rule:
    return _Rule(repeated(table["id"]), lambda row: "this id was already used")


def _unknown(key: str, values: np.ndarray, table: Table, what: str) -> _Rule:
    ids = table["id"]

    def tell(row: int) -> str:
        if values[row] == ABSENT:
            return f"{key} is missing"
        near = f"; the nearest id is {ids[np.argmin(np.abs(ids - values[row]))]}" if len(ids) else ""
        return f"{key} {values[row]} is not among the {what}{near}"

    return _Rule(np.flatnonzero(~np.isin(values, np.append(ids, np.array(table.lost, np.int64)))), tell)


def _names_inside(names: list[str | None]) -> _Rule:
    rows = _where(bool(name) and leaves_folder(name) for name in names)
    return _Rule(rows, lambda row: f"file_name {names[row]!r} leads outside the data set's folder")


def _where(mask: Any) -> np.ndarray:
    return np.flatnonzero(np.fromiter(mask, dtype=bool))


def _codes(names: Sequence[str]) -> np.ndarray:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def _plain(box: np.ndarray) -> list[float]:
    return [int(side) if side == int(side) else side for side in box.tolist()]
