"""Boxes stay on their objects through every transform, for all frames of a clip alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from stdetr.data.transforms import ClipTransform, RandomZoomCrop, ResizeShortSide

FRAMES = 4


def _squares(height: int = 60, width: int = 80) -> tuple[Tensor, Tensor]:
    """A clip of a bright square of 16 px that moves by (5, 3) px per frame, and its boxes."""
    frames = torch.full((FRAMES, 3, height, width), 20, dtype=torch.uint8)
    boxes = torch.zeros(FRAMES, 4)
    for t in range(FRAMES):
        x, y = 12 + 5 * t, 9 + 3 * t
        frames[t, :, y : y + 16, x : x + 16] = 230
        boxes[t] = torch.tensor([x, y, x + 16, y + 16])
    return frames, boxes


def _bright_box(frame: Tensor) -> Tensor:
    """xyxy of the pixels brighter than half."""
    y, x = torch.nonzero(frame.float().mean(0) > 125, as_tuple=True)
    return torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()


TRANSFORMS = {
    "nothing": [],
    "flip": [v2.RandomHorizontalFlip(1.0), v2.RandomVerticalFlip(1.0)],
    "short side": [ResizeShortSide([90, 120, 150], longest=190)],
    "crop": [RandomZoomCrop((0.6, 0.9), p=1.0)],
    "torchvision crop": [v2.RandomIoUCrop(), v2.Resize((64, 64))],
    "zoom out": [v2.RandomZoomOut(fill=20, p=1.0)],
    "all": [v2.RandomHorizontalFlip(), RandomZoomCrop((0.6, 1.0), 0.7), v2.ColorJitter(0.1, 0.1), ResizeShortSide(100)],
}  # fmt: skip


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_boxes_stay_on_the_objects(kind: str) -> None:
    transform = ClipTransform(TRANSFORMS[kind], min_side=4, min_share=0.3)
    checked = 0
    for seed in range(25):
        torch.manual_seed(seed)
        frames, boxes = _squares()
        out, moved, keep = transform(frames, boxes)
        height, width = out.shape[-2:]
        assert out.shape[:2] == (FRAMES, 3)
        for t in range(FRAMES):
            if not keep[t]:
                continue
            assert (moved[t] >= 0).all()
            assert (moved[t, 2:] <= torch.tensor([width, height])).all()
            # Half a pixel on each side for interpolation at the edge, scaled with the picture.
            tolerance = 1.0 + 0.5 * max(1.0, float((moved[t, 2:] - moved[t, :2]).max()) / 16)
            torch.testing.assert_close(_bright_box(out[t]), moved[t], atol=tolerance, rtol=0)
            checked += 1
    assert checked >= 40


def test_one_draw_for_the_whole_clip() -> None:
    """The same picture in every frame stays the same picture in every frame."""
    frames, boxes = _squares()
    frames, boxes = frames[:1].repeat(FRAMES, 1, 1, 1), boxes[:1].repeat(FRAMES, 1)
    noise = torch.randint(0, 30, (1, 3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    transform = ClipTransform(
        [
            v2.RandomHorizontalFlip(),
            RandomZoomCrop(p=1.0),
            v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
            ResizeShortSide([40, 50]),
        ],
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    results = []
    for seed in range(6):
        torch.manual_seed(seed)
        out, moved, _ = transform(frames + noise, boxes)
        assert (out == out[:1]).all()
        assert (moved == moved[:1]).all()
        results.append((*out.shape, round(float(out.mean()), 4)))
    assert len(set(results)) > 3


def test_a_crop_may_keep_the_aspect() -> None:
    frames, boxes = torch.zeros(1, 3, 60, 80, dtype=torch.uint8), torch.zeros(0, 4)
    shapes = {True: set(), False: set()}
    for keep, found in shapes.items():
        crop = ClipTransform([RandomZoomCrop((0.5, 1.0), p=1.0, keep_aspect=keep)])
        for seed in range(20):
            torch.manual_seed(seed)
            found.add(tuple(crop(frames, boxes)[0].shape[-2:]))
    assert all(abs(3 * width - 4 * height) <= 4 for height, width in shapes[True]), "4:3 up to rounding"
    assert len(shapes[True]) > 5
    assert max(abs(3 * width - 4 * height) for height, width in shapes[False]) > 40


def test_normalisation_by_hand() -> None:
    frames = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    transform = ClipTransform(mean=(0.5, 0.25, 0.4), std=(0.5, 0.25, 0.2))
    out, _, _ = transform(frames, torch.zeros(0, 4))
    expected = [(0 - 0.5) / 0.5, (128 / 255 - 0.25) / 0.25, (1 - 0.4) / 0.2]
    torch.testing.assert_close(out.flatten(), torch.tensor(expected), atol=1e-6, rtol=0)
    floats, _, _ = ClipTransform([v2.ToDtype(torch.float32, scale=True)], mean=(0.5, 0.25, 0.4), std=(0.5, 0.25, 0.2))(
        frames, torch.zeros(0, 4)
    )
    torch.testing.assert_close(floats, out, atol=1e-6, rtol=0)
    raw, _, _ = ClipTransform()(frames, torch.zeros(0, 4))
    assert raw.dtype == torch.uint8


def test_boxes_that_a_crop_removes() -> None:
    """A window over the left half: one box inside, one cut to a third, one gone."""

    class LeftHalf(torch.nn.Module):
        def forward(self, video: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
            return v2.functional.crop(video, 0, 0, 40, 30), v2.functional.crop(boxes, 0, 0, 40, 30)

    frames = torch.zeros(1, 3, 40, 60, dtype=torch.uint8)
    boxes = torch.tensor([[2.0, 3, 12, 13], [25, 5, 40, 25], [45, 5, 55, 15]])
    _, moved, keep = ClipTransform([LeftHalf()])(frames, boxes)
    assert keep.tolist() == [True, True, False]
    torch.testing.assert_close(moved[1], torch.tensor([25.0, 5, 30, 25]))
    _, _, keep = ClipTransform([LeftHalf()], min_share=0.34)(frames, boxes)
    assert keep.tolist() == [True, False, False]
    _, _, keep = ClipTransform([LeftHalf()], min_share=0.33)(frames, boxes)
    assert keep.tolist() == [True, True, False]
    _, _, keep = ClipTransform([LeftHalf()], min_side=5.5)(frames, boxes)
    assert keep.tolist() == [True, False, False]


def test_short_side_rule() -> None:
    """800 of 480x640 gives 800x1067; a longest side of 1000 wins over it."""
    frames, boxes = torch.zeros(1, 3, 480, 640, dtype=torch.uint8), torch.tensor([[64.0, 48, 320, 240]])
    out, moved, _ = ClipTransform([ResizeShortSide(800)])(frames, boxes)
    assert out.shape[-2:] == (800, 1067)
    torch.testing.assert_close(moved, boxes * torch.tensor([1067 / 640, 800 / 480] * 2), atol=1e-3, rtol=0)
    out, _, _ = ClipTransform([ResizeShortSide(800, longest=1000)])(frames, boxes)
    assert out.shape[-2:] == (750, 1000)


def test_no_boxes() -> None:
    frames, _ = _squares()
    for transforms in TRANSFORMS.values():
        _, moved, keep = ClipTransform(transforms)(frames, torch.zeros(0, 4))
        assert moved.shape == (0, 4)
        assert keep.shape == (0,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClipTransform(mean=(0.5, 0.5, 0.5)), "data.mean and data.std go together"),
        (lambda: ClipTransform(mean=(0.5,), std=(0.5,)), "data.mean must have one number for each"),
        (lambda: ClipTransform(mean=(0, 0, 0), std=(1, 0, 1)), "data.std must be positive"),
        (lambda: ResizeShortSide([]), "sizes must be positive"),
        (lambda: RandomZoomCrop((0.0, 1.0)), "0 < low <= high <= 1"),
    ],
)
def test_wrong_settings(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # pyright: ignore[reportCallIssue]
