"""The clip detector: shapes, any T, padding, masks, denoising, sampling record."""

from __future__ import annotations

import pytest
import torch

from stdetr.config import compose, instantiate
from stdetr.models.backbone import SmallBackbone
from stdetr.models.decoder import Decoder
from stdetr.models.denoising import TubeDenoising, fill_absent
from stdetr.models.detector import ClipDetector, TrainingOutput
from stdetr.models.encoder import Encoder
from stdetr.models.linking import TubeLinker
from stdetr.models.neck import Neck
from stdetr.models.queries import LearnedQueries, TokenQueries
from stdetr.structures import ClipTargets


def _detector(*, learned: bool = False, encoder_layers: int = 1, denoising: bool = False):
    torch.manual_seed(0)
    backbone = SmallBackbone(widths=(8, 16, 16, 24), out_strides=(8, 16))
    common = {"width": 32, "heads": 4, "levels": 2, "points": 2, "feed_forward": 32, "dropout": 0.0}
    queries = (
        LearnedQueries(width=32, queries=6)
        if learned
        else TokenQueries(classes=3, width=32, queries=6, candidates=8, anchor=0.2, linker=TubeLinker(seeds=12))
    )
    weights = "distance" if learned else "content"
    model = ClipDetector(
        backbone=backbone,
        neck=Neck(channels=backbone.channels, width=32, levels=2, norm_groups=4),
        encoder=Encoder(layers=encoder_layers, window=1, frame_weights=weights, **common),
        queries=queries,
        decoder=Decoder(layers=2, position="fixed" if learned else "boxes", frame_weights=weights, **common),
        classes=3,
        denoising=TubeDenoising(classes=3, width=32, queries=8) if denoising else None,
    ).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():  # nothing stays at an initial zero
            if parameter.ndim > 1:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("frames", [1, 2, 5, 9])
@pytest.mark.parametrize("learned", [False, True])
def test_any_number_of_frames(frames: int, learned: bool) -> None:
    model = _detector(learned=learned)
    with torch.no_grad():
        output = model(torch.randn(2, frames, 3, 64, 96))
    assert output.logits.shape == (2, 6, 3)
    assert output.boxes.shape == (2, 6, frames, 4)
    assert output.presence.shape == (2, 6, frames)
    assert torch.isfinite(output.boxes).all()


def test_parameters_do_not_depend_on_the_number_of_frames() -> None:
    """A window that does not reach the other frames leaves each frame as if it were alone."""
    model = _detector(learned=True)
    model.encoder.window = model.decoder.window = 0
    for layer in model.decoder.layers:
        torch.nn.init.zeros_(layer.frame_attention.output.weight)
    clip = torch.randn(1, 4, 3, 64, 64)
    with torch.no_grad():
        whole = model(clip)
        alone = torch.cat([model(clip[:, t : t + 1]).boxes for t in range(4)], 2)
    torch.testing.assert_close(whole.boxes, alone, atol=1e-5, rtol=0)


def test_far_frames_do_not_reach_through_a_small_window() -> None:
    model = _detector(learned=True, encoder_layers=1)
    model.decoder.window = 0
    for layer in model.decoder.layers:
        torch.nn.init.zeros_(layer.frame_attention.output.weight)
    clip = torch.randn(1, 6, 3, 64, 64)
    changed = clip.clone()
    changed[:, 5] = torch.randn(3, 64, 64)
    with torch.no_grad():
        a, b = model(clip), model(changed)
    # One encoder layer of window 1: frame 5 reaches frame 4, no further.
    torch.testing.assert_close(a.boxes[:, :, :4], b.boxes[:, :, :4], atol=1e-6, rtol=0)
    assert (a.boxes[:, :, 4] - b.boxes[:, :, 4]).abs().max() > 1e-4


def test_frames_that_pad_time_change_nothing() -> None:
    model = _detector()
    clip = torch.randn(1, 3, 3, 64, 64)
    longer = torch.cat((clip, torch.randn(1, 2, 3, 64, 64)), 1)
    with torch.no_grad():
        a = model(clip)
        b = model(longer, frame_mask=torch.tensor([[True, True, True, False, False]]))
    torch.testing.assert_close(a.logits, b.logits, atol=3e-3, rtol=0)
    torch.testing.assert_close(a.boxes, b.boxes[:, :, :3], atol=3e-3, rtol=0)


def _targets(frames: int) -> tuple[ClipTargets, ClipTargets]:
    boxes = torch.tensor([[[0.4, 0.4, 0.2, 0.2]] * frames, [[0.6, 0.6, 0.3, 0.2]] * frames])
    present = torch.ones(2, frames, dtype=torch.bool)
    present[1, 0] = False
    some = ClipTargets(torch.tensor([0, 2]), boxes, present, torch.zeros_like(present), torch.arange(2))
    return some, ClipTargets.empty(frames)


def test_training_output_and_gradients() -> None:
    model = _detector(denoising=True).train()
    output = model(torch.randn(2, 3, 3, 64, 64), targets=_targets(3))
    training = output.losses_input
    assert isinstance(training, TrainingOutput)
    assert len(training.layers) == len(training.denoising) == 2
    assert training.denoising_track is not None
    groups = 8 // 4
    assert training.denoising_track.shape == (2, groups * 4)
    assert (training.denoising_track[1] == -1).all()
    total = sum(p.boxes.sum() + p.logits.sum() + p.presence.sum() for p in (*training.layers, *training.denoising))
    (total + training.dense.logits.sum() + training.dense.boxes.sum()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_matching_queries_never_see_the_answers() -> None:
    model = _detector(denoising=True).eval()
    frames = torch.randn(2, 3, 3, 64, 64)
    with torch.no_grad():
        plain, trained = model(frames), model(frames, targets=_targets(3))
    torch.testing.assert_close(plain.logits, trained.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.boxes, trained.boxes, atol=1e-5, rtol=0)


def test_absent_boxes_are_filled_from_the_nearest_frame() -> None:
    boxes = torch.zeros(1, 5, 4)
    boxes[0, 1], boxes[0, 4] = 1.0, 4.0
    filled = fill_absent(boxes, torch.tensor([[False, True, False, False, True]]))
    assert filled[0, :, 0].tolist() == [1, 1, 1, 4, 4]


def test_sampling_record_follows_the_boxes() -> None:
    model = _detector()
    output, records = model.record_sampling(torch.randn(2, 3, 3, 64, 64))
    assert len(records) == 2
    record = records[0]
    assert record.locations.shape == (6, 3, 4, 3, 2, 2, 2)
    assert record.frames.tolist() == [[0, 1, 2]] * 3
    torch.testing.assert_close(record.weights.sum((2 + 1, 4, 5)), torch.ones(6, 3, 4), atol=1e-5, rtol=0)
    model.decoder.window = 1
    _, (record, _) = model.record_sampling(torch.randn(2, 3, 3, 64, 64))
    assert record.frames.tolist() == [[-1, 0, 1], [0, 1, 2], [1, 2, -1]]
    assert (record.weights[:, 0, :, 0] == 0).all(), "frame 0 has nothing before it"
    assert model.decoder.layers[-1].cross_attention.recorder is None
    # The boxes are those that the last layer starts from: the second to last layer's.
    clip = torch.randn(1, 3, 3, 64, 64)
    _, (record,) = model.record_sampling(clip)
    model.denoising = None
    with torch.no_grad():
        layers = model(clip, targets=_targets(3)[1:]).losses_input.layers
    torch.testing.assert_close(record.boxes, layers[0].boxes[0])
    assert torch.isfinite(output.boxes).all()


def test_single_frames_train_alike_whatever_weighs_the_frames() -> None:
    """So runs with either setting can fork from one single-frame phase; a clip then moves the new parameters."""
    states = {}
    for frame_weights in ("distance", "content", "idle"):
        torch.manual_seed(0)
        cfg = compose("train", ["experiment=toy", "model.classes=3", f"model.frame_weights={frame_weights}"])
        model = instantiate(cfg.model.detector).train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        optimizer = instantiate(cfg.optim).optimizer(model)
        for frames in (1, 1, 3):
            clip = torch.randn(1, frames, 3, 64, 64, generator=torch.Generator().manual_seed(frames))
            training = model(clip, targets=_targets(frames)[:1]).losses_input
            sum(p.logits.pow(2).sum() + p.boxes.sum() for p in training.layers).backward()
            if frames > 1:
                break
            optimizer.step()
            optimizer.zero_grad()
        states[frame_weights] = model.state_dict()
        new = {name: p for name, p in model.named_parameters() if "frame_query" in name or "frame_key" in name}
        assert len(new) == (0 if frame_weights == "distance" else 2 * 3)
        assert all(torch.equal(p, before[name]) for name, p in new.items())
        for name, p in new.items():
            assert (p.grad is None) == (frame_weights == "idle"), name
            if frame_weights == "content" and "frame_query" in name:
                assert p.grad.any(), name
    for name, value in states["distance"].items():
        assert torch.equal(value, states["content"][name]), name
        assert torch.equal(value, states["idle"][name]), name


def test_empty_batch_and_wrong_shapes() -> None:
    model = _detector()
    with pytest.raises(ValueError, match=r"\(B,T,3,h,w\)"):
        model(torch.randn(2, 3, 64, 64))


def test_mismatched_width_is_named() -> None:
    backbone = SmallBackbone()
    with pytest.raises(ValueError, match=r"neck\.width=32.*decoder\.width=64"):
        ClipDetector(
            backbone=backbone,
            neck=Neck(channels=backbone.channels, width=32, levels=2, norm_groups=4),
            encoder=Encoder(width=32, layers=0),
            queries=LearnedQueries(width=32),
            decoder=Decoder(width=64, layers=1),
            classes=1,
        )
