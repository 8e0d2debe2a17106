"""The sampling figure and the contact sheet: the numbers behind them, and that every shape of clip can be drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stdetr.structures import SamplingRecord, Tubes
from stdetr.viz.report import contact_sheet, side_by_side
from stdetr.viz.sampling import _columns, _window, points_on_frame, sampling_figure


def record(tubes: int, length: int, frames: torch.Tensor | None = None, levels: int = 3) -> SamplingRecord:
    generator, heads, points = torch.Generator().manual_seed(0), 2, 4
    order = torch.arange(length).expand(length, -1) if frames is None else frames
    sampled = order.shape[1]
    locations = torch.rand(tubes, length, heads, sampled, levels, points, 2, generator=generator)
    weights = torch.rand(locations.shape[:-1], generator=generator).flatten(3).softmax(-1).view(locations.shape[:-1])
    boxes = torch.rand(tubes, length, 4, generator=generator) * 0.2 + 0.3
    return SamplingRecord(locations, weights, order, boxes)


def test_points_of_a_frame_are_those_of_its_slots():
    # From frame 1, slot 0 sampled frame 2 and slot 1 frame 0; slot 2 is masked.
    order = torch.tensor([[0, 1, 2], [2, 0, -1], [2, 1, 0]])
    taken = record(2, 3, order)
    sample = points_on_frame(taken, tube=1, seen_from=1, frame=2, size=(50, 200))
    assert sample.xy.shape == (2 * 3 * 4, 2)
    expected = taken.locations[1, 1, :, 0].reshape(-1, 2) * torch.tensor([200, 50])
    assert sample.xy == pytest.approx(expected.numpy())
    assert sample.weight == pytest.approx(taken.weights[1, 1, :, 0].reshape(-1).numpy() / 2)
    assert sample.level.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2] * 2
    assert len(points_on_frame(taken, 1, 1, 1, (50, 200)).weight) == 0
    whole = record(1, 4)
    total = sum(float(points_on_frame(whole, 0, 2, t, (10, 10)).weight.sum()) for t in range(4))
    assert total == pytest.approx(1)  # the shares of the frames, over all heads


def test_the_window_holds_the_boxes_and_nearly_all_weight():
    taken = record(1, 2)
    samples = [points_on_frame(taken, 0, 0, t, (100, 100)) for t in range(2)]
    x, y, side = _window(taken.boxes[0], samples, (100, 100))
    low = (taken.boxes[0, :, :2] - taken.boxes[0, :, 2:] / 2).amin(0) * 100
    high = (taken.boxes[0, :, :2] + taken.boxes[0, :, 2:] / 2).amax(0) * 100
    assert x - side / 2 <= low[0]
    assert y - side / 2 <= low[1]
    assert x + side / 2 >= high[0]
    assert y + side / 2 >= high[1]
    inside = sum(float(s.weight[(np.abs(s.xy - [x, y]) <= side / 2).all(1)].sum()) for s in samples)
    assert inside >= 0.8


def test_columns_keep_the_frame_that_asks():
    assert _columns(5, 2, 7) == [0, 1, 2, 3, 4]
    chosen = _columns(40, 17, 6)
    assert len(chosen) == 6
    assert 17 in chosen
    assert (chosen[0], chosen[-1]) == (0, 39)


@pytest.mark.parametrize(("length", "tubes", "levels"), [(1, 1, 1), (5, 3, 4), (20, 1, 2)])
def test_figures_of_every_shape(tmp_path: Path, length: int, tubes: int, levels: int):
    taken = record(tubes, length, levels=levels)
    frames = np.random.default_rng(0).integers(0, 255, (length, 48, 64, 3), dtype=np.uint8)
    path = sampling_figure(frames, taken, tmp_path / "new" / "sampling.png", tubes=list(range(tubes)),
                           boxes=taken.boxes, title="clip", columns=6, dpi=50)  # fmt: skip
    picture = np.asarray(Image.open(path).convert("RGB"))
    expected = 50 * ((min(length, 6) + 1) * 1.83 + 0.3)
    assert picture.shape[1] == pytest.approx(expected, abs=2)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 500
    assert [item.name for item in path.parent.iterdir()] == ["sampling.png"]


def test_fully_masked_tube_is_drawn(tmp_path: Path):
    taken = record(1, 2, torch.full((2, 2), -1))
    blank = SamplingRecord(taken.locations, torch.zeros_like(taken.weights), taken.frames, taken.boxes)
    assert sampling_figure(np.zeros((2, 20, 20, 3), np.uint8), blank, tmp_path / "a.png", tubes=[0], dpi=40).is_file()


def test_figure_mistakes_are_named(tmp_path: Path):
    frames = np.zeros((2, 20, 20, 3), np.uint8)
    with pytest.raises(ValueError, match="the record is of a clip of 3 frames, got 2 frames"):
        sampling_figure(frames, record(1, 3), tmp_path / "a.png", tubes=[0])
    with pytest.raises(ValueError, match="tube 1 does not exist, the record has 1"):
        sampling_figure(frames, record(1, 2), tmp_path / "a.png", tubes=[1])
    with pytest.raises(ValueError, match="no tube to draw"):
        sampling_figure(frames, record(1, 2), tmp_path / "a.png", tubes=[])


def annotated() -> Tubes:
    """Two tracks on frames 7 and 8 of 40 x 80 px; the second is not there."""
    boxes = torch.tensor([[[20.0, 10, 60, 30]] * 2, [[0.0] * 4] * 2])
    present = torch.tensor([[True, True], [False, False]])
    return Tubes(boxes, present.float(), torch.tensor([0, 1]), torch.tensor([5, 6]), torch.tensor([7, 8]),
                 torch.ones(2), present)  # fmt: skip


def test_contact_sheet_has_a_row_and_a_column_each(tmp_path: Path):
    frames = np.full((2, 40, 80, 3), 50, np.uint8)
    truth = annotated()
    path = contact_sheet(frames, [("annotated", truth), ("detected", truth)], ["cat", "dog"], tmp_path / "sheet.png",
                         cell=80, title="clip")  # fmt: skip
    picture = np.asarray(Image.open(path))
    assert picture.shape[1] == 4 + 2 * (160 + 4)
    assert picture.shape[0] > 2 * 80
    with pytest.raises(ValueError, match="row 'detected' has 2 frames, the clip has 1"):
        contact_sheet(frames[:1], [("detected", truth)], ["cat", "dog"], path)
    with pytest.raises(ValueError, match="at least one row and one frame"):
        contact_sheet(frames, [], ["cat"], path)


def test_side_by_side_frames_have_one_size():
    frames = np.full((2, 40, 80, 3), 50, np.uint8)
    truth = annotated()
    empty = truth.select(torch.zeros(2, dtype=torch.bool))
    drawn = list(side_by_side(frames, [("annotated", truth), ("detected", empty)], ["cat", "dog"], min_side=80))
    assert [image.shape for image in drawn] == [drawn[0].shape] * 2
    assert drawn[0].shape[1] == 2 * 160 + 6
    right = drawn[0][-60:-20, 180:300]
    assert (right == 50).all()  # nothing was detected
