"""Which tube continues which track, worked out by hand; duplicates within a window."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stdetr.stitch.association import (
    StitchRules,
    class_factor,
    closeness,
    duplicates,
    iou_per_frame,
    match,
    motion_similarity,
    overlap_similarity,
)
from stdetr.stitch.tracks import Tracks
from stdetr.structures import Tubes


def tubes_of(boxes: list, scores: list, frames: list[int], labels: list[int] | None = None) -> Tubes:
    """N,T,4 boxes; a score of None: not present."""
    present = torch.tensor([[score is not None for score in row] for row in scores]).view(len(boxes), len(frames))
    values = torch.tensor([[score or 0.0 for score in row] for row in scores]).view(len(boxes), len(frames))
    return Tubes(
        torch.tensor(boxes, dtype=torch.float32).view(len(boxes), len(frames), 4), values,
        torch.tensor(labels or [0] * len(boxes)), torch.full((len(boxes),), -1), torch.tensor(frames),
        values.amax(1), present,
    )  # fmt: skip


def track(box: list[float], frame: int, velocity: tuple[float, float], votes: list[float]) -> Tracks:
    """One track that ends with ``box`` on ``frame``; two frames are kept, the last one is ``frame``."""
    seen = torch.tensor([[0.0, 0.5]])
    return Tracks(
        ids=torch.tensor([1]), votes=torch.tensor([votes]), windows=torch.ones(1), best=torch.tensor([0.5]),
        last_box=torch.tensor([box]), last_frame=torch.tensor([frame]), velocity=torch.tensor([[*velocity, 0.0, 0.0]]),
        boxes=torch.tensor([[[0.0] * 4, [0.5 * side for side in box]]]), weights=seen, scores=seen,
        counts=torch.tensor([[0.0, 1.0]]),
    )  # fmt: skip


def square(x: float, y: float = 0.0, side: float = 10.0) -> list[float]:
    return [x, y, x + side, y + side]


def test_duplicates_by_hand():
    # IoU of squares of side 10 shifted by 2: 80 / 120 = 2/3; by 5: 50 / 150 = 1/3.
    boxes = [[square(0)] * 2, [square(2)] * 2, [square(5)] * 2]
    tubes = tubes_of(boxes, [[0.6, 0.6], [0.9, 0.9], [0.5, 0.5]], [0, 1])
    # The second is the surest; it covers the first by 2/3, and the third (shifted by 3) by 70 / 130 = 0.54.
    assert duplicates(tubes, iou=0.6, iou_other_class=0.9).tolist() == [True, False, False]
    assert duplicates(tubes, iou=0.5, iou_other_class=0.9).tolist() == [True, False, True]
    assert duplicates(tubes, iou=1.0, iou_other_class=1.0).tolist() == [False] * 3
    other = tubes_of(boxes, [[0.6, 0.6], [0.9, 0.9], [0.5, 0.5]], [0, 1], labels=[1, 0, 0])
    assert duplicates(other, iou=0.6, iou_other_class=0.9).tolist() == [False] * 3
    assert duplicates(other, iou=0.6, iou_other_class=0.6).tolist() == [True, False, False]


def test_a_duplicate_is_covered_on_its_own_frames():
    # The short tube lies wholly inside the life of the long one; the other way round most frames are uncovered.
    boxes = [[square(0)] * 4, [square(0)] * 4]
    inside = tubes_of(boxes, [[0.8, 0.8, 0.8, 0.8], [None, 0.9, None, None]], [0, 1, 2, 3])
    assert duplicates(inside, iou=0.6, iou_other_class=0.6).tolist() == [False, True]
    # One ends where the next begins: they share one frame of three and are two pieces, not one twice.
    pieces = tubes_of(boxes, [[0.8, 0.8, 0.8, None], [None, None, 0.7, 0.7]], [0, 1, 2, 3])
    assert duplicates(pieces, iou=0.6, iou_other_class=0.6).tolist() == [False, False]


def test_suppression_is_greedy_not_transitive():
    # Each covers its neighbour, but the first does not cover the last: that one stays.
    boxes = [[square(0)], [square(2)], [square(4)]]
    tubes = tubes_of(boxes, [[0.9], [0.8], [0.7]], [0])
    assert duplicates(tubes, iou=0.6, iou_other_class=0.6).tolist() == [False, True, False]


@pytest.mark.parametrize("count", [0, 1])
def test_no_duplicates_among_none_or_one(count: int):
    tubes = tubes_of([[square(0)]], [[0.5]], [3]).select(torch.arange(count))
    assert duplicates(tubes, iou=0.6, iou_other_class=0.6).tolist() == [False] * count


def test_iou_per_frame_of_empty_boxes_is_zero():
    first, second = torch.zeros(1, 1, 4), torch.tensor([[square(0)]])
    assert iou_per_frame(first, second).tolist() == [[[0.0]]]
    assert iou_per_frame(first, first).tolist() == [[[0.0]]]
    assert float(iou_per_frame(second, torch.tensor([[square(5)]]))) == pytest.approx(1 / 3)


def test_overlap_counts_common_frames_by_the_lower_score():
    tracks = track(square(0), 4, (0.0, 0.0), [0.5])
    # Frame 4 is shared (IoU 1/3), frame 3 is not reported by the track.
    tubes = tubes_of([[square(90), square(5)], [square(0), square(0)]], [[0.9, 0.9], [0.9, None]], [3, 4])
    similarity, shared = overlap_similarity(tracks, tubes, torch.tensor([0, 1]))
    assert similarity[0].tolist() == pytest.approx([1 / 3, 0.0])
    assert shared.tolist() == [[True, False]]


def test_motion_by_hand():
    rules = StitchRules(match_frames=2, damping=1.0, max_distance=2.0, max_gap=10, gap_weight=0.5)
    tracks = track(square(0), 4, (3.0, 0.0), [0.5])
    # Expected at x = 6 and 9 on frames 6 and 7.  The tube stands still at 6 and is 3 px (0.3 sizes) behind on frame 7:
    # forward (1 + 0.85) / 2.  Backwards it comes from x = 6, 0.6 sizes from the track's end: 0.7.
    # One frame of 10 is missing, which takes 0.05 off.
    still = tubes_of([[square(6)] * 3], [[0.9] * 3], [6, 7, 8])
    assert motion_similarity(tracks, still, rules).item() == pytest.approx((0.925 + 0.7) / 2 * 0.95)
    moving = tubes_of([[square(6), square(9), square(12)]], [[0.9] * 3], [6, 7, 8])
    assert motion_similarity(tracks, moving, rules).item() == pytest.approx(0.95)
    # A tube of one frame only says where it is.
    once = tubes_of([[square(12)]], [[0.9]], [8])
    assert motion_similarity(tracks, once, rules).item() == pytest.approx(1 - 0.5 * 3 / 10)
    # One that began before the track's end is compared on its new frames (5 and 6: expected 3 and 6), forwards only.
    begun = tubes_of([[square(0), square(3), square(16)]], [[0.9] * 3], [4, 5, 6])
    assert motion_similarity(tracks, begun, rules).item() == pytest.approx((1 + 0.5) / 2)
    over = tubes_of([[square(3)]], [[0.9]], [4])
    assert motion_similarity(tracks, over, rules).item() == 0
    late = tubes_of([[square(36)], [square(33)]], [[0.9]] * 2, [16])
    assert motion_similarity(tracks, late, rules).tolist() == [[0.0, 0.0]]
    assert motion_similarity(tracks, tubes_of([[square(33)]], [[0.9]], [15]), rules).item() == pytest.approx(0.5)


def test_closeness_in_widths_and_heights():
    tall = torch.tensor([0.0, 0, 10, 40])
    beside, below = torch.tensor([10.0, 0, 20, 40]), torch.tensor([0.0, 10, 10, 50])
    assert float(closeness(tall, beside, 2.0)) == pytest.approx(0.5)  # one width
    assert float(closeness(tall, below, 2.0)) == pytest.approx(0.875)  # a quarter of a height
    larger = torch.tensor([-5.0, -20, 15, 60])  # the same centre, four times the area
    assert float(closeness(tall, larger, 2.0)) == pytest.approx(0.5)


def test_class_factor_by_hand():
    tracks = track(square(0), 4, (0.0, 0.0), [1.0, 3.0])
    assert class_factor(tracks, torch.tensor([0, 1, 4]), 0.4)[0].tolist() == pytest.approx([0.7, 0.9, 0.6])


def matched(similarity: Tensor, least: float) -> list[int]:
    rows = torch.full((similarity.shape[1],), -1, dtype=torch.int64)
    match(similarity, least, rows)
    return rows.tolist()


def test_match_takes_the_best_total_of_allowed_pairs():
    similarity = torch.tensor([[0.9, 0.8], [0.7, 0.1]])
    assert matched(similarity, 0.3) == [1, 0]  # 0.7 + 0.8, not 0.9 + 0.1
    assert matched(similarity, 0.75) == [0, -1]  # 0.7 is no longer allowed, and 0.9 is the best single pair
    assert matched(torch.zeros(2, 2), 0.0) == [-1, -1]
    assert matched(torch.zeros(0, 3), 0.3) == [-1, -1, -1]
