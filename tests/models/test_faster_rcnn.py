"""Faster R-CNN keeps the detector's contract: detections as tubes of one frame, losses by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stdetr.config import compose, instantiate
from stdetr.engine import train
from stdetr.models.faster_rcnn import FasterRcnn, _known
from stdetr.models.postprocess import to_tubes
from stdetr.structures import ClipInfo, ClipTargets

TINY = [
    "model=faster_rcnn", "model/backbone@model.detector.backbone=small", "criterion=own", "model.width=16",
    "model.hidden=16", "model.detector.neck.norm_groups=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> FasterRcnn:
    torch.manual_seed(0)
    return instantiate(compose("train", [*TINY, "model.levels=3", "model.classes=3"]).model.detector)


def _targets(*boxes: list[float]) -> ClipTargets:
    count = len(boxes)
    present = torch.ones(count, 1, dtype=torch.bool)
    packed = torch.tensor(boxes).reshape(count, 1, 4)
    return ClipTargets(torch.arange(count) % 3, packed, present, ~present, torch.arange(count))


def test_detections_become_tubes_of_one_frame(model: FasterRcnn) -> None:
    found = {
        "boxes": torch.tensor([[8.0, 4, 24, 20], [0, 0, 40, 30]]),
        "labels": torch.tensor([3, 1]),
        "scores": torch.tensor([0.75, 0.5]),
    }
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    output = model._output([found, nothing], [(30, 40), (32, 32)], torch.zeros(1), None)
    # The source is twice as large as the frame that the model saw.
    infos = [ClipInfo(1, (5,), (7,), (60, 80)), ClipInfo(1, (6,), (8,), (64, 64))]
    tubes, empty = (some.select(some.present.any(1)) for some in to_tubes(output, infos, presence_threshold=0.3))
    tubes = tubes.select(tubes.scores[:, 0] > 0)
    assert tubes.labels.tolist() == [2, 0]
    torch.testing.assert_close(tubes.scores, torch.tensor([[0.75], [0.5]]))
    torch.testing.assert_close(tubes.boxes[:, 0], torch.tensor([[16.0, 8, 48, 40], [0, 0, 80, 60]]))
    assert tubes.present.all()
    assert len(empty) == 0


def test_annotations_in_pixels_from_class_1(model: FasterRcnn) -> None:
    targets = _targets([0.5, 0.5, 0.5, 0.25], [0.25, 0.5, 0.5, 0.5])
    targets.ignored[1] = True
    known = _known(targets, (40, 80))
    assert known["labels"].tolist() == [1]
    assert known["boxes"].tolist() == [[20, 15, 60, 25]]


def test_losses_of_frames_with_and_without_objects(model: FasterRcnn) -> None:
    frames = torch.randn(2, 1, 3, 64, 64)
    output = model.train()(
        frames, torch.tensor([[64, 64], [48, 64]]), targets=[_targets([0.5, 0.5, 0.3, 0.3]), _targets()]
    )
    names = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    assert output.losses_input.keys() == names
    criterion = instantiate(compose("train", ["criterion=own"]).criterion)
    total, terms = criterion(output, [])
    assert total == sum(terms.values())
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    model.zero_grad()


def test_a_clip_is_refused_and_padding_does_not_matter(model: FasterRcnn) -> None:
    with pytest.raises(ValueError, match=r"single frames: set data\.frames=1"):
        model(torch.zeros(1, 2, 3, 64, 64))
    model.eval()
    output = model(torch.randn(1, 1, 3, 64, 64), torch.tensor([[48, 64]]))
    assert output.losses_input is None
    assert output.boxes.shape == (1, 100, 1, 4)
    reported = output.boxes[output.presence[..., 0] > 0]
    assert (reported[..., 3] <= 1).all(), "boxes end with the frame, not with its padding"


def test_the_loop_trains_it(tmp_path: Path) -> None:
    words = [
        *TINY, "model.levels=2", "data.frames=1", "data.benchmark.frame_size=64", "data.benchmark.frames=4",
        "viz.samples=0", "data.benchmark.splits.train.videos=4", "data.benchmark.splits.val.videos=1", "logger=none",
        "data.benchmark.splits.test.videos=1", f"paths.data={tmp_path}", f"output_dir={tmp_path / 'run'}",
        "trainer.max_steps=2", "trainer.log_every=1", "trainer.save_every=0", "trainer.eval_start=0",
    ]  # fmt: skip
    assert 0 <= train.run(compose("train", words)) <= 1
    assert (tmp_path / "run" / "predictions.json").is_file()
