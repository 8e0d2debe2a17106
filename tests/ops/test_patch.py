"""patch_transformers: unmodified models of transformers run our operator and compute what they computed before."""

from __future__ import annotations

import importlib
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from stdetr.ops import patch as patching
from stdetr.ops import patch_transformers

transformers = pytest.importorskip("transformers", reason="needs the extra peers")
PRESENT = [
    (name, model)
    for name, models in patching.MODELS.items()
    for model in models
    if find_spec(f"transformers.models.{model}") is not None
]


def place(name, model):
    """Where the layer is looked up at each call: owner and attribute."""
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    found = getattr(module, name)
    return (found, "forward") if isinstance(found, type) else (module, name)


def call(name, model, value, shapes, locations, weights, points):
    """The layer of ``model`` as the model calls it.  Locations B,Q,H,L,K,2."""
    owner, attribute = place(name, model)
    table = torch.tensor(shapes)
    if attribute == "forward":
        starts = torch.cat([table.new_zeros(1), table.prod(1).cumsum(0)[:-1]])
        return owner()(value, table, shapes, starts, locations, weights, 64)
    if name.endswith("_v2"):
        return getattr(owner, attribute)(value, shapes, locations.flatten(3, 4), weights.flatten(3, 4), points)
    return getattr(owner, attribute)(value, shapes, locations, weights)


def results(run, tensors, grad_out):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = run(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad_out)]


@pytest.mark.parametrize(("name", "model"), PRESENT, ids=[model for _, model in PRESENT])
def test_each_layer_gives_its_value_and_gradients(name, model, case, error):
    made = case(T=1, D=16, Q=7, K=3, dtype=torch.float32)
    tensors = (made.value[:, 0], made.locations[:, :, :, 0], made.weights[:, :, :, 0])

    def run(value, locations, weights):
        return call(name, model, value, made.shapes, locations, weights, [3, 3])

    wanted = results(run, tensors, made.grad_out)
    with patch_transformers() as patch:
        assert f"{model}.{name}" in patch.layers
        got = results(run, tensors, made.grad_out)
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert error(ours, theirs) < 1e-5


@pytest.mark.skipif(("multi_scale_deformable_attention_v2", "rt_detr_v2") not in PRESENT, reason="no RT-DETR v2")
@pytest.mark.parametrize("method", ["default", "discrete"])
def test_levels_with_different_numbers_of_points(method, case, error):
    made = case(T=1, D=8, Q=5, K=3, dtype=torch.float32)
    # Three points of the first level and one of the second, one after the other.
    keep = torch.tensor([0, 1, 2, 4])
    locations = made.locations[:, :, :, 0].flatten(3, 4)[:, :, :, keep]
    weights = made.weights[:, :, :, 0].flatten(3, 4)[..., keep]
    owner, attribute = place("multi_scale_deformable_attention_v2", "rt_detr_v2")

    def run(*tensors):
        value, locations, weights = tensors
        return getattr(owner, attribute)(value, made.shapes, locations, weights, [3, 1], method)

    tensors = (made.value[:, 0], locations, weights)
    wanted = run(*tensors)
    with patch_transformers():
        got = run(*tensors)
    assert error(got, wanted) < 1e-5
    if method == "discrete":
        assert torch.equal(got, wanted)


def test_every_model_of_the_installed_transformers_is_listed():
    pattern = re.compile(r"^(?:class|def) ((?:multi_?scale_?deformable_?attention)(?:_v2)?)\(", re.I | re.M)
    found = set()
    for path in Path(transformers.__file__).parent.glob("models/*/modeling_*.py"):
        text = path.read_text(encoding="utf-8")
        if "eformable" in text:
            found |= {(name, path.parent.name) for name in pattern.findall(text)}
    assert found == set(PRESENT)


def tiny(name):
    """An architecture with its operator calls in one forward pass, small enough for a test."""
    from transformers import BertConfig, ResNetConfig, SwinConfig

    pixels = {"pixel_values": torch.randn(2, 3, 64, 96), "pixel_mask": torch.ones(2, 64, 96, dtype=torch.long)}
    pixels["pixel_mask"][1, :, 70:] = 0
    swin = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "image_size": 64}
    stages = ["stage1", "stage2", "stage3", "stage4"]
    small = {"encoder_layers": 2, "decoder_layers": 2, "num_queries": 6}
    if name == "deformable_detr":
        backbone = ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic", out_features=stages[1:]
        )
        settings = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "dropout": 0.0}
        # transformers 4 has a name and pretrained weights as defaults.
        own = {"backbone": None, "use_timm_backbone": False, "use_pretrained_backbone": False}
        config = transformers.DeformableDetrConfig(backbone_config=backbone, **own, **settings, **small)
        return transformers.DeformableDetrForObjectDetection(config), pixels, 4
    if name == "grounding_dino":
        text = BertConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=2000
        )
        config = transformers.GroundingDinoConfig(
            backbone_config=SwinConfig(**swin, out_features=stages[1:]),
            text_config=text,
            d_model=32,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            **small,
        )
        words = {"input_ids": torch.tensor([[101, 500, 1012, 600, 1012, 102]] * 2)}
        return transformers.GroundingDinoForObjectDetection(config), pixels | words, 4
    sizes = {"hidden_dim": 32, "encoder_feedforward_dim": 32, "dim_feedforward": 32, "num_attention_heads": 4}
    backbone = SwinConfig(**swin, out_features=stages)
    if name == "mask2former":
        config = transformers.Mask2FormerConfig(
            backbone_config=backbone, feature_size=32, mask_feature_size=32, **sizes, **small
        )
        return transformers.Mask2FormerForUniversalSegmentation(config), pixels, 2
    config = transformers.OneFormerConfig(
        backbone_config=backbone, conv_dim=32, mask_dim=32, text_encoder_width=32, **sizes, **small
    )
    task = {"task_inputs": torch.ones(2, 77, dtype=torch.long)}
    return transformers.OneFormerForUniversalSegmentation(config), pixels | task, 2


@pytest.mark.peers
@pytest.mark.parametrize("name", ["deformable_detr", "grounding_dino", "mask2former", "oneformer"])
def test_whole_models_give_their_outputs_and_gradients(name, error, monkeypatch):
    torch.manual_seed(0)
    model, inputs, layers = tiny(name)
    model.eval()
    for key, parameter in model.named_parameters():
        # Fresh models sample the same places for all queries.
        if key.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            torch.nn.init.normal_(parameter, std=0.3)
    kinds = ("logits", "pred_boxes", "class_queries_logits", "masks_queries_logits")

    def run():
        model.zero_grad()
        output = model(**inputs)
        outputs = [getattr(output, kind) for kind in kinds if getattr(output, kind, None) is not None]
        outputs = [out.masked_fill(~out.isfinite(), 0.0) for out in outputs]
        sum(out.square().mean() for out in outputs).backward()
        grads = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
        return [out.detach() for out in outputs], grads

    calls = []
    for module in (patching, importlib.import_module("stdetr.ops.layers")):
        ours = module.ms_deform_attn
        monkeypatch.setattr(module, "ms_deform_attn", lambda *args, ours=ours: calls.append(1) or ours(*args))
    wanted, wanted_grads = run()
    assert not calls
    with patch_transformers():
        got, got_grads = run()
    assert len(calls) == layers
    assert wanted and wanted_grads.keys() == got_grads.keys()
    assert any("sampling_offsets" in key for key in wanted_grads)
    for ours, theirs in zip(got, wanted, strict=True):
        assert (ours - theirs).abs().max() < 1e-5
    scale = max(grad.abs().max() for grad in wanted_grads.values())
    for key, theirs in wanted_grads.items():
        assert (got_grads[key] - theirs).abs().max() < 1e-5 * scale, key


def test_undo_restores_what_was_there():
    def found():
        return [getattr(*place(*pair)) for pair in PRESENT]

    before = found()
    patch = patch_transformers()
    assert all(now is not old for now, old in zip(found(), before, strict=True))
    with pytest.raises(ValueError, match="patched already; undo"):
        patch_transformers()
    patch.undo()
    assert all(now is old for now, old in zip(found(), before, strict=True))
    with pytest.raises(RuntimeError, match="inside"), patch_transformers():
        raise RuntimeError("inside")
    assert all(now is old for now, old in zip(found(), before, strict=True))
    # A second undo must not disturb a later patch.
    with patch_transformers():
        patch.undo()
        assert all(now is not old for now, old in zip(found(), before, strict=True))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            lambda value, shapes, locations: value,
            r"takes \(value, shapes, locations\), expected \(value, ",
        ),
        (None, r"does not exist, expected \(value, value_spatial_shapes, sampling_locations, attention_weights\)"),
    ],
    ids=["other arguments", "gone"],
)
def test_an_unknown_layer_is_refused_and_nothing_is_changed(layer, message, monkeypatch):
    module = importlib.import_module("transformers.models.oneformer.modeling_oneformer")
    monkeypatch.setattr(module, "multi_scale_deformable_attention", layer)
    known = place("MultiScaleDeformableAttention", "deformable_detr")
    before = getattr(*known)
    with pytest.raises(ValueError, match=message) as caught:
        patch_transformers()
    assert f"transformers {transformers.__version__}: transformers.models.oneformer." in str(caught.value)
    assert "\n" not in str(caught.value)
    assert getattr(*known) is before


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'stdetr\[peers\]'"):
        patch_transformers()
