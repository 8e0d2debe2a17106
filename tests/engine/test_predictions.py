"""A split's predictions: whole-video tubes from the tubes of its clips, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stdetr.data.transforms import ClipTransform
from stdetr.engine.predictions import SplitPredictions, join_videos, predict_videos, video_tubes
from stdetr.inference.detector import Detector
from stdetr.inference.predictions import VideoInfo, VideoPredictions
from stdetr.models.neck import Tokens
from stdetr.stitch.association import StitchRules
from stdetr.stitch.stitching import Stitcher, trackable
from stdetr.structures import ClassNames, ClipBatch, ClipInfo, ClipTargets, ModelOutput, Tubes

CLASSES = ClassNames((4, 9), ("cat", "dog"))


def tubes_of(
    clips: list[Tubes], length: int, *, fill_gap: int = 2, prior_frames: float = 5, rules: StitchRules | None = None
) -> list[dict]:
    """The tube results of video 7 that has these adjacent windows."""
    stitcher = Stitcher(0, rules, every_track=True)
    pieces = [stitcher.push(each) for each in clips]
    info = VideoInfo("video", "video", (50, 100), 0.0, ())
    found = VideoPredictions.from_clips([*pieces, stitcher.flush()], info, CLASSES)
    return video_tubes(found, 7, length, fill_gap=fill_gap, prior_frames=prior_frames)


def clip(
    frames: list[int], left: float, scores: list[float], label: int = 0, present: list[bool] | None = None
) -> Tubes:
    """One tube: a 10 x 20 box that moves 2 px per frame."""
    boxes = torch.tensor([[[left + 2 * f, 0, left + 2 * f + 10, 20] for f in frames]], dtype=torch.float32)
    there = torch.tensor([present if present is not None else [True] * len(frames)])
    return Tubes(boxes, torch.tensor([scores]), torch.tensor([label]), torch.tensor([-1]), torch.tensor(frames),
                 torch.tensor([max(scores)]), there)  # fmt: skip


def test_adjacent_clips_become_one_tube_with_null_where_it_is_not():
    clips = [
        clip([0, 1, 2], 5, [0.9, 0.9, 0.6]),
        clip([3, 4, 5], 5, [0.8, 0.0, 0.8], label=1, present=[True, False, True]),
    ]
    (result,) = tubes_of(clips, 8, fill_gap=0, prior_frames=2)
    assert (result["video_id"], result["category_id"], result["track_id"]) == (7, 4, 1)  # 2.4 for cat, 1.6 for dog
    assert result["score"] == pytest.approx((0.9 + 0.9 + 0.6 + 0.8 + 0.8) / (5 + 2))
    expected = [[5 + 2 * f, 0, 10, 20] if f in (0, 1, 2, 3, 5) else None for f in range(8)]
    assert [box is None for box in result["bboxes"]] == [box is None for box in expected]
    for box, wanted in zip(result["bboxes"], expected, strict=True):
        assert box == (None if wanted is None else pytest.approx(wanted, abs=1e-5))


def test_gaps_are_filled_but_do_not_count_for_the_score():
    hidden = clip([0, 1, 2, 3, 4], 0, [0.6, 0.0, 0.0, 0.8, 0.7], present=[True, False, False, True, True])
    (result,) = tubes_of([hidden], 5, prior_frames=0)
    assert [box[0] for box in result["bboxes"]] == pytest.approx([0, 2, 4, 6, 8])
    assert result["score"] == pytest.approx(0.7)


def test_a_long_tube_ranks_above_a_fragment_that_is_a_little_surer():
    clips = [
        replace_pair(clip([0, 1, 2], 0, [0.7] * 3), clip([0, 1, 2], 300, [0.8] * 3)),
        clip([3, 4, 5], 0, [0.7] * 3),
        clip([6, 7, 8], 0, [0.7] * 3),
    ]
    scores = {result["bboxes"][0][0]: result["score"] for result in tubes_of(clips, 9)}
    assert scores[0] == pytest.approx(6.3 / 14)
    assert scores[300] == pytest.approx(2.4 / 8)


def replace_pair(first: Tubes, second: Tubes) -> Tubes:
    names = ("boxes", "scores", "labels", "track_ids", "tube_scores", "present")
    return replace(first, **{name: torch.cat([getattr(first, name), getattr(second, name)]) for name in names})


def test_every_tube_is_kept_however_weak_and_rules_hold():
    clips = [
        clip([0, 1], 0, [0.1, 0.1]), clip([2, 3, 4], 0, [0.0] * 3, present=[False] * 3), clip([5, 6], 0, [0.1, 0.1])
    ]  # fmt: skip
    results = tubes_of(clips, 7, prior_frames=0, rules=StitchRules(track_threshold=0.9, max_gap=1))
    assert [result["track_id"] for result in results] == [1, 2]  # unseen for three frames, more than max_gap
    assert [result["score"] for result in results] == pytest.approx([0.1, 0.1])


def test_a_video_without_tubes_and_mistakes():
    assert tubes_of([clip([0, 1], 0, [0.5, 0.5]).select(torch.zeros(1, dtype=torch.bool))], 2) == []
    assert tubes_of([], 0) == []
    with pytest.raises(ValueError, match=r"evaluation.fill_gap=-1"):
        next(predict_videos(detector(), [], {}, fill_gap=-1))
    with pytest.raises(ValueError, match=r"evaluation.prior_frames=-2"):
        next(predict_videos(detector(), [], {}, prior_frames=-2))


def test_each_query_is_tracked_once_under_its_most_confident_class():
    same = clip([0, 1], 0, [0.9, 0.2])
    pairs = replace_pair(replace_pair(same, clip([0, 1], 0, [0.5, 0.5], label=1)), clip([0, 1], 0, [0.3, 0.4]))
    pairs = replace(pairs, queries=torch.tensor([3, 3, 8]))  # two queries, clipped to one box
    kept = trackable(pairs, 0.05)
    assert kept.labels.tolist() == [0, 0]
    assert kept.scores[:, 0].tolist() == pytest.approx([0.9, 0.3])
    assert len(trackable(pairs, 0.45)) == 1
    assert len(trackable(pairs, 0.95)) == 0


class OneBox(nn.Module):
    """Sees in each clip one cat that moves 2 px per frame, surer from frame to frame, and on even frames a weak dog."""

    def features(self, frames: Tensor, sizes: Tensor) -> Tokens:
        nothing = torch.zeros(1, 1)
        return Tokens(torch.zeros(*frames.shape[:2], 1, 1), nothing, nothing, nothing, ((1, 1),), nothing, nothing[0])

    def detect(self, tokens: Tokens, frame_index: Tensor) -> ModelOutput:
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


def detector(**settings) -> Detector:
    return Detector(OneBox(), CLASSES, ClipTransform([]), clip_length=2, **settings)


def window(video: int, frames: list[int], last: bool = False) -> ClipBatch:
    """A batch of one clip of a video whose image ids are 100 x video + frame."""
    info = ClipInfo(video, tuple(frames), tuple(100 * video + frame for frame in frames), (50, 100), last=last)
    count = len(frames)
    return ClipBatch(
        torch.zeros(1, count, 3, 32, 32), torch.tensor([[32, 32]]), torch.ones(1, count, dtype=torch.bool),
        torch.tensor([frames]), (ClipTargets.empty(count),), (info,),
    )  # fmt: skip


def predict_split(batches: list, lengths: dict, overlap: int = 0, **keys) -> SplitPredictions:
    """The split as two processes predict it: one the video 5, the other every other video."""
    shares = [[b for b in batches if (b.infos[0].video_id == 5) == first] for first in (False, True)]
    videos = [seen for part in shares for seen in predict_videos(detector(overlap=overlap), part, lengths, **keys)]
    return join_videos(videos, lengths)


def test_videos_in_any_order_give_the_same_predictions_in_the_order_of_the_videos():
    five = [window(5, [0, 1]), window(5, [2, 3]), window(5, [4], last=True)]
    two, one = [window(2, [0, 1]), window(2, [2, 3], last=True)], [window(1, [0])]
    lengths = {5: 5, 2: 4, 1: 1}
    keys = {"score_threshold": 0.01, "fill_gap": 0, "prior_frames": 0}
    expected = predict_split([*five, *two, *one], lengths, **keys)
    # A dog on an even frame scores 0.02, the mean of two equal ones; on odd frames less than 0.01.
    images = [500, 500, 501, 502, 502, 503, 504, 504, 200, 200, 201, 202, 202, 203, 100, 100]
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
        (5, 1, 4, 5), (2, 1, 4, 4), (1, 1, 4, 1)
    ]  # fmt: skip
    assert all(box is not None for tube in expected.tubes for box in tube["bboxes"])
    # One video after the other, or in turn as two workers read them.
    for order in ([*two, *one, *five], [one[0], two[0], five[0], five[1], two[1], five[2]]):
        found = predict_split(order, lengths, **keys)
        assert found.tubes == expected.tubes
        for name in ("image_ids", "category_ids", "boxes", "scores"):
            np.testing.assert_array_equal(getattr(found.frames, name), getattr(expected.frames, name))
    shared = predict_split([*five, *two, *one], lengths, overlap=1, **keys)
    assert shared.frames.image_ids.tolist() == images, "each frame is scored once"


def test_no_clip_and_no_detection():
    for batches, lengths in (([], {}), ([window(1, [0, 1])], {1: 2})):
        found = predict_split(batches, lengths, score_threshold=1.5)
        assert len(found.frames) == 0
    strict = detector(rules=StitchRules(score_threshold=1.0))
    (seen,) = predict_videos(strict, [window(1, [0, 1])], {1: 2})
    assert (seen.tubes, len(seen.frames)) == ([], 3)
