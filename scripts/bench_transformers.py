"""Models of Hugging Face transformers on the CPU, one thread: as they are, and after ``patch_transformers()``.

    python scripts/bench_transformers.py output=benchmarks/transformers.json

Keys: cases (names of CASES, separated by commas), turns (of both variants in turn; figures are medians), output.
Weights are random; those of sampling offsets and attention weights are drawn wider than at the start of a training, so
that queries sample different places.  `layer` is the time of all calls of the multi-scale deformable attention in one
forward pass of the model, `whole` the time of the pass.
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

from stdetr.bench.report import draw_table, finish
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


@contextmanager
def stopwatch(model: str, seconds: list[float]):
    """Adds the duration of every call of the model's layer to the last entry of ``seconds``."""
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    layer = getattr(module, "MultiScaleDeformableAttention", None)
    owner, name = (module, "multi_scale_deformable_attention") if layer is None else (layer, "forward")
    inner = getattr(owner, name)

    def timed(*arguments: Any, **named: Any) -> Tensor:
        began = time.perf_counter()
        out = inner(*arguments, **named)
        seconds[-1] += time.perf_counter() - began
        return out

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, inner)


def measure(case: str, turns: int) -> dict[str, Any]:
    build, height, width = CASES[case]
    torch.manual_seed(0)
    model, inputs = build(height, width)
    widen(model)
    model.eval()
    whole: dict[str, list[float]] = {"transformers": [], "patched": []}
    layer: dict[str, list[float]] = {"transformers": [], "patched": []}

    def run(variant: str) -> Any:
        layer[variant].append(0.0)
        with stopwatch(build.__name__, layer[variant]), torch.inference_mode():
            began = time.perf_counter()
            out = model(**inputs)
            whole[variant].append(time.perf_counter() - began)
        return out

    outputs: dict[str, Any] = {}
    for _ in range(turns + 1):
        outputs["transformers"] = run("transformers")
        with patch_transformers():
            outputs["patched"] = run("patched")
    # The first turn warms up.
    figures = {
        name: {variant: round(1000 * statistics.median(times[1:]), 1) for variant, times in seconds.items()}
        for name, seconds in (("whole_ms", whole), ("layer_ms", layer))
    }
    pairs = [
        (getattr(outputs["patched"], name), getattr(outputs["transformers"], name))
        for name in COMPARED
        if getattr(outputs["transformers"], name, None) is not None
    ]
    assert pairs
    finite = [(got[wanted.isfinite()], wanted[wanted.isfinite()]) for got, wanted in pairs]
    return {
        "case": case,
        **figures,
        "whole_speedup": round(figures["whole_ms"]["transformers"] / figures["whole_ms"]["patched"], 2),
        "layer_speedup": round(figures["layer_ms"]["transformers"] / figures["layer_ms"]["patched"], 2),
        "layer_share": round(figures["layer_ms"]["transformers"] / figures["whole_ms"]["transformers"], 3),
        "largest_difference": max((got - wanted).abs().max().item() for got, wanted in finite),
        "largest_output": max(wanted.abs().max().item() for _, wanted in finite),
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
    rows = []
    for name in names:
        rows.append(measure(name, int(keys["turns"])))
        print(rows[-1], flush=True)
    header = ("model", "whole ms", "patched", "times", "layer ms", "patched", "times", "largest difference")
    lines = [
        (
            row["case"],
            *(*row["whole_ms"].values(), row["whole_speedup"]),
            *(*row["layer_ms"].values(), row["layer_speedup"]),
            f"{row['largest_difference']:.1e}",
        )
        for row in rows
    ]
    result = {
        "what": (__doc__ or "").splitlines()[0],
        "transformers": transformers.__version__,
        "backend": str(backend("cpu")),
        "turns": int(keys["turns"]),
        "rows": rows,
    }
    finish(result, table=draw_table(header, lines), output=None if keys["output"] is None else str(keys["output"]))


if __name__ == "__main__":
    main(sys.argv[1:])
