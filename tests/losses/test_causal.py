"""Frames before a causal tube begins take no part in its losses.

Shape legend: B clips, Q tubes, T frames, K classes.
"""

from __future__ import annotations

import pytest
import torch

from stdetr.losses.criterion import TubeCriterion
from stdetr.losses.matcher import TubeMatcher
from stdetr.losses.packed import Matches, PackedTargets
from stdetr.models.detector import TubePrediction
from stdetr.structures import ClipTargets


@pytest.mark.parametrize("frame", [0, 1])
def test_only_frames_where_the_tube_exists_have_losses(frame: int) -> None:
    """The tube exists on frame 1 alone: what it says of frame 0 changes nothing, of frame 1 every box loss."""
    present = torch.ones(1, 2, dtype=torch.bool)
    targets = PackedTargets.pack(
        [ClipTargets(torch.tensor([1]), torch.full((1, 2, 4), 0.4), present, ~present, torch.tensor([0]))]
    )
    exists = torch.tensor([[[False, True]]])

    def losses(boxes: torch.Tensor, presence: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = torch.zeros(1, 1, 2, 3)
        prediction = TubePrediction(logits, logits, boxes, presence, exists)
        matches = Matches(*(torch.tensor([0]) for _ in range(3)))
        return TubeCriterion(matcher=TubeMatcher()).tubes(prediction, matches, targets, present)

    boxes, presence = torch.full((1, 1, 2, 4), 0.5), torch.zeros(1, 1, 2)
    before = losses(boxes, presence)
    changed, other = boxes.clone(), presence.clone()
    changed[:, :, frame], other[:, :, frame] = 0.2, 3.0
    after = losses(changed, other)
    for name in ("box", "giou", "presence", "class", "frame_class"):
        assert torch.equal(before[name], after[name]) == (frame == 0), name
    assert float(before["box"]) == pytest.approx(0.4)  # four sides, each 0.1 away, on the one frame that counts
