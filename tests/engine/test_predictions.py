"""A split's predictions: whole-video tubes from the tubes of its clips, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stdetr.engine.predictions import (
    SplitPredictions,
    VideoTubes,
    _frame_detections,
    _trackable,
    join_videos,
    predict_videos,
)
from stdetr.stitch.association import StitchRules
from stdetr.structures import ClassNames, ClipBatch, ClipInfo, ClipTargets, ModelOutput, Tubes

CLASSES = ClassNames((4, 9), ("cat", "dog"))


def clip(
    frames: list[int], left: float, scores: list[float], label: int = 0, present: list[bool] | None = None
) -> Tubes:
    """One tube: a 10 x 20 box that moves 2 px per frame."""
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


class OneBox(nn.Module):
    """Sees in each clip one cat that moves 2 px per frame, surer from frame to frame, and on even frames a weak dog."""

    def forward(self, frames: Tensor, sizes: Tensor, frame_mask: Tensor, frame_index: Tensor) -> ModelOutput:
        clips, count = frame_index.shape
        left = 2.0 * frame_index / 100
        boxes = torch.stack([left + 0.05, torch.full_like(left, 0.2), torch.full_like(left, 0.1), left * 0 + 0.4], -1)
        certain = torch.logit(torch.tensor([0.99, 0.02]))
        cat = torch.logit(0.5 + 0.05 * frame_index)
        dog = torch.logit(torch.where(frame_index % 2 == 0, 0.02, 1e-9))
        return ModelOutput(
            logits=certain.expand(clips, 1, 2),
            frame_logits=torch.stack([cat, dog], -1)[:, None],
            boxes=boxes[:, None],
            presence=torch.full((clips, 1, count), 5.0),
        )


def window(video: int, frames: list[int], repeated: int = 0) -> ClipBatch:
    """A batch of one clip of a video whose image ids are 100 x video + frame."""
    images = [-1] * repeated + [100 * video + frame for frame in frames[repeated:]]
    info = ClipInfo(video, tuple(frames), tuple(images), (50, 100))
    count = len(frames)
    return ClipBatch(
        torch.zeros(1, count, 3, 32, 32), torch.tensor([[32, 32]]), torch.ones(1, count, dtype=torch.bool),
        torch.tensor([frames]), (ClipTargets.empty(count),), (info,),
    )  # fmt: skip


def predict_split(model: nn.Module, batches: list, classes: ClassNames, lengths: dict, **keys) -> SplitPredictions:
    """The split as two processes predict it: one the video 5, the other every other video."""
    shares = [[b for b in batches if (b.infos[0].video_id == 5) == first] for first in (False, True)]
    videos = [seen for part in shares for seen in predict_videos(model, part, classes, lengths, **keys)]
    return join_videos(videos, lengths)


def test_batches_in_any_order_give_the_same_predictions_in_the_order_of_the_videos():
    in_order = [
        window(5, [0, 1]), window(5, [2, 3]), window(5, [3, 4], repeated=1), window(2, [0, 1]), window(2, [2, 3])
    ]  # fmt: skip
    lengths = {5: 5, 2: 4}
    keys = {"device": torch.device("cpu"), "min_score": 0.01, "fill_gap": 0, "prior_frames": 0}
    model = OneBox().train()
    expected = predict_split(model, in_order, CLASSES, lengths, **keys)
    assert model.training
    # A dog on an even frame scores 0.02, the mean of two equal ones; on odd frames less than 0.01.
    images = [500, 500, 501, 502, 502, 503, 504, 504, 200, 200, 201, 202, 202, 203]
    assert expected.frames.image_ids.tolist() == images
    assert expected.frames.category_ids.tolist() == [
        4 + 5 * (n > 0 and images[n - 1] == i) for n, i in enumerate(images)
    ]
    cats = expected.frames.category_ids == 4
    frame = np.array(images) % 100
    np.testing.assert_allclose(expected.frames.scores[cats], np.sqrt(0.99 * (0.5 + 0.05 * frame[cats])), atol=6e-7)
    np.testing.assert_allclose(expected.frames.scores[~cats], 0.02, atol=6e-7)
    xywh = np.stack([2.0 * frame, 0 * frame, 0 * frame + 10, 0 * frame + 20], 1)
    np.testing.assert_allclose(expected.frames.boxes, xywh, atol=6e-4)
    assert [(t["video_id"], t["track_id"], t["category_id"], len(t["bboxes"])) for t in expected.tubes] == [
        (5, 1, 4, 5), (2, 1, 4, 4)
    ]  # fmt: skip
    assert all(box is not None for tube in expected.tubes for box in tube["bboxes"])
    for order in ([3, 0, 4, 1, 2], [4, 3, 2, 1, 0]):
        found = predict_split(model, [in_order[n] for n in order], CLASSES, lengths, **keys)
        assert found.tubes == expected.tubes
        for name in ("image_ids", "category_ids", "boxes", "scores"):
            np.testing.assert_array_equal(getattr(found.frames, name), getattr(expected.frames, name))


def test_no_clip_and_no_detection():
    keys = {"device": torch.device("cpu")}
    for batches, lengths in (([], {}), ([window(1, [0, 1])], {1: 2})):
        found = predict_split(OneBox(), batches, CLASSES, lengths, min_score=1.5, track_score=1.5, **keys)
        assert (len(found.frames), found.tubes) == (0, [])


def test_repeated_frames_are_not_scored_again():
    tubes = clip([3, 4], 0, [0.5, 0.7], label=1)
    found = _frame_detections(tubes, ClipInfo(1, (3, 4), (-1, 44), (50, 100)), CLASSES, 0.1)
    assert (found.image_ids.tolist(), found.category_ids.tolist()) == ([44], [9])
    np.testing.assert_allclose(found.boxes, [[8, 0, 10, 20]])
    np.testing.assert_allclose(found.scores, [0.7])
