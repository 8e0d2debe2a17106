"""``stdetr bench suite=model`` on the smallest detector, and that its encoder's memory a frame does not grow with T."""

from __future__ import annotations

import json

import pytest
import torch

from stdetr.bench import run
from stdetr.bench.allocations import addresses, peak_allocated, saved_bytes
from stdetr.bench.model import ModelBench, build_detector, growth, make_part
from stdetr.config import compose
from stdetr.ops import use_backend
from stdetr.ops.temporal import use_composition

CPU = torch.device("cpu")
TINY = ['model.overrides=["model.encoder_layers=1","model.width=32"]', "model.size=[64,96]", "model.repeats=1"]


def test_saved_bytes_counts_each_storage_once_and_leaves_out_what_exists():
    x, w = torch.ones(100, requires_grad=True), torch.ones(100, requires_grad=True)
    # x * w keeps both factors, exp its result: 400 bytes each.
    assert saved_bytes(lambda: (x * w).exp()) == 1200
    assert saved_bytes(lambda: (x * w).exp(), addresses(x, w)) == 400
    assert saved_bytes(lambda: (x * x).exp(), addresses(w)) == 800


def test_peak_allocated_is_the_most_held_at_once():
    def two_at_once():
        a = torch.empty(1000)
        b = torch.empty(500)
        del a
        c = torch.empty(600)
        del b, c

    assert peak_allocated(two_at_once, CPU) == pytest.approx(6000, abs=128)  # sizes are rounded up to 64 bytes


@pytest.mark.parametrize("backend", ["kernels", "reference"])
def test_memory_of_the_encoder_per_frame_is_flat_with_a_fixed_window(backend, kernels):
    settings = ModelBench(overrides=("model.encoder_layers=1", "model.width=32"), size=(64, 96))
    detector = build_detector(settings)
    weights = addresses(*detector.parameters())
    kept, peak = {}, {}
    with use_backend(backend):
        for frames in (4, 8, 16):  # a window of three frames needs clips of at least three
            part = make_part(detector, "encoder", frames, settings, CPU)
            kept[frames] = saved_bytes(part.run, part.given | weights) / frames
            peak[frames] = peak_allocated(lambda part=part: part.run().backward(), CPU) / frames
    # What does not belong to a frame (parameters' gradients, tables) only makes short clips dearer.
    assert kept[8] <= 1.02 * kept[4] and kept[16] <= 1.02 * kept[8]
    assert peak[8] <= 1.02 * peak[4] and peak[16] <= 1.02 * peak[8]


def test_memory_grows_where_offsets_of_all_frames_exist(kernels):
    """The test above can fail: formed outside, the offsets of a window that spans the clip grow with its length."""
    settings = ModelBench(overrides=("model.encoder_layers=1", "model.width=32"), size=(64, 96), window=7)
    detector = build_detector(settings)
    inside, outside = {}, {}
    for frames in (2, 4, 8):
        part = make_part(detector, "encoder", frames, settings, CPU)
        inside[frames] = saved_bytes(part.run, part.given) / frames
        with use_composition():
            outside[frames] = saved_bytes(part.run, part.given) / frames
    assert outside[4] > 1.3 * outside[2] and outside[8] > 1.3 * outside[4]
    # Reference points, distances and frame numbers still exist for each sampled frame.
    assert inside[4] < 1.1 * inside[2] and inside[8] < 1.2 * inside[4]


def test_growth_is_fitted_beyond_the_window():
    rows = [
        {
            "part": "encoder",
            "backend": "kernels",
            "frames": t,
            "forward_ms": 2.0 * t,
            "both_ms": t**2,
            "kept": 8,
            "peak": t,
        }
        for t in (2, 4, 8)
    ]
    first = {**rows[0], "frames": 1, "forward_ms": 1e6}
    exponents = growth([first, *rows], window=1)["encoder"]["kernels"]
    assert exponents == pytest.approx({"forward_ms": 1, "both_ms": 2, "kept": 0, "peak": 1})


def test_a_run_prints_tables_and_writes_json(tmp_path, capsys):
    output = tmp_path / "model.json"
    run(compose("bench", ["suite=model", *TINY, "model.frames=[1,2,4]", f"output={output}", "device=cpu"]))
    document = json.loads(output.read_text())
    assert {"command", "commit", "machine", "rows", "growth", "parameters", "backend"} <= document.keys()
    assert {row["part"] for row in document["rows"]} == {"encoder", "decoder", "whole"}
    assert {row["frames"] for row in document["rows"]} == {1, 2, 4}
    for row in document["rows"]:
        assert row["both_ms"] > 0 and row["peak"] > 0
        assert row["kept"] > 0
    pairs = {(row["part"], row["frames"], row["backend"]): row for row in document["rows"]}
    if "kernels" in {row["backend"] for row in document["rows"]}:
        ours, other = (pairs["whole", 4, name] for name in ("kernels", "reference"))
        assert other["both_times_kernels"] == pytest.approx(other["both_ms"] / ours["both_ms"])
        assert pairs["encoder", 4, "reference"]["peak_times_kernels"] > 1.5
        # Offsets and logits without the factor F, which is 3 here.
        assert pairs["encoder", 4, "composed"]["kept_times_kernels"] > 1
        assert pairs["encoder", 4, "composed"]["peak_times_kernels"] > 1
    assert "growth with T at window=1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("model.parts=[neck]", "model.parts may have encoder, decoder, whole, got 'neck'"),
        ("model.backends=[cuda]", "model.backends may have kernels, composed, reference"),
        ("model.frames=[]", "model.frames must hold numbers from 1 on"),
        ("model.size=[8,8]", "model.size must be height and width"),
        ("model.repeats=0", "model.repeats must be at least 1"),
        ("model.config=smal", "small"),
        ("device=tpu", "device must be auto, cpu or cuda"),
    ],
)
def test_mistakes_are_one_line(override, text):
    with pytest.raises(ValueError, match=text):
        run(compose("bench", ["suite=model", override]))
