"""``stdetr bench suite=model``: time and memory of the detector over the number of frames, with a fixed window.

Shape legend
    B clips    T frames    S tokens of a frame    Q queries    C width

Three parts are measured: the encoder on given tokens, the decoder on given memory and queries, and the whole detector.
Each runs with the kernels, with the kernels while offsets and logits of all frames are formed by PyTorch operations
before (``composed``, which on CUDA is what runs until this has been measured there), and with the PyTorch reference of
the attention op, turn by turn in one run.  Memory is counted (``stdetr.bench.allocations``): ``kept`` is what the graph
holds for the backward pass, ``peak`` the most that a training step holds beside parameters and inputs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from stdetr.bench.allocations import addresses, peak_allocated, saved_bytes
from stdetr.bench.report import draw_table, fit_exponent, machine
from stdetr.config import compose, instantiate
from stdetr.models.detector import ClipDetector
from stdetr.ops import backend, use_backend
from stdetr.ops.temporal import use_composition, use_temporal_kernel

PARTS = ("encoder", "decoder", "whole")
BACKENDS = ("kernels", "composed", "reference")
CLASSES = 3


@dataclass(frozen=True)
class ModelBench:
    """The keys of ``model`` in ``conf/bench.yaml``.

    config:   option of the group ``model`` of ``stdetr train``; overrides: keys of it, as ``model.width=128``
    window:   frames to each side that a token of the encoder and a tube's state of the decoder sample
    frames:   numbers of frames T; growth is fitted over those beyond the window, where F is 2 * window + 1
    size:     height and width of a frame in pixels; batch: clips
    parts, backends: what is measured; seconds: after three turns a measurement stops once it has taken this long
    """

    config: str = "small"
    overrides: Sequence[str] = ("model.encoder_layers=2",)
    window: int = 1
    frames: Sequence[int] = (1, 2, 4, 8, 16)
    size: Sequence[int] = (256, 320)
    batch: int = 1
    parts: Sequence[str] = PARTS
    backends: Sequence[str] = BACKENDS
    repeats: int = 5
    seconds: float = 10.0

    def __post_init__(self) -> None:
        for key, known in (("parts", PARTS), ("backends", BACKENDS)):
            for name in getattr(self, key):
                if name not in known:
                    raise ValueError(f"model.{key} may have {', '.join(known)}, got {name!r}")
        for key in ("window", "batch", "repeats"):
            least = 0 if key == "window" else 1
            if getattr(self, key) < least:
                raise ValueError(f"model.{key} must be at least {least}, got {getattr(self, key)}")
        if not self.frames or min(self.frames) < 1:
            raise ValueError(f"model.frames must hold numbers from 1 on, got {list(self.frames)}")
        if len(self.size) != 2 or min(self.size) < 32:
            raise ValueError(f"model.size must be height and width of at least 32 pixels, got {list(self.size)}")


@dataclass(frozen=True)
class Part:
    """``run`` returns tensors to differentiate; ``leaves`` get gradients in addition to the parameters."""

    run: Callable[[], Tensor]
    leaves: list[Tensor]
    given: set[int]  # storages that exist before


def run(cfg: DictConfig) -> dict[str, Any]:
    """Measure and return a JSON-ready dictionary; ``cfg.model`` holds the keys of :class:`ModelBench`.

    Raises ValueError for keys that do not fit.
    """
    settings: ModelBench = instantiate(cfg.model)
    name = str(cfg.device)
    if name not in {"auto", "cpu", "cuda"}:
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no GPU; use device=cpu")
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if cfg.threads is not None:
        torch.set_num_threads(int(cfg.threads))
    have = backend(device)
    used = [one for one in settings.backends if one == "reference" or have.name != "reference"]
    if not used:
        raise ValueError(f"model.backends={list(settings.backends)}, but there are no kernels: {have.reason}")
    torch.manual_seed(int(cfg.seed))
    detector = build_detector(settings).to(device)

    rows = []
    for frames in settings.frames:
        for name in settings.parts:
            measured = _measure(detector, name, frames, used, settings, device)
            for row in measured:
                print(_progress(row), flush=True)
            rows += measured
    return {
        "suite": "model",
        "machine": machine(),
        "backend": str(have),
        "model": {"config": settings.config, "overrides": list(settings.overrides), "window": settings.window},
        "size": list(settings.size),
        "batch": settings.batch,
        "parameters": sum(parameter.numel() for parameter in detector.parameters()),
        "rows": rows,
        "growth": growth(rows, settings.window),
    }


def build_detector(settings: ModelBench) -> ClipDetector:
    """The detector of ``stdetr train model=...``, without dropout, which would blur the comparison."""
    window = [f"model.window={settings.window}", f"model.decoder_window={settings.window}", f"model.classes={CLASSES}"]
    fixed = [f"model={settings.config}", "model.dropout=0.0", *settings.overrides, *window]
    detector = instantiate(compose("train", fixed).model.detector)
    assert isinstance(detector, ClipDetector)
    return detector.train()


def make_part(detector: ClipDetector, name: str, frames: int, settings: ModelBench, device: torch.device) -> Part:
    """The part ``name`` to be measured, on random frames; the steps before it are done here."""
    made = torch.Generator(device).manual_seed(frames)
    clips = torch.randn(settings.batch, frames, 3, *settings.size, generator=made, device=device)
    if name == "whole":

        def whole() -> Tensor:
            output = detector(clips)
            return output.logits.sum() + output.boxes.sum() + output.presence.sum()

        return Part(whole, [], addresses(clips))
    height, width = settings.size
    sizes = torch.tensor([settings.size], device=device).expand(settings.batch, -1)
    mask = torch.ones(settings.batch, frames, dtype=torch.bool, device=device)
    index = torch.arange(frames, device=device).expand(settings.batch, -1)
    with torch.no_grad():
        maps = detector.backbone(clips.flatten(0, 1))
        tokens = detector.neck(maps, sizes, (height, width), settings.batch)
    features = tokens.features.detach().requires_grad_()
    tokens = replace(tokens, features=features)
    given = addresses(features, tokens.position, tokens.valid, tokens.valid_ratios, tokens.centres)
    if name == "encoder":
        return Part(lambda: detector.encoder(tokens, mask, index).sum(), [features], given)
    with torch.no_grad():
        memory = detector.encoder(tokens, mask, index)
        queries = detector.queries(memory, tokens, mask, index)
    memory = memory.detach().requires_grad_()
    states = queries.states.detach().requires_grad_()
    given |= addresses(memory, states, queries.references)

    def decoder() -> Tensor:
        layers = detector.decoder(states, queries.references, queries.position, memory, tokens, mask, index)
        total = layers[0].states.sum() * 0
        for layer in layers:
            total = total + layer.states.sum() + layer.boxes.sum()
        return total

    return Part(decoder, [memory, states], given)


@contextmanager
def _using(name: str) -> Iterator[None]:
    forming = use_composition() if name == "composed" else use_temporal_kernel("cpu", "cuda")
    with use_backend("reference" if name == "reference" else "kernels"), forming:
        yield


def _measure(
    detector: ClipDetector, name: str, frames: int, used: Sequence[str], settings: ModelBench, device: torch.device
) -> list[dict[str, Any]]:
    """One row per backend; the others' rows say how many times longer than the kernels they take."""
    part = make_part(detector, name, frames, settings, device)
    weights = list(detector.parameters())
    given = part.given | addresses(*weights)

    def step() -> None:
        part.run().backward()
        for tensor in (*weights, *part.leaves):
            tensor.grad = None

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def forward() -> None:
        with torch.no_grad():
            part.run()

    times: dict[str, dict[str, list[float]]] = {one: {"forward": [], "both": []} for one in used}
    spent = dict.fromkeys(used, 0.0)
    for turn in range(settings.repeats + 1):
        for one in used:
            if turn >= min(4, settings.repeats + 1) and spent[one] > settings.seconds:
                continue
            with _using(one):
                for key, call in (("forward", forward), ("both", step)):
                    finish()
                    began = time.perf_counter()
                    call()
                    finish()
                    took = time.perf_counter() - began
                    spent[one] += took
                    if turn > 0:
                        times[one][key].append(took)
    rows = {}
    for one in used:
        with _using(one):
            kept = saved_bytes(part.run, given)
            peak = peak_allocated(step, device)
        rows[one] = {
            "part": name,
            "frames": frames,
            "backend": one,
            **{f"{key}_ms": 1e3 * statistics.median(turns) for key, turns in times[one].items()},
            "kept": kept,
            "peak": peak,
        }
    ours = rows.get("kernels")
    for one, other in rows.items():
        if ours is None or one == "kernels":
            continue
        for key in ("forward", "both"):
            other[f"{key}_times_kernels"] = other[f"{key}_ms"] / ours[f"{key}_ms"]
        for key in ("kept", "peak"):
            other[f"{key}_times_kernels"] = other[key] / ours[key]
    return list(rows.values())


def growth(rows: Sequence[Mapping[str, Any]], window: int) -> dict[str, dict[str, dict[str, float]]]:
    """For each part and backend the exponents in T of times and memory; 1 is linear, so that a frame's share is flat.

    Shorter clips than the window are left out: there, F grows with T.
    """
    fitted: dict[str, dict[str, dict[str, float]]] = {}
    for part in PARTS:
        for one in BACKENDS:
            matching = [
                row for row in rows if row["part"] == part and row["backend"] == one and row["frames"] >= window + 1
            ]
            if len(matching) >= 2:
                frames = [row["frames"] for row in matching]
                keys = ("forward_ms", "both_ms", "kept", "peak")
                exponents = {key: fit_exponent(frames, [row[key] for row in matching]) for key in keys}
                fitted.setdefault(part, {})[one] = exponents
    return fitted


def _progress(row: Mapping[str, Any]) -> str:
    return (
        f"T={row['frames']} {row['part']} {row['backend']}: forward {row['forward_ms']:.1f} ms, "
        f"forward + backward {row['both_ms']:.1f} ms, peak {row['peak'] / 2**20:.1f} MiB"
    )


def table(result: Mapping[str, Any]) -> str:
    """The result as text: a table of figures and one of growth."""
    header = ["part", "T", "op", "forward ms", "both ms", "kept MiB", "peak MiB", "peak MiB per frame"]
    header += ["x kernels (forward)", "x kernels (both)", "x kernels (peak)"]
    lines = []
    for row in result["rows"]:
        memory = [row["kept"] / 2**20, row["peak"] / 2**20, row["peak"] / 2**20 / row["frames"]]
        ratios = [row.get(f"{key}_times_kernels") for key in ("forward", "both", "peak")]
        times = [row["forward_ms"], row["both_ms"]]
        lines.append([row["part"], row["frames"], row["backend"], *times, *memory, *ratios])
    grown = [
        [part, one, *(exponents[key] for key in ("forward_ms", "both_ms", "kept", "peak"))]
        for part, backends in result["growth"].items()
        for one, exponents in backends.items()
    ]
    text = ["", draw_table(header, lines)]
    if grown:
        text += ["", f"growth with T at window={result['model']['window']} (1 = linear: the same for every frame)"]
        text.append(draw_table(["part", "op", "forward", "forward + backward", "kept", "peak"], grown))
    return "\n".join(text)
