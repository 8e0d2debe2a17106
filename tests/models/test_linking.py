"""Linking proposals into tubes: synthetic tracks with known answers."""

from __future__ import annotations

import torch

from stdetr.models.linking import Candidates, TubeLinker


def _candidates(tracks: list[list[tuple[float, float] | None]], *, frames: int, size: float = 0.1) -> Candidates:
    """Each track: its centre on each frame, None where no candidate stands for it.  Track i has class and feature i."""
    count = len(tracks)
    boxes = torch.full((1, frames, count, 4), size)
    scores = torch.zeros(1, frames, count)
    classes = torch.full((1, frames, count, count), 0.01)
    features = torch.zeros(1, frames, count, count)
    for n, track in enumerate(tracks):
        for t, centre in enumerate(track):
            boxes[0, t, n, :2] = torch.tensor(centre if centre is not None else (0.5, 0.05))
            scores[0, t, n] = 0.9 if centre is not None else 0.01
            classes[0, t, n, n] = scores[0, t, n]
            features[0, t, n, n] = 1.0 if centre is not None else 0.0
    return Candidates(
        boxes, scores, classes, features, torch.ones(1, frames, dtype=torch.bool), torch.arange(frames)[None]
    )


def test_two_movers_that_cross() -> None:
    right = [(0.42 + 0.04 * t, 0.5) for t in range(5)]
    left = [(0.58 - 0.04 * t, 0.5) for t in range(5)]
    linked = TubeLinker(seeds=10)(_candidates([right, left], frames=5), tubes=2)
    paths = linked.boxes[0, :, :, 0]
    expected = torch.tensor([[0.42 + 0.04 * t for t in range(5)], [0.58 - 0.04 * t for t in range(5)]])
    order = paths[:, 0].argsort()
    torch.testing.assert_close(paths[order], expected, atol=0.01, rtol=0)


def test_hidden_frame_is_bridged() -> None:
    path = [(0.3, 0.3), (0.33, 0.32), None, (0.39, 0.36), (0.42, 0.38)]
    linked = TubeLinker(seeds=5)(_candidates([path], frames=5), tubes=1)
    torch.testing.assert_close(linked.boxes[0, 0, 2, :2], torch.tensor([0.36, 0.34]), atol=0.02, rtol=0)
    assert linked.visible[0, 0, 2] < 0.2
    assert (linked.visible[0, 0, [0, 1, 3, 4]] > 0.9).all()


def test_one_tube_an_object_comes_first() -> None:
    still = [(0.3, 0.3)] * 4
    other = [(0.7, 0.7)] * 4
    linked = TubeLinker(seeds=8)(_candidates([still, other], frames=4), tubes=4)
    assert {round(float(x), 1) for x in linked.boxes[0, :2, 0, 0]} == {0.3, 0.7}


def test_single_frame_returns_the_candidates() -> None:
    found = _candidates([[(0.3, 0.3)], [(0.7, 0.6)]], frames=1)
    linked = TubeLinker(seeds=2)(found, tubes=2)
    assert torch.equal(linked.boxes[0, :, 0].sort(0).values, found.boxes[0, 0].sort(0).values)
    assert (linked.visible == 1).all()


def test_padded_frames_take_no_part() -> None:
    found = _candidates([[(0.3, 0.3), (0.35, 0.3), (0.9, 0.9)]], frames=3)
    masked = Candidates(
        found.boxes, found.scores, found.classes, found.features, torch.tensor([[True, True, False]]), found.frame_index
    )
    linked = TubeLinker(seeds=3)(masked, tubes=1)
    torch.testing.assert_close(linked.boxes[0, 0, :2, 0], torch.tensor([0.3, 0.35]), atol=0.01, rtol=0)
    assert linked.assignment[0, :, 2].sum() == 0


def test_strided_clip_uses_source_frames() -> None:
    # The same motion, seen on frames 0, 1, 4, 5 with frame 4 hidden: the line must be fitted over source time.
    path = [(0.3, 0.5), (0.33, 0.5), None, (0.45, 0.5)]
    found = _candidates([path], frames=4)
    strided = Candidates(
        found.boxes, found.scores, found.classes, found.features, found.frame_mask, torch.tensor([[0, 1, 4, 5]])
    )
    linked = TubeLinker(seeds=4)(strided, tubes=1)
    torch.testing.assert_close(linked.boxes[0, 0, 2, 0], torch.tensor(0.42), atol=0.015, rtol=0)
