"""``stdetr data action=show``: the ground truth of some videos, drawn by supervision, as mp4 files to look at.

Shape legend
    h, w height and width in pixels     N boxes of one frame
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from stdetr.data.coco_vid import CocoVid, FrameBoxes
from stdetr.data.coco_vid_reader import read_coco_vid
from stdetr.video.frame_folder import FrameFolder
from stdetr.video.open import open_source
from stdetr.video.source import VideoSource

_FPS = 10
# Grey is no class and no track: regions that neither reward nor punish.
_IGNORED = "#9a9a9a"


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
    max_frames: at most so many annotated frames a video, from its beginning; None for all

    Raises:
        FileNotFoundError: annotation file, video or frame is missing.
        ValueError: an unknown video, or a file that cannot be read.
    """
    index = read_coco_vid(path, strict=False)
    base = path.parent if root is None else Path(root)
    limit = index.images if max_frames is None else max_frames
    if limit < 1:
        raise ValueError(f"max_frames={max_frames} must be at least 1")
    return [_render(index, base, number, output, limit) for number in _choose(index, videos)]


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
            close = difflib.get_close_matches(str(video), names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; the first is {index.video_names[0]!r}"
            raise ValueError(f"videos={video}: {index.path} has no video of that name or id{hint}")
        chosen.append(number)
    return chosen


def _render(index: CocoVid, base: Path, number: int, output: Path, limit: int) -> Path:
    name = index.video_names[number]
    target = output / f"{name.replace('/', '_')}.mp4"
    output.mkdir(parents=True, exist_ok=True)
    rows = np.array(index.rows(number)[:limit])
    found = index.annotations(rows)
    painter = _Painter(index.classes.names, *(int(side) for side in index.video_sizes[number]))
    frames = tqdm(_frames(index, base, number, rows), total=len(rows), desc=name, unit="frame", disable=None)
    unfinished = target.with_name(f".part.{target.name}")
    _encode(unfinished, (painter.draw(picture, found, place) for place, picture in enumerate(frames)))
    unfinished.replace(target)
    return target


def _frames(index: CocoVid, base: Path, number: int, rows: np.ndarray) -> Iterator[np.ndarray]:
    """h,w,3 uint8 RGB of each row, in order, one at a time."""
    source: VideoSource
    if index.video_files[number]:
        source = open_source(base / index.video_files[number])
        wanted = [int(index.frame_ids[row]) for row in rows]
        if max(wanted) >= len(source):
            raise ValueError(f"{source.name} has {len(source)} frames, but frame {max(wanted)} is annotated")
    else:
        files = [base / index.image_files[int(row)] for row in rows]
        height, width = (int(side) for side in index.video_sizes[number])
        source = FrameFolder(index.video_names[number], files, annotated=(height, width))
        wanted = list(range(len(files)))
    try:
        if wanted == list(range(wanted[0], wanted[-1] + 1)):
            yield from (picture for _, picture in source.iterate(wanted[0], wanted[-1] + 1))
        else:
            yield from (source.read([frame])[0] for frame in wanted)
    finally:
        source.close()


class _Painter:
    """Draws boxes: a colour for each track, the class and the id above it; ignore regions grey."""

    def __init__(self, names: tuple[str, ...], height: int, width: int) -> None:
        import supervision as sv

        self.names = names
        scale = max(height, width) / 960
        thickness = max(1, round(2 * scale))
        self._sv = sv
        self._boxes = sv.BoxAnnotator(thickness=thickness, color_lookup=sv.ColorLookup.TRACK)
        self._labels = sv.LabelAnnotator(
            text_scale=max(0.35, 0.45 * scale), text_padding=max(2, round(3 * scale)), color_lookup=sv.ColorLookup.TRACK
        )
        grey = sv.Color.from_hex(_IGNORED)
        self._ignored = sv.BoxAnnotator(color=grey, thickness=thickness, color_lookup=sv.ColorLookup.INDEX)

    def draw(self, picture: np.ndarray, found: FrameBoxes, place: int) -> np.ndarray:
        """The frame with the boxes of request position ``place``; h,w,3 uint8 RGB."""
        mine = found.image == place
        canvas = np.ascontiguousarray(picture[..., ::-1])  # supervision draws in OpenCV's BGR
        for ignored in (True, False):
            keep = mine & (found.ignored == ignored)
            if not keep.any():
                continue
            tracks = found.tracks[keep]
            detections = self._sv.Detections(
                xyxy=found.boxes[keep].astype(np.float32),
                class_id=found.labels[keep].astype(int),
                # Boxes without a track are coloured by class.
                tracker_id=np.where(tracks >= 0, tracks, found.labels[keep]).astype(int),
            )
            if ignored:
                canvas = self._ignored.annotate(canvas, detections)
                continue
            texts = [
                f"{self.names[label]} {track}" if track >= 0 else self.names[label]
                for label, track in zip(found.labels[keep], tracks, strict=True)
            ]
            canvas = self._boxes.annotate(canvas, detections)
            canvas = self._labels.annotate(canvas, detections, labels=texts)
        return canvas[..., ::-1]


def _encode(path: Path, pictures: Iterator[np.ndarray]) -> None:
    """Write h,w,3 uint8 RGB frames of one size as H.264; an odd last row or column is cut, H.264 cannot store it."""
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(_FPS), options={"crf": "20", "preset": "veryfast"})
        for count, picture in enumerate(pictures):
            height, width = (side - side % 2 for side in picture.shape[:2])
            if count == 0:
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            if (width, height) != (stream.width, stream.height):
                raise ValueError(f"frame {count} is {width}x{height}, the first was {stream.width}x{stream.height}")
            even = np.ascontiguousarray(picture[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())
