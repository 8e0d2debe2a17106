"""A causal detector: no later frame changes anything said of a frame, and a stream says what one pass says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stdetr.losses.criterion import TubeCriterion
from stdetr.losses.dense import DenseLoss
from stdetr.losses.matcher import TubeMatcher
from stdetr.models.backbone import SmallBackbone
from stdetr.models.decoder import Decoder
from stdetr.models.denoising import TubeDenoising, fill_absent
from stdetr.models.detector import ClipDetector, TrainingOutput
from stdetr.models.encoder import Encoder
from stdetr.models.heads import ClipPool
from stdetr.models.linking import TubeLinker
from stdetr.models.neck import Neck
from stdetr.models.postprocess import to_tubes
from stdetr.models.queries import LearnedQueries, TokenQueries
from stdetr.models.streaming import CausalStream
from stdetr.structures import ClipInfo, ClipTargets, ModelOutput

KINDS = ["learned", "token", "mixed"]
OUTPUTS = ("logits", "frame_logits", "boxes", "presence")


def detector(kind: str, *, encoder_layers: int = 2, window: int | None = 1, causal: bool = True) -> ClipDetector:
    torch.manual_seed(0)
    backbone = SmallBackbone(widths=(8, 16, 16, 24), out_strides=(8, 16), norm="group")
    common = {"width": 32, "heads": 4, "levels": 2, "points": 2, "feed_forward": 32, "dropout": 0.0, "causal": causal}
    learned = kind == "learned"
    weights = "distance" if learned else "content"
    content = "learned" if kind == "mixed" else "token"
    model = ClipDetector(
        backbone=backbone,
        neck=Neck(channels=backbone.channels, width=32, levels=2, norm_groups=4),
        encoder=Encoder(
            layers=encoder_layers, window=window, frame_weights="distance" if window == 0 else weights, **common
        ),
        queries=LearnedQueries(width=32, queries=6)
        if learned
        else TokenQueries(
            classes=3, width=32, queries=10, candidates=12, anchor=0.2, content=content,
            linker=TubeLinker(seeds=24), causal=causal, births=3 if causal else None,
        ),
        decoder=Decoder(layers=2, position="fixed" if learned else "boxes", frame_weights=weights, **common),
        classes=3,
        denoising=None if learned else TubeDenoising(classes=3, width=32, queries=8, causal=causal),
        causal=causal,
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # nothing stays at an initial zero
            if parameter.ndim > 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def clips(frames: int = 5, count: int = 2) -> Tensor:
    """Noise that changes slowly, so that some tubes go on and some begin."""
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(count, frames, 3, 64, 96, generator=generator)
    return torch.stack([noise[:, max(0, t - 2) : t + 1].sum(1) for t in range(frames)], 1)


def infos(frames: int, count: int = 2) -> list[ClipInfo]:
    return [ClipInfo(0, tuple(range(frames)), (-1,) * frames, (64, 96)) for _ in range(count)]


def detections(output: ModelOutput, frames: int, top_k: int = 7) -> list[list[tuple[float, ...]]]:
    """Label, score and box of all that is reported on each frame of all clips, sorted."""
    found: list[list[tuple[float, ...]]] = [[] for _ in range(frames)]
    for tubes in to_tubes(output, infos(frames, len(output.boxes)), top_k, presence_threshold=0.3):
        for n, t in tubes.present.nonzero().tolist():
            found[t].append((int(tubes.labels[n]), float(tubes.scores[n, t]), *tubes.boxes[n, t].tolist()))
    return [sorted(rows) for rows in found]


@pytest.mark.parametrize("encoder_layers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_later_frames_change_nothing(kind: str, encoder_layers: int) -> None:
    model = detector(kind, encoder_layers=encoder_layers)
    clip, changed = clips(), clips()
    changed[:, 3:] = torch.randn(2, 2, 3, 64, 96, generator=torch.Generator().manual_seed(9))
    first, second = model(clip), model(changed)
    for name in OUTPUTS:
        before, after = getattr(first, name), getattr(second, name)
        assert torch.equal(before[:, :, :3], after[:, :, :3]), name
        assert not torch.equal(before[:, :, 3:], after[:, :, 3:]), f"{name} does not depend on its own frame"
    assert detections(first, 5)[:3] == detections(second, 5)[:3]
    assert min(map(len, detections(first, 5))) > 0
    assert first.logits.shape == (2, 6 if kind == "learned" else 10 + 4 * 3, 5, 3)


@torch.no_grad()
def test_offline_frames_do_see_later_ones() -> None:
    """The check above can fail."""
    model = detector("token", causal=False)
    changed = clips()
    changed[:, 3:] = 0
    assert not torch.equal(model(clips()).boxes[:, :, :3], model(changed).boxes[:, :, :3])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_one_pass_over_fewer_frames_says_the_same(kind: str) -> None:
    model = detector(kind)
    clip = clips()
    whole = model(clip)
    for t in range(5):
        part = model(clip[:, : t + 1])
        tubes = part.boxes.shape[1]
        for name in OUTPUTS:
            torch.testing.assert_close(getattr(part, name), getattr(whole, name)[:, :tubes, : t + 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("encoder_layers", "window"), [(0, 1), (2, 1), (2, None), (2, 0)])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_stream_says_what_one_pass_over_its_window_says(kind: str, encoder_layers: int, window: int | None) -> None:
    model = detector(kind, encoder_layers=encoder_layers, window=window)
    clip = clips(9, 1)
    stream = CausalStream(model, length=4, overlap=2)
    windows = [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3), (2, 3, 4), (2, 3, 4, 5), (4, 5, 6), (4, 5, 6, 7), (6, 7, 8)]
    for t, wanted in enumerate(windows):
        output = stream.push(model.features(clip[:, t : t + 1]), t)
        assert tuple(stream.index) == wanted
        whole = model(clip[:, list(wanted)], frame_index=torch.tensor([wanted]))
        for name in OUTPUTS:
            torch.testing.assert_close(getattr(output, name), getattr(whole, name), atol=1e-5, rtol=0)
        last = len(wanted) - 1
        for a, b in zip(detections(output, last + 1)[-1], detections(whole, last + 1)[-1], strict=True):
            assert a == pytest.approx(b, abs=1e-3)


@torch.no_grad()
def test_tubes_begin_when_they_are_first_proposed() -> None:
    output = detector("token")(clips())
    begun = output.presence > -1e3
    assert begun[:, :10, 0].any() and not begun[:, 10:, 0].any()
    for t in range(1, 5):
        born = begun[:, 10 + 3 * (t - 1) : 10 + 3 * t]
        assert not born[:, :, :t].any()
        assert torch.equal(born[:, :, t:].all(-1), born[:, :, t:].any(-1))
    assert begun[:, 10:].any(), "no tube begins after the first frame: nothing is tested"
    assert (output.logits.amax(-1) > -1e3).equal(begun)


def targets(later: float = 0.0) -> tuple[ClipTargets, ...]:
    """Two tracks, the second from frame 1 on; ``later`` moves their boxes on frames 3 and 4."""
    boxes = torch.tensor([[[0.4, 0.4, 0.2, 0.2]] * 5, [[0.6, 0.6, 0.3, 0.2]] * 5])
    boxes[:, 3:, :2] += later
    present = torch.ones(2, 5, dtype=torch.bool)
    present[1, 0] = present[0, 2] = False
    one = ClipTargets(torch.tensor([0, 2]), boxes, present, torch.zeros_like(present), torch.arange(2))
    return one, one


def test_training_sees_no_later_frame_either() -> None:
    model = detector("token").train()
    changed = clips()
    changed[:, 3:] = 0
    found = []
    for frames, wanted in ((clips(), targets()), (changed, targets(0.2))):
        torch.manual_seed(4)
        training = model(frames, targets=wanted).losses_input
        assert isinstance(training, TrainingOutput)
        found.append(training)
    for first, second in zip(*(t.layers + t.denoising for t in found), strict=True):
        for name in (*OUTPUTS, "exists"):
            assert torch.equal(getattr(first, name)[:, :, :3], getattr(second, name)[:, :, :3]), name
    exists = found[0].denoising[0].exists
    assert exists is not None
    assert exists[0, 0].all() and exists[0, 1].tolist() == [False, True, True, True, True]


def test_a_causal_model_trains() -> None:
    model = detector("token").train()
    criterion = TubeCriterion(matcher=TubeMatcher(), dense=DenseLoss())
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    totals = []
    for _ in range(16):
        torch.manual_seed(0)
        total, terms = criterion(model(clips(), targets=targets()), targets())
        assert all(torch.isfinite(value) for value in terms.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.8 * totals[0]


def test_pooling_by_hand() -> None:
    pool = ClipPool(1, causal=True)
    torch.nn.init.constant_(pool.weight.weight, 1.0)
    states = torch.tensor([1.0, 2.0, 3.0, 4.0]).log().view(1, 1, 4, 1)  # weights 1, 2, 3, 4
    mask = torch.tensor([[True, True, True, False]])
    x = states.flatten().tolist()
    expected = [x[0], (x[0] + 2 * x[1]) / 3, (x[0] + 2 * x[1] + 3 * x[2]) / 6]
    assert pool(states, mask)[0, 0, :3, 0].tolist() == pytest.approx(expected)
    exists = torch.tensor([[[False, True, True, True]]])
    assert pool(states, mask, exists)[0, 0, 1:3, 0].tolist() == pytest.approx([x[1], (2 * x[1] + 3 * x[2]) / 5])


def test_absent_boxes_are_filled_from_the_past() -> None:
    boxes = torch.arange(5.0).view(1, 5, 1).expand(-1, -1, 4)
    valid = torch.tensor([[False, True, False, False, True]])
    assert fill_absent(boxes, valid, causal=True)[0, :, 0].tolist() == [1, 1, 1, 1, 4]
    assert fill_absent(boxes, valid)[0, :, 0].tolist() == [1, 1, 1, 4, 4]


def test_scores_and_best_pairs_are_those_of_the_frame() -> None:
    """Two queries, one class, two frames; the second query is the better one from frame 1 on."""
    of_clip = torch.tensor([[[[0.64], [0.25]], [[0.36], [0.81]]]]).logit()
    of_frame = torch.full((1, 2, 2, 1), 0.5).logit()
    output = ModelOutput(of_clip, of_frame, torch.full((1, 2, 2, 4), 0.5), torch.zeros(1, 2, 2))
    (tubes,) = to_tubes(output, infos(2, 1), top_k=1)
    assert tubes.tube_scores.tolist() == pytest.approx([0.81, 0.25])
    assert tubes.present.tolist() == [[False, True], [True, False]]
    torch.testing.assert_close(tubes.scores, torch.tensor([[0.0, 0.405], [0.32, 0.0]]).sqrt())
    unborn = replace(output, logits=torch.where(torch.tensor([[[[1.0], [1]], [[0], [1]]]]) > 0, of_clip, -1e4))
    (tubes,) = to_tubes(unborn, infos(2, 1), top_k=2)
    assert tubes.present.tolist() == [[False, True], [True, True]]


def test_parts_that_disagree_are_refused() -> None:
    model = detector("token")
    with pytest.raises(ValueError, match=r"model\.encoder\.causal=True but model\.causal=False"):
        ClipDetector(
            backbone=model.backbone, neck=model.neck, encoder=model.encoder, queries=model.queries,
            decoder=model.decoder, classes=3,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"model\.causal=false"):
        CausalStream(detector("token", causal=False), 4, 2)
    with pytest.raises(ValueError, match=r"births=2 must be at least 1 and needs model\.causal=true"):
        TokenQueries(classes=1, births=2, linker=TubeLinker(seeds=300))
    with pytest.raises(ValueError, match=r"overlap=4"):
        CausalStream(model, 4, 4)
