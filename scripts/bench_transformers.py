"""Models of Hugging Face transformers on one CPU thread: as they are, and after ``patch_transformers()``.

    python scripts/bench_transformers.py output=benchmarks/transformers.json

Keys: cases (names of CASES, separated by commas), turns (of both variants in turn; figures are medians), output.
Weights are random; those of sampling offsets and attention weights are drawn wider than at the start of a training, so
that queries sample different places.  `layer` is the time of all calls of the multi-scale deformable attention in one
forward pass of the model, `whole` the time of the pass, both in milliseconds of the processor.

Differences: of the layer's results on equal arguments, in float32; of the model's outputs in float64, on an image of
half the size.  In float32 the outputs say little where a model takes discrete decisions (proposals of Grounding DINO,
masks of Mask2Former and OneFormer): with random weights the last bit decides between equally good queries.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from stdetr.bench.report import draw_table, finish, write
from stdetr.ops import backend, patch_transformers

BERT_CLS, BERT_SEP, BERT_STOP = 101, 102, 1012
"""Tokens that Grounding DINO reads as borders of a phrase."""


def deformable_detr(height: int, width: int) -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    return DeformableDetrForObjectDetection(DeformableDetrConfig()), image(height, width)


def grounding_dino(height: int, width: int) -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    words = [BERT_CLS, 4937, BERT_STOP, 3899, BERT_STOP, BERT_SEP]
    inputs = image(height, width) | {"input_ids": torch.tensor([words])}
    return GroundingDinoForObjectDetection(GroundingDinoConfig()), inputs


def mask2former(height: int, width: int) -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig()), image(height, width)


def oneformer(height: int, width: int) -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import OneFormerConfig, OneFormerForUniversalSegmentation

    model = OneFormerForUniversalSegmentation(OneFormerConfig())
    return model, image(height, width) | {"task_inputs": torch.ones(1, 77, dtype=torch.long)}


CASES: dict[str, tuple[Callable[[int, int], tuple[nn.Module, dict[str, Tensor]]], int, int]] = {
    "deformable_detr_480x640": (deformable_detr, 480, 640),
    "deformable_detr_800x1066": (deformable_detr, 800, 1066),
    "grounding_dino_480x640": (grounding_dino, 480, 640),
    "mask2former_480x640": (mask2former, 480, 640),
    "oneformer_480x640": (oneformer, 480, 640),
}
COMPARED = ("logits", "pred_boxes", "class_queries_logits", "masks_queries_logits")


def image(height: int, width: int) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.randn(1, 3, height, width),
        "pixel_mask": torch.ones(1, height, width, dtype=torch.long),
    }


def widen(model: nn.Module) -> None:
    """Offsets and weights that depend on the query, as after training."""
    for name, parameter in model.named_parameters():
        if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            nn.init.normal_(parameter, std=0.05)


def find_layer(model: str) -> tuple[Any, str]:
    """Where the model's layer is looked up at each call: owner and attribute."""
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    layer = getattr(module, "MultiScaleDeformableAttention", None)
    return (module, "multi_scale_deformable_attention") if layer is None else (layer, "forward")


@contextmanager
def watched(model: str, see: Callable[[Callable[..., Tensor], tuple[Any, ...]], Tensor]):
    """Runs ``see(layer, arguments)`` for every call of the model's layer."""
    owner, name = find_layer(model)
    inner = getattr(owner, name)
    setattr(owner, name, lambda *arguments: see(inner, arguments))
    try:
        yield
    finally:
        setattr(owner, name, inner)


def times(model: nn.Module, inputs: dict[str, Tensor], name: str) -> tuple[float, float]:
    """Milliseconds of one forward pass, and of all calls of the layer in it.

    Of the processor's time for this thread, which other programs change less than they change the clock's.
    """
    spent = 0.0

    def see(layer: Callable[..., Tensor], arguments: tuple[Any, ...]) -> Tensor:
        nonlocal spent
        began = time.thread_time()
        out = layer(*arguments)
        spent += time.thread_time() - began
        return out

    with watched(name, see):
        began = time.thread_time()
        model(**inputs)
        return 1000 * (time.thread_time() - began), 1000 * spent


def layer_difference(model: nn.Module, inputs: dict[str, Tensor], name: str) -> float:
    """The largest difference between both layers' results on equal arguments, as a share of the largest result."""
    owner, attribute = find_layer(name)
    original = getattr(owner, attribute)
    worst = 0.0

    def see(layer: Callable[..., Tensor], arguments: tuple[Any, ...]) -> Tensor:
        nonlocal worst
        out, wanted = layer(*arguments), original(*arguments)
        worst = max(worst, ((out - wanted).abs().max() / wanted.abs().max()).item())
        return out

    with patch_transformers(), watched(name, see):
        model(**inputs)
    return worst


def output_difference(model: nn.Module, inputs: dict[str, Tensor]) -> float:
    """The largest difference between the outputs as they are and patched, as a share of the largest output."""
    before = model(**inputs)
    with patch_transformers():
        after = model(**inputs)
    worst = []
    for name in COMPARED:
        wanted, got = getattr(before, name, None), getattr(after, name, None)
        if wanted is not None and got is not None:
            finite = wanted.isfinite()
            worst.append(((got - wanted)[finite].abs().max() / wanted[finite].abs().max()).item())
    return max(worst)


def measure(case: str, turns: int) -> dict[str, Any]:
    build, height, width = CASES[case]
    name = build.__name__
    torch.manual_seed(0)
    model, inputs = build(height, width)
    widen(model)
    model.eval()
    taken: dict[str, list[tuple[float, float]]] = {"transformers": [], "patched": []}
    with torch.inference_mode():
        # The first pass of each warms up.
        differences = {"layer": layer_difference(model, inputs, name)}
        for _ in range(turns):
            taken["transformers"].append(times(model, inputs, name))
            with patch_transformers():
                taken["patched"].append(times(model, inputs, name))
        torch.set_default_dtype(torch.float64)
        model.double()
        small = image(height // 2, width // 2)
        differences["outputs_float64"] = output_difference(model, inputs | small)
        torch.set_default_dtype(torch.float32)
    whole, layer = (
        {variant: round(statistics.median(pair[place] for pair in pairs), 1) for variant, pairs in taken.items()}
        for place in (0, 1)
    )
    return {
        "case": case,
        "whole_ms": whole,
        "layer_ms": layer,
        "whole_speedup": round(whole["transformers"] / whole["patched"], 2),
        "layer_speedup": round(layer["transformers"] / layer["patched"], 2),
        "layer_share": round(layer["transformers"] / whole["transformers"], 3),
        "largest_difference": differences,
    }


def main(arguments: list[str]) -> None:
    known: dict[str, Any] = {"cases": ",".join(CASES), "turns": 5, "output": None}
    keys = known | dict(OmegaConf.to_container(OmegaConf.from_dotlist(arguments)))  # type: ignore
    unknown = sorted(set(keys) - set(known))
    if unknown:
        sys.exit(f"error: {unknown[0]}: no such key; there are {', '.join(known)}")
    names = str(keys["cases"]).split(",")
    for name in names:
        if name not in CASES:
            sys.exit(f"error: cases={name}: no such case; there are {', '.join(CASES)}")
    import transformers

    torch.set_num_threads(1)
    output = None if keys["output"] is None else str(keys["output"])
    rows: list[dict[str, Any]] = []
    result = {
        "what": (__doc__ or "").splitlines()[0],
        "transformers": transformers.__version__,
        "backend": str(backend("cpu")),
        "turns": int(keys["turns"]),
        "rows": rows,
    }
    for name in names:
        rows.append(measure(name, int(keys["turns"])))
        print(rows[-1], flush=True)
        if output is not None:
            write(result, output)
    header = (
        "model",
        "whole ms",
        "patched",
        "times",
        "layer ms",
        "patched",
        "times",
        "layer differs",
        "outputs in float64",
    )
    lines = [
        (
            row["case"],
            *(*row["whole_ms"].values(), row["whole_speedup"]),
            *(*row["layer_ms"].values(), row["layer_speedup"]),
            *(f"{difference:.1e}" for difference in row["largest_difference"].values()),
        )
        for row in rows
    ]
    finish(result, table=draw_table(header, lines), output=output)


if __name__ == "__main__":
    main(sys.argv[1:])
