"""A split's predictions: whole-video tubes from the tubes of its clips, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stdetr.engine.predictions import VideoTubes, _trackable
from stdetr.inference.rules import StitchRules
from stdetr.structures import ClassNames, Tubes

CLASSES = ClassNames((4, 9), ("cat", "dog"))


def clip(
    frames: list[int], left: float, scores: list[float], label: int = 0, present: list[bool] | None = None
) -> Tubes:
    """One tube: a 10 x 20 box that moves 2 px a frame."""
    boxes = torch.tensor([[[left + 2 * f, 0, left + 2 * f + 10, 20] for f in frames]], dtype=torch.float32)
    there = torch.tensor([present if present is not None else [True] * len(frames)])
    return Tubes(boxes, torch.tensor([scores]), torch.tensor([label]), torch.tensor([-1]), torch.tensor(frames),
                 torch.tensor([max(scores)]), there)  # fmt: skip


def test_adjacent_clips_become_one_tube_with_null_where_it_is_not():
    tubes = VideoTubes(fill_gap=0, prior_frames=2)
    tubes.add(clip([0, 1, 2], 5, [0.9, 0.9, 0.6]))
    tubes.add(clip([3, 4, 5], 5, [0.8, 0.0, 0.8], label=1, present=[True, False, True]))
    (result,) = tubes.results(7, 8, CLASSES)
    assert (result["video_id"], result["category_id"], result["track_id"]) == (7, 4, 1)  # 2.4 for cat, 1.6 for dog
    assert result["score"] == pytest.approx((0.9 + 0.9 + 0.6 + 0.8 + 0.8) / (5 + 2))
    expected = [[5 + 2 * f, 0, 10, 20] if f in (0, 1, 2, 3, 5) else None for f in range(8)]
    assert [box is None for box in result["bboxes"]] == [box is None for box in expected]
    for box, wanted in zip(result["bboxes"], expected, strict=True):
        assert box == (None if wanted is None else pytest.approx(wanted, abs=1e-5))


def test_gaps_are_filled_but_do_not_count_for_the_score():
    tubes = VideoTubes(fill_gap=2, prior_frames=0)
    tubes.add(clip([0, 1, 2, 3, 4], 0, [0.6, 0.0, 0.0, 0.8, 0.7], present=[True, False, False, True, True]))
    (result,) = tubes.results(1, 5, CLASSES)
    assert [box[0] for box in result["bboxes"]] == pytest.approx([0, 2, 4, 6, 8])
    assert result["score"] == pytest.approx(0.7)


def test_a_long_tube_ranks_above_a_fragment_that_is_a_little_surer():
    tubes = VideoTubes(prior_frames=5)
    tubes.add(replace_pair(clip([0, 1, 2], 0, [0.7] * 3), clip([0, 1, 2], 300, [0.8] * 3)))
    tubes.add(clip([3, 4, 5], 0, [0.7] * 3))
    tubes.add(clip([6, 7, 8], 0, [0.7] * 3))
    scores = {result["bboxes"][0][0]: result["score"] for result in tubes.results(1, 9, CLASSES)}
    assert scores[0] == pytest.approx(6.3 / 14)
    assert scores[300] == pytest.approx(2.4 / 8)


def replace_pair(first: Tubes, second: Tubes) -> Tubes:
    names = ("boxes", "scores", "labels", "track_ids", "tube_scores", "present")
    return replace(first, **{name: torch.cat([getattr(first, name), getattr(second, name)]) for name in names})


def test_every_tube_is_kept_however_weak_and_rules_hold():
    tubes = VideoTubes(StitchRules(birth_score=0.9, max_gap=1), prior_frames=0)
    tubes.add(clip([0, 1], 0, [0.1, 0.1]))
    tubes.add(clip([2, 3, 4], 0, [0.0] * 3, present=[False] * 3))
    tubes.add(clip([5, 6], 0, [0.1, 0.1]))
    results = tubes.results(1, 7, CLASSES)
    assert [result["track_id"] for result in results] == [1, 2]  # unseen for three frames, more than max_gap
    assert [result["score"] for result in results] == pytest.approx([0.1, 0.1])


def test_a_video_without_tubes_and_mistakes():
    tubes = VideoTubes()
    tubes.add(clip([0, 1], 0, [0.5, 0.5]).select(torch.zeros(1, dtype=torch.bool)))
    assert tubes.results(1, 2, CLASSES) == []
    assert VideoTubes().results(1, 0, CLASSES) == []
    with pytest.raises(ValueError, match=r"evaluation.fill_gap=-1"):
        VideoTubes(fill_gap=-1)
    with pytest.raises(ValueError, match=r"evaluation.prior_frames=-2"):
        VideoTubes(prior_frames=-2)


def test_trackable_keeps_each_box_sequence_once_and_its_visible_frames():
    both = replace_pair(clip([0, 1], 0, [0.9, 0.2]), clip([0, 1], 0, [0.5, 0.5], label=1))
    both = replace(both, present=torch.tensor([[True, False], [True, True]]))
    kept = _trackable(both, track_score=0.05)
    assert kept.labels.tolist() == [0]
    assert kept.present.tolist() == [[True, False]]
    assert len(_trackable(both, track_score=0.95)) == 0
