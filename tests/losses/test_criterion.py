"""Losses by hand-computed numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from stdetr.losses.classification import focal_loss, varifocal_loss
from stdetr.losses.criterion import TubeCriterion, denoising_matches
from stdetr.losses.dense import DenseLoss
from stdetr.losses.matcher import TubeMatcher
from stdetr.losses.packed import Matches, PackedTargets
from stdetr.models.detector import TubePrediction
from stdetr.models.queries import DenseOutput
from stdetr.structures import ClipTargets

BOX = [0.5, 0.5, 0.2, 0.2]


def _criterion(**changes: object) -> TubeCriterion:
    settings: dict = {"classification": "focal", "quality": False} | changes
    return TubeCriterion(matcher=TubeMatcher(), **settings)


def _one_track(ignored: list[bool], present: list[bool]) -> ClipTargets:
    frames = len(present)
    boxes = torch.tensor([[BOX if p else [0.0] * 4 for p in present]])
    return (
        ClipTargets(
            torch.tensor([1]),
            boxes,
            torch.tensor([present]),
            torch.tensor([ignored]),
            torch.zeros(1, dtype=torch.int64),
        )
        if frames
        else ClipTargets.empty(0)
    )


def _prediction(frames: int, tubes: int = 2, box: list[float] | None = None) -> TubePrediction:
    boxes = torch.tensor(BOX if box is None else box).expand(1, tubes, frames, 4)
    return TubePrediction(
        torch.zeros(1, tubes, 2), torch.zeros(1, tubes, frames, 2), boxes, torch.zeros(1, tubes, frames)
    )


def _pair() -> Matches:
    zero = torch.zeros(1, dtype=torch.int64)
    return Matches(zero, zero, zero)


def test_focal_equals_torchvision() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(5, 4), (torch.rand(5, 4) > 0.6).float()
    torch.testing.assert_close(focal_loss(logits, target), sigmoid_focal_loss(logits, target, 0.25, 2.0))


def test_varifocal_by_hand() -> None:
    # p = 1/2 throughout: a positive of quality 0.8 weighs 0.8 times its cross-entropy log 2, a negative 0.75 x 1/4.
    loss = varifocal_loss(torch.zeros(2), torch.tensor([0.8, 0.0]))
    torch.testing.assert_close(loss, torch.tensor([0.8 * math.log(2), 0.75 * 0.25 * math.log(2)]))


def test_tube_losses_by_hand() -> None:
    # Three frames: seen, absent, ignored.  The matched tube is 0.1 to the right of the track on each.
    target = _one_track([False, False, True], [True, False, True])
    prediction = _prediction(3, box=[0.6, 0.5, 0.2, 0.2])
    losses = _criterion().tubes(prediction, _pair(), PackedTargets.pack([target]), torch.ones(1, 3, dtype=torch.bool))
    assert losses["box"].item() == pytest.approx(0.1, abs=1e-6)  # one counted frame
    assert losses["giou"].item() == pytest.approx(2 / 3, abs=1e-5)
    # Presence is asked on the seen and the absent frame, both with probability 1/2.
    assert losses["presence"].item() == pytest.approx(math.log(2), abs=1e-6)
    # Class: tube 0 has one positive and one negative, tube 1 two negatives, one matched tube.
    positive, negative = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)
    assert losses["class"].item() == pytest.approx(positive + 3 * negative, abs=1e-6)
    # Frame class: tube 0 counts on frames 0 (positive) and 1 (nothing there), not on 2; tube 1 (same box, less than
    # half inside no ignore region: the box covers the ignored one by half exactly) on all three.
    expected = (positive + negative) + 2 * negative + 3 * 2 * negative
    assert losses["frame_class"].item() == pytest.approx(expected, abs=1e-5)


def test_quality_target_is_the_mean_iou() -> None:
    target = _one_track([False, False], [True, True])
    prediction = _prediction(2, tubes=1, box=[0.6, 0.5, 0.2, 0.2])
    criterion = _criterion(classification="varifocal", quality=True)
    losses = criterion.tubes(prediction, _pair(), PackedTargets.pack([target]), torch.ones(1, 2, dtype=torch.bool))
    q = 1 / 3
    cross_entropy = math.log(2)  # at p = 1/2 for any soft target
    assert losses["class"].item() == pytest.approx(q * cross_entropy + 0.75 * 0.25 * cross_entropy, abs=1e-5)


def test_tube_on_an_ignore_region_is_not_punished() -> None:
    target = _one_track([True], [True])
    inside, outside = _prediction(1, tubes=1), _prediction(1, tubes=1, box=[0.2, 0.2, 0.1, 0.1])
    none = Matches(*(torch.zeros(0, dtype=torch.int64) for _ in range(3)))
    mask = torch.ones(1, 1, dtype=torch.bool)
    packed = PackedTargets.pack([target])
    assert _criterion().tubes(inside, none, packed, mask)["class"].item() == 0
    assert _criterion().tubes(outside, none, packed, mask)["class"].item() > 0.1


def test_empty_batch_gives_only_negatives() -> None:
    none = Matches(*(torch.zeros(0, dtype=torch.int64) for _ in range(3)))
    packed = PackedTargets.pack([ClipTargets.empty(2)])
    losses = _criterion().tubes(_prediction(2), none, packed, torch.ones(1, 2, dtype=torch.bool))
    assert losses["box"].item() == losses["giou"].item() == losses["presence"].item() == 0
    assert losses["class"].item() == pytest.approx(4 * 0.75 * 0.25 * math.log(2), abs=1e-6)


def test_denoising_matches_positives_only() -> None:
    track = torch.tensor([[0, 1, 0, 1], [0, -1, 0, -1]])
    matches = denoising_matches(track, torch.tensor([True, True, False, False]))
    assert matches.clip.tolist() == [0, 0, 1]
    assert matches.tube.tolist() == [0, 1, 0]
    assert matches.track.tolist() == [0, 1, 0]


def test_unknown_classification_is_refused() -> None:
    with pytest.raises(ValueError, match="focal"):
        _criterion(classification="focl")


def _dense(target: ClipTargets, positives: int = 2) -> tuple[dict[str, torch.Tensor], DenseOutput, torch.Tensor]:
    # A 4 x 4 grid of tokens, each predicting the target's box exactly.
    axis = (torch.arange(4) + 0.5) / 4
    centres = torch.stack((axis.repeat(4), axis.repeat_interleave(4)), -1)[None]
    frames = target.boxes.shape[1]
    dense = DenseOutput(torch.zeros(1, frames, 16, 2), torch.tensor(BOX).expand(1, frames, 16, 4).clone())
    loss = DenseLoss(positives=positives)
    mask, valid = torch.ones(1, frames, dtype=torch.bool), torch.ones(1, 16, dtype=torch.bool)
    packed = PackedTargets.pack([target])
    track, _ = loss.assign(dense.logits, dense.boxes, valid, centres, packed)
    return loss(dense, valid, centres, mask, packed), dense, track


def test_dense_assignment_is_inside_the_box() -> None:
    # The box [0.4, 0.6]^2 holds no token centre (0.375, 0.625, ...): the nearest token alone answers.
    _, _, track = _dense(_one_track([False, False], [True, False]))
    assert (track[0, 0] >= 0).sum() == 1
    assert (track[0, 1] >= 0).sum() == 0
    assert torch.nonzero(track[0, 0] >= 0).item() in (5, 6, 9, 10)


def test_dense_losses_by_hand() -> None:
    losses, _, _ = _dense(_one_track([False], [True]))
    # One positive of quality 1 (IoU 1), 31 negatives at p = 1/2, perfect box.
    assert losses["class"].item() == pytest.approx(math.log(2) + 31 * 0.75 * 0.25 * math.log(2), abs=1e-4)
    assert losses["box"].item() == pytest.approx(0, abs=1e-6)
    assert losses["giou"].item() == pytest.approx(0, abs=1e-5)


def test_dense_leaves_ignore_regions_out() -> None:
    wide = ClipTargets(
        torch.tensor([0]),
        torch.tensor([[[0.5, 0.5, 1.0, 1.0]]]),
        torch.tensor([[True]]),
        torch.tensor([[True]]),
        torch.tensor([0]),
    )
    losses, _, track = _dense(wide)
    assert (track < 0).all()
    assert losses["class"].item() == 0
