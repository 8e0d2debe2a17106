"""From logits to tubes: scores by hand, presence, clipping, padded frames.

Shape legend: B clips, Q tubes, T frames, N classes.
"""

from __future__ import annotations

import math

import pytest
import torch

from stdetr.models.postprocess import to_tubes
from stdetr.structures import ClipInfo, ModelOutput

INFO = ClipInfo(0, (4, 5), (10, 11), (50, 100), "video")


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def output(frames: int = 2) -> ModelOutput:
    """Two tubes, two classes; the second tube leaves the frame on the left."""
    of_tube = torch.tensor([[[0.8, 0.1], [0.2, 0.5]]]).logit()
    of_frame = torch.tensor([[[[0.2, 0.1], [0.8, 0.4]], [[0.5, 0.5], [0.1, 0.02]]]]).logit()
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.4]] * 2, [[0.0, 0.5, 0.2, 0.4]] * 2]])
    presence = torch.tensor([[[logit(0.9), logit(0.2)], [logit(0.4), logit(0.3001)]]])
    more = frames - 2
    pad = torch.nn.functional.pad
    return ModelOutput(of_tube, pad(of_frame, (0, 0, 0, more)), pad(boxes, (0, 0, 0, more)), pad(presence, (0, more)))


def test_a_frames_score_is_the_geometric_mean_of_tube_and_frame() -> None:
    (tubes,) = to_tubes(output(), [INFO], presence_threshold=0.3)
    assert tubes.labels.tolist() == [0, 1, 0, 1]  # by the tube's score: 0.8, 0.5, 0.2, 0.1
    torch.testing.assert_close(tubes.tube_scores, torch.tensor([0.8, 0.5, 0.2, 0.1]))
    wanted = [[0.16, 0.64], [0.25, 0.01], [0.10, 0.02], [0.01, 0.04]]  # products, before the root
    torch.testing.assert_close(tubes.scores.square(), torch.tensor(wanted))
    assert tubes.present.tolist() == [[True, False], [True, True], [True, True], [True, False]]
    assert tubes.frame_index.tolist() == [4, 5]
    torch.testing.assert_close(tubes.boxes[0, 0], torch.tensor([40.0, 15.0, 60.0, 35.0]))
    torch.testing.assert_close(tubes.boxes[1, 0], torch.tensor([0.0, 15.0, 10.0, 35.0]))  # cut at the frame's edge


def test_the_best_pairs_only_and_their_queries() -> None:
    (tubes,) = to_tubes(output(), [INFO], top_k=2)
    assert tubes.labels.tolist() == [0, 1]
    assert tubes.queries is not None and tubes.queries.tolist() == [0, 1]


def test_frames_that_only_pad_the_clip_are_cut_off() -> None:
    (tubes,) = to_tubes(output(frames=5), [INFO])
    assert tubes.boxes.shape == (4, 2, 4) and tubes.present.all()


@pytest.mark.parametrize("score", [0.001, 0.5, 0.999])
def test_one_frame_gives_the_class_score(score: float) -> None:
    logits = torch.full((1, 1, 1), logit(score))
    single = ModelOutput(logits, logits[:, :, None], torch.full((1, 1, 1, 4), 0.5), torch.full((1, 1, 1), -3.0))
    (tubes,) = to_tubes(single, [ClipInfo(0, (7,), (1,), (10, 10), "video")])
    torch.testing.assert_close(tubes.scores, torch.tensor([[score]]), atol=1e-6, rtol=1e-5)
