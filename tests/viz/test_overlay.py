"""Overlays and video files, checked by the pixels that come out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stdetr.structures import ClassNames, Tubes
from stdetr.viz.overlay import Overlay, frame_caption
from stdetr.viz.style import TRACK_COLOURS, UNCONFIRMED, display_scale, enlarge, text_colour, track_colour


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def detections(boxes: list, scores: list, ids: list) -> tuple[np.ndarray, ...]:
    return (np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.zeros(len(ids), np.int64),
            np.array(ids, np.int64))  # fmt: skip


def plain(**settings) -> Overlay:
    return Overlay(ClassNames((1,), ("cat",)), **{"min_side": 1, "line_width": 1, "caption": False, **settings})


def test_a_box_has_the_colour_of_its_track_and_lies_where_it_should():
    frame = np.full((200, 300, 3), 50, np.uint8)
    drawn = plain(trail=0).draw(frame, *detections([[100, 120, 180, 180]], [0.9], [7]))
    expected = rgb(track_colour(7))
    for y, x in ((150, 100), (150, 180), (180, 140)):  # left, right and lower edge; the label is above
        assert drawn[y, x].tolist() == expected.tolist()
    assert drawn[150, 140].tolist() == [50, 50, 50]
    assert frame.max() == 50  # the input is not drawn on
    assert (drawn[100:119, 100:180] == expected).all(-1).mean() > 0.2  # the label's ground


def test_weak_detections_are_not_drawn_and_unconfirmed_ones_are_grey():
    frame = np.full((200, 300, 3), 50, np.uint8)
    boxes = [[20, 100, 60, 150], [200, 100, 260, 150]]
    drawn = plain(score_threshold=0.5).draw(frame, *detections(boxes, [0.6, 0.4], [-1, 2]))
    assert drawn[125, 20].tolist() == rgb(UNCONFIRMED).tolist()
    assert (drawn[:, 150:] == 50).all()
    assert (plain().draw(frame, *detections([], [], [])) == frame).all()


def test_the_trail_is_where_the_track_was():
    overlay = plain(trail=10)
    for x in (40, 80, 120):
        drawn = overlay.draw(np.full((200, 300, 3), 50, np.uint8), *detections([[x, 90, x + 20, 110]], [0.9], [3]))
    assert (drawn[100, 50:130] == rgb(track_colour(3))).all()  # centres from 50 to 130
    overlay.reset()
    drawn = overlay.draw(np.full((200, 300, 3), 50, np.uint8), *detections([[120, 90, 140, 110]], [0.9], [3]))
    assert (drawn[100, 50:119] == 50).all()


def test_boxes_beyond_the_frame_and_many_of_them_do_not_fail():
    frame = np.full((40, 50, 3), 50, np.uint8)
    wild = [[-50, -50, 500, 500], [49, 39, 60, 60], [10, 10, 10, 10]] + [
        [i % 40, i % 30, i % 40 + 5, i % 30 + 5] for i in range(60)
    ]
    drawn = plain(score_threshold=0).draw(frame, *detections(wild, [0.5] * 63, list(range(63))))
    assert drawn.shape == frame.shape


def test_small_frames_are_enlarged_by_a_whole_factor():
    assert [display_scale(size, 480) for size in ((96, 96), (576, 768), (480, 10), (100, 300))] == [5, 1, 48, 5]
    small = np.zeros((4, 6, 3), np.uint8)
    small[:, 3:] = 200
    large = enlarge(small, 5)
    assert large.shape == (20, 30, 3)
    assert [int(large[:, :5].max()), int(large[:, -5:].min())] == pytest.approx([0, 200], abs=5)  # Lanczos rings
    overlay = plain(min_side=300, trail=0)
    drawn = overlay.draw(np.full((100, 120, 3), 50, np.uint8), *detections([[30, 50, 60, 80]], [0.9], [1]))
    assert drawn.shape == (300, 360, 3)
    assert drawn[200, 90].tolist() == rgb(track_colour(1)).tolist()


def test_captions_and_text_colours():
    assert (frame_caption(12, 10.0), frame_caption(12, 0)) == ("frame 12 · 1.20 s", "frame 12")
    assert (text_colour("#FFFFFF"), text_colour("#101010")) == ("#000000", "#FFFFFF")
    assert (track_colour(-1), track_colour(len(TRACK_COLOURS))) == (UNCONFIRMED, TRACK_COLOURS[0])
    frame = np.full((200, 300, 3), 50, np.uint8)
    written = plain(caption=True).draw(frame, *detections([], [], []), caption="frame 3")
    assert (written[:150] == 50).all()
    assert written[-30:, :60].max() > 200


def test_unknown_anchor_is_named():
    with pytest.raises(ValueError, match="trail_anchor='centre' is not one of center, bottom, top"):
        Overlay(["cat"], trail_anchor="centre")


def test_clip_is_drawn_frame_by_frame():
    present = torch.tensor([[True, False, True]])
    tubes = Tubes(torch.tensor([[[20.0, 60, 50, 90]] * 3]), present.float() * 0.9, torch.tensor([0]), torch.tensor([1]),
                  torch.tensor([4, 5, 6]), torch.tensor([0.9]), present)  # fmt: skip
    frames = np.full((3, 100, 100, 3), 50, np.uint8)
    changed = [bool((plain().draw_tubes(frame, tubes, t) != 50).any()) for t, frame in enumerate(frames)]
    assert changed == [True, False, True]
