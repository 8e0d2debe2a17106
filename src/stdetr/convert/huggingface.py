"""Hugging Face's Deformable DETR -> ClipDetector, weight for weight.

Shape legend: C width.  With T = 1 the converted model gives the logits and boxes of the original.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stdetr.models.backbone import ResNet
from stdetr.models.decoder import Decoder
from stdetr.models.detector import ClipDetector
from stdetr.models.encoder import Encoder
from stdetr.models.neck import Neck
from stdetr.models.queries import LearnedQueries

# Deformable DETR has no presence head: an object that is detected is there (sigmoid(20) = 1 in float32).
ALWAYS_PRESENT = 20.0


def from_transformers(model: nn.Module, *, window: int = 1) -> ClipDetector:
    """A ``ClipDetector`` with the weights of a ``transformers.DeformableDetrForObjectDetection``.

    Plain and iterative box refinement are supported, with the ResNet of timm or of transformers as backbone.  The
    temporal parts (velocity, tables, attention across a tube's frames) start as the identity, so that T = 1 reproduces
    the original; train on clips from there.  ``window`` is the encoder's temporal window in frames to each side.

    Raises ValueError for a two-stage model, another backbone, activation or position embedding, and names any weight
    without a counterpart.
    """
    config: Any = model.config
    if getattr(config, "two_stage", False):
        raise ValueError("two_stage=True checkpoints are not supported; convert a plain or box-refinement model")
    if config.activation_function != "relu":
        raise ValueError(f"activation_function={config.activation_function!r}; only 'relu' is supported")
    if config.position_embedding_type != "sine":
        raise ValueError(f"position_embedding_type={config.position_embedding_type!r}; only 'sine' is supported")
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    backbone_state, name = _backbone_state(state)
    levels, width = config.num_feature_levels, config.d_model
    strides = (8, 16, 32) if levels > 1 else (32,)
    backbone = ResNet(name=name, weights=None, out_strides=strides, freeze_until="layer2")
    _load(backbone.body, backbone_state, "backbone")

    common = {"width": width, "levels": levels, "dropout": float(config.dropout)}
    refine = bool(config.with_box_refine)
    detector = ClipDetector(
        backbone=backbone,
        neck=Neck(channels=backbone.channels, width=width, levels=levels),
        encoder=Encoder(
            heads=config.encoder_attention_heads,
            points=config.encoder_n_points,
            layers=config.encoder_layers,
            feed_forward=config.encoder_ffn_dim,
            window=window,
            **common,
        ),
        queries=LearnedQueries(width=width, queries=config.num_queries),
        decoder=Decoder(
            heads=config.decoder_attention_heads,
            points=config.decoder_n_points,
            layers=config.decoder_layers,
            feed_forward=config.decoder_ffn_dim,
            refine=refine,
            position="fixed",
            **common,
        ),
        classes=state["class_embed.0.weight"].shape[0],
        share_heads=not refine,
    )
    _load(
        detector, _rename(state, width=width, layers=config.decoder_layers, refine=refine, detector=detector), "model"
    )
    nn.init.constant_(detector.presence_head.bias, ALWAYS_PRESENT)
    return detector.train(model.training)


def _load(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    target = module.state_dict()
    for key, tensor in state.items():
        if key not in target:
            raise ValueError(f"{what}: weight {key} of the original has no place in the converted model")
        if target[key].shape != tensor.shape:
            raise ValueError(f"{what}: {key} has shape {tuple(tensor.shape)}, expected {tuple(target[key].shape)}")
    module.load_state_dict(state, strict=False)


def _rename(
    state: dict[str, Tensor], *, width: int, layers: int, refine: bool, detector: ClipDetector
) -> dict[str, Tensor]:
    """Names of ClipDetector for every weight of the original outside the backbone."""
    result: dict[str, Tensor] = {"neck.level_embed": state["model.level_embed"]}
    position, content = state["model.query_position_embeddings.weight"].split(width, dim=1)
    result |= {"queries.position.weight": position, "queries.content.weight": content}
    for kind in ("weight", "bias"):
        result[f"queries.reference.{kind}"] = state[f"model.reference_points.{kind}"]
    attention = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    for key, tensor in state.items():
        parts = key.split(".")
        if key.startswith("model.input_proj."):
            result["neck.projections." + ".".join(parts[2:])] = tensor
        elif key.startswith(("model.encoder.layers.", "model.decoder.layers.")):
            side, layer, rest = parts[1], parts[3], parts[4:]
            base, kind = f"{side}.layers.{layer}", parts[-1]
            if rest[0] == "mlp":
                result[f"{base}.feed_forward.{ {'fc1': 'expand', 'fc2': 'contract'}[rest[1]] }.{kind}"] = tensor
            elif rest[0] == "final_layer_norm":
                result[f"{base}.feed_forward.norm.{kind}"] = tensor
            elif rest[0] == "self_attn_layer_norm":
                result[f"{base}.{'norm' if side == 'encoder' else 'self_norm'}.{kind}"] = tensor
            elif rest[0] == "encoder_attn_layer_norm":
                result[f"{base}.cross_norm.{kind}"] = tensor
            elif rest[1] in attention:
                target = "attention" if side == "encoder" else "cross_attention"
                result[f"{base}.{target}.{rest[1]}.{kind}"] = tensor
            elif rest[1] == "o_proj":
                result[f"{base}.self_attention.out_proj.{kind}"] = tensor
            elif rest[1] == "q_proj":
                prefix = ".".join(parts[:5])
                stacked = torch.cat([state[f"{prefix}.{p}_proj.{kind}"] for p in "qkv"])
                result[f"{base}.self_attention.in_proj_{kind}"] = stacked
    for i in range(layers if refine else 1):
        for kind in ("weight", "bias"):
            source = i if refine else layers - 1
            result[f"class_heads.{i}.linear.{kind}"] = state[f"class_embed.{source}.{kind}"]
            for j in range(3):
                result[f"decoder.box_heads.{i}.mlp.layers.{j}.{kind}"] = state[f"bbox_embed.{source}.layers.{j}.{kind}"]
    temporal = ("velocity", "offset_table", "logit_table", "frame_attention", "pools", "presence_head")
    temporal += ("frame_query", "frame_key")
    missing = [
        key
        for key in detector.state_dict()
        if key not in result and not key.startswith("backbone.") and not any(part in key for part in temporal)
    ]
    if missing:
        raise ValueError(f"the original has no weight for: {', '.join(missing)}")
    return result


def _backbone_state(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Torchvision's names for the backbone's tensors, and which ResNet it is."""
    for prefix in ("model.backbone.model.", "model.backbone.conv_encoder.model."):
        body = {k.removeprefix(prefix).removeprefix("_backbone."): v for k, v in state.items() if k.startswith(prefix)}
        if body:
            break
    else:
        raise ValueError("no backbone found under model.backbone")
    if any(k.startswith("encoder.stages.") for k in body):
        body = {_resnet_key(k): v for k, v in body.items()}
    body = {k: v for k, v in body.items() if "num_batches_tracked" not in k and not k.startswith("fc.")}
    depths = tuple(
        1 + max((int(k.split(".")[1]) for k in body if k.startswith(f"layer{i}.")), default=-1) for i in range(1, 5)
    )
    bottleneck = "layer1.0.conv3.weight" in body
    names: dict[tuple[tuple[int, ...], bool], str] = {
        ((2, 2, 2, 2), False): "resnet18",
        ((3, 4, 6, 3), False): "resnet34",
        ((3, 4, 6, 3), True): "resnet50",
        ((3, 4, 23, 3), True): "resnet101",
        ((3, 8, 36, 3), True): "resnet152",
    }
    if (depths, bottleneck) not in names:
        raise ValueError(
            f"backbone with layers {depths} is no ResNet of torchvision; supported: {sorted(names.values())}"
        )
    return body, names[depths, bottleneck]


def _resnet_key(key: str) -> str:
    """transformers' ResNet -> torchvision's names."""
    key = key.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
    if not key.startswith("encoder.stages."):
        return key
    _, _, stage, _, block, *rest = key.split(".")
    base, kind = f"layer{int(stage) + 1}.{block}", rest[-1]
    if rest[0] == "shortcut":
        return f"{base}.downsample.{0 if rest[1] == 'convolution' else 1}.{kind}"
    number = int(rest[1]) + 1
    return f"{base}.{'conv' if rest[2] == 'convolution' else 'bn'}{number}.{kind}"
