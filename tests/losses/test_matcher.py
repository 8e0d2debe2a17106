"""The tube matcher: costs by hand, empty clips, absent and ignored frames."""

from __future__ import annotations

import math

import pytest
import torch

from stdetr.losses.matcher import TubeMatcher
from stdetr.losses.packed import PackedTargets
from stdetr.structures import ClipTargets


def _targets(boxes: list, labels: list[int], present: list | None = None, ignored: list | None = None) -> ClipTargets:
    box = torch.tensor(boxes, dtype=torch.float32)
    seen = torch.ones(box.shape[:2], dtype=torch.bool) if present is None else torch.tensor(present)
    hidden = torch.zeros_like(seen) if ignored is None else torch.tensor(ignored)
    return ClipTargets(torch.tensor(labels), box, seen, hidden, torch.arange(len(labels)))


def test_cost_by_hand() -> None:
    # One tube, one track, two frames, of which the second is absent.  p = 0.5 for its class.
    target = _targets([[[0.5, 0.5, 0.2, 0.2], [0, 0, 0, 0]]], [1], present=[[True, False]])
    logits = torch.zeros(1, 1, 2)
    boxes = torch.tensor([[[[0.6, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]]]])
    cost = TubeMatcher(cost_class=2, cost_box=5, cost_giou=2).cost(logits, boxes, PackedTargets.pack([target]))
    focal = 0.25 * 0.25 * math.log(2) - 0.75 * 0.25 * math.log(2)
    # Overlap 0.1 x 0.2 of union 0.06: IoU 1/3; the hull is the union, so GIoU is IoU.
    assert cost.item() == pytest.approx(2 * focal + 5 * 0.1 + 2 * (1 - 1 / 3), abs=1e-5)


def test_tubes_are_matched_as_wholes() -> None:
    # On frame 0 tube 0 fits track 1 better, but over the clip it belongs to track 0.
    a, b = [0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]
    target = _targets([[a, a, a], [b, b, b]], [0, 0])
    boxes = torch.tensor([[[b, a, a], [a, b, b]]], dtype=torch.float32)
    matches = TubeMatcher()(torch.zeros(1, 2, 1), boxes, PackedTargets.pack([target]))
    assert matches.tube.tolist() == [0, 1]
    assert matches.track.tolist() == [0, 1]


def test_batched_equals_one_by_one() -> None:
    torch.manual_seed(0)
    targets = [
        _targets(torch.rand(n, 3, 4).clamp(0.1, 0.6).tolist(), [i % 3 for i in range(n)]) if n else ClipTargets.empty(3)
        for n in (2, 0, 5, 1)
    ]
    logits, boxes = torch.randn(4, 7, 3), torch.rand(4, 7, 3, 4).clamp(0.1, 0.6)
    whole = TubeMatcher()(logits, boxes, PackedTargets.pack(targets))
    assert torch.bincount(whole.clip, minlength=4).tolist() == [2, 0, 5, 1]
    for i, target in enumerate(targets):
        single = TubeMatcher()(logits[i : i + 1], boxes[i : i + 1], PackedTargets.pack([target]))
        mine = whole.clip == i
        assert whole.tube[mine].tolist() == single.tube.tolist()
        assert whole.track[mine].tolist() == single.track.tolist()


def test_no_clip_has_objects() -> None:
    matches = TubeMatcher()(
        torch.zeros(2, 3, 4), torch.rand(2, 3, 5, 4), PackedTargets.pack([ClipTargets.empty(5)] * 2)
    )
    assert len(matches) == 0


def test_ignored_track_is_matched_to_nothing() -> None:
    box = [0.5, 0.5, 0.2, 0.2]
    target = _targets([[box, box], [box, box]], [0, 0], ignored=[[True, True], [True, False]])
    matches = TubeMatcher()(torch.zeros(1, 3, 1), torch.rand(1, 3, 2, 4), PackedTargets.pack([target]))
    assert matches.track.tolist() == [1]


def test_more_tracks_than_tubes() -> None:
    target = _targets(torch.rand(6, 1, 4).clamp(0.2, 0.5).tolist(), [0] * 6)
    matches = TubeMatcher()(torch.zeros(1, 2, 1), torch.rand(1, 2, 1, 4), PackedTargets.pack([target]))
    assert sorted(matches.tube.tolist()) == [0, 1]


def test_outputs_that_have_diverged_are_matched_somehow() -> None:
    """Their loss is not finite, and the trainer skips the step; only a finite tube is better than they are."""
    target = _targets([[[0.5, 0.5, 0.2, 0.2]]], [0])
    logits, boxes = torch.tensor([[[float("nan")], [0.0]]]), torch.rand(1, 2, 1, 4)
    matches = TubeMatcher()(logits, boxes, PackedTargets.pack([target]))
    assert matches.tube.tolist() == [1]
    assert len(TubeMatcher()(logits[:, :1], boxes[:, :1], PackedTargets.pack([target])).tube) == 1


def test_all_costs_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="cost_class"):
        TubeMatcher(cost_class=0, cost_box=0, cost_giou=0)


def test_certain_scores_cost_a_finite_amount() -> None:
    """Probabilities of exactly 0 and 1 in float32."""
    target = _targets([[[0.5, 0.5, 0.2, 0.2]]], [0])
    logits = torch.tensor([[[200.0], [-200.0]]])
    cost = TubeMatcher(cost_class=1, cost_box=0, cost_giou=0).cost(
        logits, torch.rand(1, 2, 1, 4), PackedTargets.pack([target])
    )
    sure = -math.log(1e-8)
    assert cost.flatten().tolist() == pytest.approx([-0.75 * sure, 0.25 * sure], rel=1e-3)
