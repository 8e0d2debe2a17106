"""The decoder's switches: how far the gradient of a layer's boxes reaches, and what does not fit together."""

from __future__ import annotations

import pytest
import torch

from stdetr.models.backbone import SmallBackbone
from stdetr.models.decoder import Decoder
from stdetr.models.denoising import TubeDenoising
from stdetr.models.detector import ClipDetector
from stdetr.models.encoder import Encoder
from stdetr.models.linking import TubeLinker
from stdetr.models.neck import Neck, Tokens
from stdetr.models.queries import LearnedQueries, TokenQueries


def _gradient_of_the_first_box_head(look_forward_twice: bool) -> float:
    """... from the boxes of the second layer."""
    torch.manual_seed(0)
    decoder = Decoder(
        width=16, heads=2, levels=1, points=2, layers=2, feed_forward=16, look_forward_twice=look_forward_twice
    ).eval()
    for head in decoder.box_heads:
        torch.nn.init.normal_(head.mlp.layers[-1].weight, std=0.1)
    tokens = Tokens(
        features=torch.randn(1, 2, 9, 16), position=torch.zeros(1, 9, 16), valid=torch.ones(1, 9, dtype=torch.bool),
        valid_ratios=torch.ones(1, 1, 2), shapes=((3, 3),), centres=torch.rand(1, 9, 2), levels=torch.zeros(9).long(),
    )  # fmt: skip
    mask, index = torch.ones(1, 2, dtype=torch.bool), torch.arange(2)[None]
    layers = decoder(torch.randn(1, 3, 2, 16), torch.rand(1, 3, 2, 4), None, tokens.features, tokens, mask, index)
    layers[1].boxes.sum().backward()
    return sum(0.0 if p.grad is None else float(p.grad.abs().sum()) for p in decoder.box_heads[0].parameters())


def test_look_forward_twice_carries_the_loss_to_the_layer_before() -> None:
    assert _gradient_of_the_first_box_head(False) == 0
    assert _gradient_of_the_first_box_head(True) > 1e-3


def _detector(**parts: object) -> ClipDetector:
    backbone = SmallBackbone()
    given = {
        "encoder": Encoder(width=16, heads=2, levels=2, layers=0),
        "queries": TokenQueries(classes=1, width=16, queries=4),
        "decoder": Decoder(width=16, heads=2, levels=2, layers=1),
    } | parts
    neck = Neck(channels=backbone.channels, width=16, levels=2, norm_groups=4)
    return ClipDetector(backbone=backbone, neck=neck, classes=1, **given)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Decoder(look_forward_twice=True, refine=False), r"look_forward_twice=true .* refine=false"),
        (
            lambda: Decoder(frame_weights="content", window=0),
            r"decoder\.frame_weights=content .*model\.decoder_window=0",
        ),
        (lambda: Encoder(frame_weights="content", window=0), r"encoder\.frame_weights=content .*model\.window=0"),
        (lambda: Decoder(frame_weights="frames"), r"frame_weights='frames' must be 'distance', 'content' or 'idle'"),
        (lambda: TokenQueries(classes=1, queries=9, linker=TubeLinker(seeds=8)), r"model\.queries=9 .*seeds=8"),
        (lambda: TokenQueries(classes=1, queries=9, candidates=9, pool=8), r"candidates=9 .*pool=8"),
        (
            lambda: _detector(
                queries=LearnedQueries(width=16, queries=4),
                decoder=Decoder(width=16, heads=2, levels=2, layers=1, position="fixed"),
                denoising=TubeDenoising(classes=1, width=16),
            ),
            r"denoising .*learned queries.*denoising=null",
        ),
        (
            lambda: _detector(decoder=Decoder(width=16, heads=2, levels=2, layers=1, position="fixed")),
            r"position=fixed needs LearnedQueries",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["token", "learned"])
@pytest.mark.parametrize("layers", [0, 1])
def test_no_parameter_is_dead(content: str, layers: int) -> None:
    """Every parameter changes an output of training."""
    torch.manual_seed(0)
    model = _detector(
        encoder=Encoder(width=16, heads=2, levels=2, layers=layers, feed_forward=16, frame_weights="content"),
        decoder=Decoder(width=16, heads=2, levels=2, layers=1, frame_weights="content"),
        queries=TokenQueries(classes=1, width=16, queries=4, content=content),
    )
    assert ("neck.level_embed" in model.state_dict()) == (layers > 0)
    training = model(torch.randn(1, 2, 3, 64, 64), targets=[]).losses_input
    outputs = [x for p in training.layers for x in (p.logits, p.frame_logits, p.boxes, p.presence)]
    (sum(x.sum() for x in outputs) + training.dense.logits.sum() + training.dense.boxes.sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
