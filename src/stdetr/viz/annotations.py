"""The annotations of a CocoVID file as pictures: ``stdetr data action=show``, and tubes to draw beside predictions.

Shape legend
    N tracks     T frames shown
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from stdetr.data.coco_vid import CocoVid, read_coco_vid
from stdetr.names import did_you_mean
from stdetr.structures import Tubes
from stdetr.video.encode import write_video
from stdetr.video.frame_folder import FrameFolder
from stdetr.video.open import open_source
from stdetr.video.source import VideoSource
from stdetr.viz.overlay import DEFAULT_FPS, Overlay


def show(
    path: Path,
    output: Path,
    *,
    root: str | Path | None = None,
    videos: Sequence[str | int] | None = None,
    max_frames: int | None = 300,
) -> list[Path]:
    """Render annotated frames of ``videos`` (ids or names; default: the first) into ``output/<name>.mp4``.

    root: folder that file names start from; default: that of the annotation file
    max_frames: at most this many annotated frames per video, from its beginning; None for all

    A track keeps its colour, a box without a track has that of its class, ignore regions are grey.

    Raises:
        FileNotFoundError: annotation file, video or frame is missing.
        ValueError: an unknown video, or a file that cannot be read.
    """
    index = read_coco_vid(path, strict=False)
    limit = index.images if max_frames is None else max_frames
    if limit < 1:
        raise ValueError(f"max_frames={max_frames} must be at least 1")
    written = []
    for video in _choose(index, videos):
        name = index.video_names[video]
        drawn = _draw_frames(index, path.parent if root is None else Path(root), video, index.rows(video)[:limit])
        written.append(write_video(output / f"{name.replace('/', '_')}.mp4", drawn, DEFAULT_FPS))
    return written


def open_video(
    index: CocoVid, root: Path, video: int, rows: range, backend: str = "av", on_corrupt: str = "stop"
) -> tuple[VideoSource, np.ndarray]:
    """The source of video number ``video`` of an index, and the numbers that its annotated ``rows`` have in it.

    Frames of a video file are numbered by the decoder; of image files, by their place in ``rows``.
    """
    if not index.video_files[video]:
        height, width = (int(side) for side in index.video_sizes[video])
        files = [root / index.image_files[row] for row in rows]
        return FrameFolder(index.video_names[video], files, annotated=(height, width)), np.arange(len(files))
    source = open_source(root / index.video_files[video], backend=backend, on_corrupt=on_corrupt)
    numbers = index.frame_ids[np.array(rows)]
    if numbers.max(initial=-1) >= len(source):
        raise ValueError(f"{source.name} has {len(source)} frames, but frame {numbers.max()} is annotated")
    return source, numbers


def annotated_tubes(index: CocoVid, rows: range, frames: np.ndarray) -> Tubes:
    """The annotations of consecutive ``rows`` as tubes with score 1 (xyxy px), one per track; ``frames`` T names them.

    Ignore regions are left out; a box without a track id is a separate track.
    """
    records = index.annotations(np.array(rows))
    kept = ~records.ignored
    image, boxes, labels = records.image[kept], records.boxes[kept], records.labels[kept]
    tracks = np.where(records.tracks[kept] >= 0, records.tracks[kept], -1 - np.arange(int(kept.sum())))
    ids, row = np.unique(tracks, return_inverse=True)
    shape = (len(ids), len(frames))
    dense, present, classes = torch.zeros(*shape, 4), torch.zeros(shape, dtype=torch.bool), torch.zeros(len(ids))
    where = torch.from_numpy(row), torch.from_numpy(image)
    dense[where], present[where] = torch.from_numpy(boxes), True
    classes[where[0]] = torch.from_numpy(labels).float()
    return Tubes(
        boxes=dense,
        scores=present.float(),
        labels=classes.long(),
        track_ids=torch.from_numpy(ids.astype(np.int64)).clamp_min(-1),
        frame_index=torch.from_numpy(frames.astype(np.int64)),
        tube_scores=torch.ones(len(ids)),
        present=present,
    )


def _choose(index: CocoVid, videos: Sequence[str | int] | None) -> list[int]:
    if videos is None:
        return [0]
    names = {index.video_names[number]: number for number in range(index.videos)}
    ids = {int(identity): number for number, identity in enumerate(index.video_ids)}
    chosen = []
    for video in [videos] if isinstance(videos, (str, int)) else videos:
        number = ids.get(int(video)) if str(video).isdigit() else None
        number = names.get(str(video), number)
        if number is None:
            hint = did_you_mean(str(video), names) or f"; the first is {index.video_names[0]!r}"
            raise ValueError(f"videos={video}: {index.path} has no video of that name or id{hint}")
        chosen.append(number)
    return chosen


def _draw_frames(index: CocoVid, root: Path, video: int, rows: range) -> Iterator[np.ndarray]:
    """The frames of ``rows`` with their boxes, one at a time."""
    source, numbers = open_video(index, root, video, rows)
    records = index.annotations(np.array(rows))
    labels = np.where(records.ignored, len(index.classes), records.labels)
    tracks = np.where(records.ignored, -1, records.tracks)
    colours = np.where(records.ignored, -1, np.where(tracks >= 0, tracks, records.labels))
    painter = Overlay([*index.classes.names, "ignored"], trail=0, show_scores=False)
    try:
        for place, number in enumerate(tqdm(numbers.tolist(), desc=source.name, unit="frame", disable=None)):
            here = records.image == place
            yield painter.draw(
                source.frames([number])[0], records.boxes[here], np.ones(int(here.sum())), labels[here], tracks[here],
                colours=colours[here],
            )  # fmt: skip
    finally:
        source.close()
