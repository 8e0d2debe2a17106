"""``stdetr bench suite=op`` on the smallest case, and the arithmetic of its report."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest
import torch

from stdetr.bench import run
from stdetr.bench.allocations import peak_allocated
from stdetr.bench.report import draw_table, fit_exponent, flat_lines
from stdetr.config import compose
from stdetr.ops import st_deform_attn, st_deform_attn_fused
from stdetr_ops.bench import op
from stdetr_ops.bench.cases import (
    CASES,
    CPU_CASES,
    GPU_CASES,
    SWEEP,
    OpCase,
    find_cases,
    gpu_label,
    make_inputs,
    roofline_seconds,
    temporal_terms,
)
from stdetr_ops.bench.measure import peak_memory_in_process, prepare
from stdetr_ops.bench.peers import (
    Implementation,
    _kernels_community,
    formed,
    grid_sample_attention,
    implementations,
)


def test_the_grid_sample_peer_computes_the_same_sum():
    case = OpCase("tiny", 2, 3, (70, 90), 7)
    inputs = make_inputs(case, "uniform", torch.float64, torch.device("cpu"))
    locations, weights = inputs.placed()
    ours = st_deform_attn(inputs.value, case.shapes, locations, weights)
    torch.testing.assert_close(grid_sample_attention(inputs.value, case.shapes, locations, weights), ours)
    fused = st_deform_attn_fused(inputs.value, case.shapes, inputs.reference, inputs.offsets, inputs.logits)
    torch.testing.assert_close(fused, ours)


@pytest.mark.parametrize("queries", ["all", "key", 7])
def test_the_temporal_terms_are_those_of_each_frame_formed_before(kernels, queries):
    case = OpCase("tiny", 2, 3, (70, 90), queries)
    inputs = make_inputs(case, "clustered", torch.float64, torch.device("cpu"))
    terms = temporal_terms(inputs)
    assert sorted(terms.dt[0, 0].tolist()) == ([0, 1, 2] if queries == "all" else [-1, 0, 1])
    ours = next(one for one in implementations(torch.device("cpu")) if one.name == "stdetr")
    assert ours.temporal is not None
    before = formed(inputs, terms)
    expected = st_deform_attn_fused(inputs.value, case.shapes, inputs.reference, before.offsets, before.logits)
    torch.testing.assert_close(ours.temporal(inputs, terms), expected)
    found = [prepare("temporal", one, inputs)[0]() for one in (ours, replace(ours, temporal=None, fused=None))]
    for out in found:
        torch.testing.assert_close(out, expected)


def test_the_hubs_kernels_are_loaded_from_a_copy(tmp_path):
    """A package of the hub's layout, whose two functions are computed by ours."""
    found = _kernels_community(torch.device("cuda"), str(tmp_path))
    assert found.absent is not None
    assert str(tmp_path) in found.absent
    version, cuda = "".join(torch.__version__.split(".")[:2]), (torch.version.cuda or "").replace(".", "")
    package = tmp_path / "build" / f"torch{version}-cxx11-cu{cuda}-x86_64-linux" / "deformable_detr"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import torch\n"
        "from stdetr.ops import ms_deform_attn\n"
        "def ms_deform_attn_forward(value, sizes, starts, locations, weights, step):\n"
        "    return ms_deform_attn(value, [tuple(pair) for pair in sizes.tolist()], locations, weights)\n"
        "def ms_deform_attn_backward(value, sizes, starts, locations, weights, grad, step):\n"
        "    leaves = [t.detach().requires_grad_() for t in (value, locations, weights)]\n"
        "    with torch.enable_grad():\n"
        "        out = ms_deform_attn_forward(leaves[0], sizes, starts, *leaves[1:], step)\n"
        "    return torch.autograd.grad(out, leaves, grad)\n"
    )
    found = _kernels_community(torch.device("cuda"), str(tmp_path))
    assert found.absent is None
    case = OpCase("tiny", 1, 3, (70, 90), 7)
    inputs = make_inputs(case, "uniform", torch.float64, torch.device("cpu"))
    results = []
    for call in (found.plain, st_deform_attn):
        leaves = [tensor.detach().requires_grad_() for tensor in (inputs.value, *inputs.placed())]
        out = call(leaves[0], case.shapes, *leaves[1:])
        results.append((out, *torch.autograd.grad(out, leaves, inputs.grad_out)))
    torch.testing.assert_close(results[0], results[1])


def test_a_setting_holds_while_an_implementation_runs(monkeypatch):
    monkeypatch.setenv("STDETR_COARSE_LEVELS", "4")
    ours = Implementation("a", grid_sample_attention, variables=(("STDETR_COARSE_LEVELS", "2"), ("STDETR_NEW", "1")))
    with ours.applied():
        assert (os.environ["STDETR_COARSE_LEVELS"], os.environ["STDETR_NEW"]) == ("2", "1")
    assert os.environ["STDETR_COARSE_LEVELS"] == "4"
    assert "STDETR_NEW" not in os.environ


def test_a_run_that_is_cut_off_has_written_what_it_measured(tmp_path, monkeypatch):
    output = tmp_path / "op.json"
    keep = op.measure_case

    def cut(case, *rest):
        if case.name == "decoder_480p_T5":
            raise KeyboardInterrupt
        return keep(case, *rest)

    monkeypatch.setattr(op, "measure_case", cut)
    keys = ["suite=op", "op.cases=[decoder_480p_T1,decoder_480p_T5]", "op.locations=[uniform]", "op.repeats=1"]
    with pytest.raises(KeyboardInterrupt):
        run(compose("bench", [*keys, "op.peers=[grid_sample]", "op.memory=false", f"output={output}", "device=cpu"]))
    document = json.loads(output.read_text())
    assert document["complete"] is False
    assert {row["case"] for row in document["rows"]} == {"decoder_480p_T1"}
    assert [path.name for path in tmp_path.iterdir()] == ["op.json"]


def test_cases_have_the_sizes_of_the_roofline():
    assert CASES["encoder_800x1333_T1"].tokens == 22223
    assert CASES["full_800x1333_T5"].points == 5 * 22223 * 8 * 5 * 4 * 4  # 71 million
    assert CASES["decoder_800x1333_T5"].points == 300 * 8 * 5 * 4 * 4
    assert [case.frames for case in find_cases(SWEEP)] == [1, 2, 4, 8, 16]
    assert len({case.query_count for case in find_cases(SWEEP)}) == 1
    find_cases(CPU_CASES)
    find_cases(GPU_CASES)
    with pytest.raises(ValueError, match="did you mean 'encoder_480p_T5'"):
        find_cases(["encoder_480_T5"])


def test_the_roofline_is_what_it_was_worked_out_by_hand():
    """71 million points read 18.2 GB in bfloat16 rows through the caches; 300 queries cost memory traffic."""
    for case, gpu, wanted in (
        ("full_800x1333_T5", "h200", 0.5516),
        ("encoder_800x1333_T1", "h200", 0.0221),
        ("decoder_800x1333_T5", "h200", 0.0135),
        ("full_800x1333_T5", "h100", 0.5516),  # by the caches, which are the same
        ("decoder_800x1333_T5", "h100", 0.01935),  # by the slower memory
    ):
        found = roofline_seconds(CASES[case], 2, gpu)
        assert found is not None
        assert 1e3 * found == pytest.approx(wanted, rel=5e-3)
    assert roofline_seconds(CASES["decoder_800x1333_T5"], 2, "nvidia_l4") is None


def test_gpus_are_told_apart_by_name():
    names = ["NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA GH200 480GB"]
    assert [gpu_label(name) for name in names] == ["h100", "h200", "nvidia_gh200_480gb"]


def test_clustered_locations_stay_near_their_query_and_uniform_ones_fill_the_frame():
    case = OpCase("one", 1, 2, (256, 256), "key")
    for name, spread in (("clustered", 2.0 / 32), ("uniform", (1 / 12 + 1 / 12) ** 0.5)):
        inputs = make_inputs(case, name, torch.float32, torch.device("cpu"))
        finest = inputs.placed()[0][:, :, :, :, 0] - inputs.reference[:, :, None, :, None]
        assert finest.std().item() == pytest.approx(spread, rel=0.05)


def test_exponents_are_slopes_in_logarithms():
    sizes = [1, 2, 4, 8, 16]
    assert fit_exponent(sizes, [3 * size for size in sizes]) == pytest.approx(1)
    assert fit_exponent(sizes, [5 * size**2 for size in sizes]) == pytest.approx(2)
    assert fit_exponent(sizes, [7, 7, 7, 7, 7]) == pytest.approx(0)


def test_a_run_prints_a_table_and_writes_json(tmp_path, capsys):
    output = tmp_path / "new" / "op.json"
    keys = ["suite=op", "op.cases=[decoder_480p_T1]", "op.locations=[clustered]", "op.kinds=[plain,fused,temporal]"]
    run(
        compose("bench", [*keys, "op.repeats=1", "op.sweep=false", "op.memory=false", f"output={output}", "device=cpu"])
    )
    document = json.loads(output.read_text())
    assert {"command", "commit", "machine", "date", "rows", "absent", "backend"} <= document.keys()
    assert document["absent"].keys() >= {"stdetr_coarse2", "deformable_detr", "kernels_community", "deformops"}
    rows = {(row["kind"], row["implementation"]): row for row in document["rows"]}
    assert {"reference", "grid_sample"} <= {name for _, name in rows}
    assert all(row["both_ms"] > 0 for row in document["rows"])
    assert ("temporal", "stdetr_composed") in rows or "stdetr" in document["absent"]
    assert ("fused", "stdetr_composed") not in rows
    assert "complete" not in document
    if "stdetr" not in document["absent"]:
        ours, peer = rows["plain", "stdetr"], rows["plain", "grid_sample"]
        assert peer["both_times_ours"] == pytest.approx(peer["both_ms"] / ours["both_ms"])
    assert "| decoder_480p_T1 | clustered | temporal | grid_sample" in capsys.readouterr().out


def test_a_training_step_needs_little_beside_inputs_outputs_and_gradients(kernels):
    memory = peak_memory_in_process("plain", "stdetr", CASES["encoder_480p_T5"], "clustered", torch.float32, 0)
    case = CASES["encoder_480p_T5"]
    value = 5 * case.tokens * 256
    assert memory["needed"] == 4 * (2 * value + 2 * 3 * case.points + 2 * case.tokens * 256)
    assert memory["peak"] <= 1.1 * memory["needed"]


def test_the_sweep_fits_growth_for_each_implementation(monkeypatch, capsys):
    names = ("decoder_480p_T1", "decoder_480p_T5", "decoder_480p_T16")
    monkeypatch.setattr(op, "SWEEP", names)
    keys = ["suite=op", "op.cases=[]", "op.repeats=1", "op.memory=false", "op.peers=[grid_sample]", "device=cpu"]
    run(compose("bench", keys))
    text = capsys.readouterr().out
    assert "growth with the number of frames, plain op (1 = linear)" in text
    assert all(f"| {name}" in text for name in names)
    result = op.run(compose("bench", keys))
    sweep = result["sweep"]["plain"]
    assert {row["frames"] for row in sweep["rows"]} == {1, 5, 16}
    mine = [row for row in sweep["rows"] if row["implementation"] == "grid_sample"]
    expected = fit_exponent([1, 5, 16], [row["both_ms"] for row in mine])
    assert sweep["exponents"]["grid_sample"]["both_ms"] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_a_training_step_allocates_the_output_and_the_gradients_only(kernels, kind):
    """Counted by the allocator, tensor by tensor: nothing as large as an input exists beside them."""
    case = OpCase("five frames", 1, 5, (96, 128), "key")
    inputs = make_inputs(case, "clustered", torch.float32, torch.device("cpu"))
    ours = next(one for one in implementations(torch.device("cpu")) if one.name == "stdetr")
    call, leaves = prepare(kind, ours, inputs)

    def step():
        out = call()
        torch.autograd.grad(out, leaves, inputs.grad_out)

    step()
    numbers = case.query_count * 256 + sum(leaf.numel() for leaf in leaves)
    if kind == "fused":
        numbers += 2 * case.query_count * 8  # log-sum-exp, and grad_out * out summed over channels
        numbers += inputs.reference.numel()  # its gradient is formed with the others
    taken = peak_allocated(step, torch.device("cpu"))
    assert 4 * numbers <= taken <= 4 * numbers + 64 * 8  # sizes are rounded up to 64 bytes


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("suite=ops", "did you mean 'op'"),
        ("op.cases=[enc]", "is not a case"),
        ("op.locations=[near]", "op.locations may have clustered, uniform, got 'near'"),
        ("op.kinds=[all]", "op.kinds may have plain, fused, temporal, got 'all'"),
        ("op.dtype=fp32", "op.dtype must be one of"),
        ("op.peers=[mmcv]", "op.peers may have"),
        ("op.repeats=0", "op.repeats must be at least 1"),
        ("device=tpu", "device must be auto, cpu or cuda"),
    ],
)
def test_mistakes_are_one_line(override, text):
    with pytest.raises(ValueError, match=text) as error:
        run(compose("bench", [override]))
    assert "\n" not in str(error.value)


def test_tables_and_lines():
    assert draw_table(["a", "b"], [["x", 1.234], ["yy", None]]).splitlines() == [
        "| a  |    b |",
        "| -- | ---: |",
        "| x  | 1.23 |",
        "| yy |    - |",
    ]
    assert list(flat_lines({"a": {"b": 1.5}, "c": [1, "x"]})) == ["a.b: 1.5", "c[0]: 1", "c[1]: x"]
