"""Boxes, class, score, track colour and trail on the frames of a video, drawn by supervision.

Shape legend
    N detections of a frame or tubes of a clip      T frames      h, w pixels of the source frame
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import supervision as sv
from PIL import Image, ImageDraw, ImageFont

from stdetr.structures import ClassNames, Tubes
from stdetr.viz.style import TRACK_COLOURS, UNCONFIRMED, display_scale, enlarge, font_path, text_colour

# Image folders have no clock.
DEFAULT_FPS = 10.0
ANCHORS = {"center": sv.Position.CENTER, "bottom": sv.Position.BOTTOM_CENTER, "top": sv.Position.TOP_CENTER}


@dataclass(eq=False)
class Overlay:
    """Draws detections on frames in temporal order; keeps the trails of tracks.

    score_threshold: detections below it are not drawn
    trail:           how many frames a trail reaches back; 0 for none
    trail_anchor:    the point of the box that leaves the trail: ``center``, ``bottom`` or ``top``
    min_side:        small frames are enlarged by a whole factor until their short side has this many pixels
    caption:         write frame number and time into the corner
    line_width, font_size: in pixels of the drawn frame; None derives them from its size
    show_scores:     write the score behind the class (annotations have none)
    """

    classes: ClassNames | Sequence[str]
    _: KW_ONLY
    score_threshold: float = 0.4
    trail: int = 30
    trail_anchor: str = "center"
    min_side: int = 480
    caption: bool = True
    line_width: int | None = None
    font_size: int | None = None
    show_scores: bool = True

    def __post_init__(self) -> None:
        if self.trail_anchor not in ANCHORS:
            raise ValueError(f"viz.overlay.trail_anchor={self.trail_anchor!r} is not one of {', '.join(ANCHORS)}")
        if self.min_side < 1:
            raise ValueError(f"viz.overlay.min_side={self.min_side} must be at least 1")
        self.names = tuple(self.classes.names if isinstance(self.classes, ClassNames) else self.classes)
        self._size: tuple[int, int] | None = None

    def reset(self) -> None:
        """Forget the trails: the next frame begins another video."""
        self._size = None

    def draw(
        self,
        frame: np.ndarray,
        boxes: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray,
        track_ids: np.ndarray,
        *,
        colours: np.ndarray | None = None,
        caption: str = "",
    ) -> np.ndarray:
        """One frame with its detections, enlarged: h,w,3 uint8 RGB in and out.

        boxes N,4 xyxy in pixels of ``frame``; scores N; labels N int; track_ids N int, -1 for no track.
        colours: N int, the numbers that choose the colours, -1 is grey; default: the track ids
        """
        self._prepare((frame.shape[0], frame.shape[1]))
        shown = scores >= self.score_threshold
        # The weakest first, so that of overlapping boxes the most confident stays readable.
        order = np.argsort(scores[shown], kind="stable")
        columns = (boxes, scores, labels, track_ids, track_ids if colours is None else colours)
        boxes, scores, labels, track_ids, colours = (values[shown][order] for values in columns)
        scene = np.ascontiguousarray(enlarge(frame, self._scale)[..., ::-1])
        limit = np.array([scene.shape[1], scene.shape[0]] * 2, dtype=np.float32) - 1
        ids = track_ids.astype(int)
        detections = sv.Detections(
            xyxy=np.clip(boxes.reshape(-1, 4).astype(np.float32) * self._scale, 0, limit),
            confidence=scores.astype(np.float32),
            class_id=labels.astype(int),
            tracker_id=ids,
        )
        # Index of the colour, not the id: supervision has no colour for -1.
        colours = np.where(colours < 0, len(TRACK_COLOURS), colours % len(TRACK_COLOURS)).astype(int)
        texts = [self._text(*item) for item in zip(labels, scores, ids, strict=True)]
        if self._trace is not None:
            scene = self._trace.annotate(scene, detections, custom_color_lookup=colours)
        scene = self._box.annotate(scene, detections, custom_color_lookup=colours)
        if len(detections):
            scene = self._label.annotate(scene, detections, labels=texts, custom_color_lookup=colours)
        image = np.ascontiguousarray(np.asarray(scene)[..., ::-1])
        return self._stamp(image, caption) if self.caption and caption else image

    def draw_tubes(self, frame: np.ndarray, tubes: Tubes, t: int, *, caption: str = "") -> np.ndarray:
        """Frame ``t`` of a clip with the tubes that are present on it; h,w,3 uint8 RGB."""
        seen = tubes.present[:, t]
        columns = (tubes.boxes[seen, t], tubes.scores[seen, t], tubes.labels[seen], tubes.track_ids[seen])
        return self.draw(frame, *(column.numpy() for column in columns), caption=caption)

    def _text(self, label: int, score: float, track_id: int) -> str:
        name = self.names[label] if 0 <= label < len(self.names) else f"class {label}"
        parts = ([f"#{track_id}"] if track_id >= 0 else []) + [name] + ([f"{score:.2f}"] if self.show_scores else [])
        return " ".join(parts)

    def _prepare(self, size: tuple[int, int]) -> None:
        if self._size == size:
            return
        self._size = size
        self._scale = display_scale(size, self.min_side)
        side = min(size) * self._scale
        width = self.line_width if self.line_width is not None else max(2, round(side / 280))
        letters = self.font_size if self.font_size is not None else max(11, round(side / 50))
        palette = sv.ColorPalette.from_hex([*TRACK_COLOURS, UNCONFIRMED])
        letters_palette = sv.ColorPalette.from_hex([text_colour(c) for c in (*TRACK_COLOURS, UNCONFIRMED)])
        self._box = sv.BoxAnnotator(color=palette, thickness=width)
        self._label: Any = sv.RichLabelAnnotator(
            color=palette,
            text_color=letters_palette,
            font_path=font_path(),
            font_size=letters,
            text_padding=max(2, letters // 4),
            smart_position=True,
        )
        self._trace = None
        if self.trail > 0:
            anchor = ANCHORS[self.trail_anchor]
            self._trace = sv.TraceAnnotator(
                color=palette, position=anchor, trace_length=self.trail, thickness=width, smooth=False
            )
        self._font = ImageFont.truetype(font_path(bold=False), letters)

    def _stamp(self, image: np.ndarray, text: str) -> np.ndarray:
        picture = Image.fromarray(image)
        canvas = ImageDraw.Draw(picture, "RGBA")
        left, top, right, bottom = canvas.textbbox((0, 0), text, font=self._font)
        pad = max(3, (bottom - top) // 3)
        width, height = right - left + 2 * pad, bottom - top + 2 * pad
        y = picture.height - height
        canvas.rectangle((0, y, width, picture.height), fill=(0, 0, 0, 150))
        canvas.text((pad - left, y + pad - top), text, font=self._font, fill=(255, 255, 255, 255))
        return np.asarray(picture)


def frame_caption(frame: int, fps: float) -> str:
    """``frame 12 · 1.20 s``; without the time where the source has no clock."""
    return f"frame {frame} · {frame / fps:.2f} s" if fps > 0 else f"frame {frame}"
