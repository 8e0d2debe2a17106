"""T = 1 is Deformable DETR: a converted Hugging Face model gives the same logits and boxes."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs the peers extra: pip install 'stdetr[peers]'")

from stdetr.convert import from_transformers  # noqa: E402


def _peer(*, timm: bool, **changes: object) -> torch.nn.Module:
    settings: dict = {
        "num_labels": 7,
        "num_queries": 30,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "d_model": 64,
        "encoder_ffn_dim": 96,
        "decoder_ffn_dim": 96,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    } | changes
    if timm:
        pytest.importorskip("timm", reason="needs the timm extra")
        settings |= {"use_timm_backbone": True, "backbone": "resnet50", "use_pretrained_backbone": False}
    else:
        resnet = transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"])
        settings |= {"use_timm_backbone": False, "backbone_config": resnet}
    config = transformers.DeformableDetrConfig(**settings)
    model = transformers.DeformableDetrForObjectDetection(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        # A fresh model has zero offsets and box corrections: nothing there could disagree.  Stir everything, gently.
        for name, parameter in model.named_parameters():
            if "backbone" not in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in model.named_buffers():
            if "running_mean" in name:
                buffer += 0.1 * torch.randn(buffer.shape, generator=generator)
            elif "running_var" in name:
                buffer *= 1 + 0.3 * torch.rand(buffer.shape, generator=generator)
    return model


@pytest.mark.parametrize("refine", [False, True], ids=["plain", "refine"])
@pytest.mark.parametrize("timm", [True, False], ids=["timm", "transformers-resnet"])
def test_single_frame_equals_the_original(refine: bool, timm: bool) -> None:
    torch.manual_seed(0)
    peer = _peer(timm=timm, with_box_refine=refine)
    model = from_transformers(peer).eval()
    # Odd sizes, and a second image padded to the first.
    pixels = torch.randn(2, 3, 203, 251)
    mask = torch.ones(2, 203, 251, dtype=torch.long)
    mask[1, 161:], mask[1, :, 187:] = 0, 0
    pixels = pixels * mask[:, None]
    with torch.no_grad():
        expected = peer(pixel_values=pixels, pixel_mask=mask)
        output = model(pixels[:, None], sizes=torch.tensor([[203, 251], [161, 187]]))
    assert output.boxes.shape == (2, 30, 1, 4)
    assert expected.logits.std() > 0.05, "the original must say something for the comparison to mean anything"
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(output.boxes[:, :, 0], expected.pred_boxes, atol=1e-4, rtol=0)
    assert (output.presence.sigmoid() > 0.999).all()


def test_converted_model_takes_clips() -> None:
    torch.manual_seed(0)
    model = from_transformers(_peer(timm=False, with_box_refine=True)).eval()
    with torch.no_grad():
        output = model(torch.randn(1, 3, 3, 96, 128))
    assert output.boxes.shape == (1, 30, 3, 4)
    assert torch.isfinite(output.boxes).all()


def test_two_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="two_stage"):
        from_transformers(_peer(timm=False, with_box_refine=True, two_stage=True))
