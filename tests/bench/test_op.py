"""``stdetr bench suite=op`` on the smallest case, and the arithmetic of its report."""

from __future__ import annotations

import json

import pytest
import torch

from stdetr.bench import run
from stdetr.bench.allocations import peak_allocated
from stdetr.bench.op import run as measure
from stdetr.bench.op_cases import CASES, CPU_CASES, GPU_CASES, SWEEP, OpCase, find_cases, make_inputs, roofline_seconds
from stdetr.bench.op_measure import peak_memory_in_process, prepare
from stdetr.bench.op_peers import grid_sample_attention, implementations
from stdetr.bench.report import draw_table, fit_exponent, flat_lines
from stdetr.config import compose
from stdetr.ops import st_deform_attn, st_deform_attn_fused


def test_the_grid_sample_peer_computes_the_same_sum():
    case = OpCase("tiny", 2, 3, (70, 90), 7)
    inputs = make_inputs(case, "uniform", torch.float64, torch.device("cpu"))
    locations, weights = inputs.placed()
    ours = st_deform_attn(inputs.value, case.shapes, locations, weights)
    torch.testing.assert_close(grid_sample_attention(inputs.value, case.shapes, locations, weights), ours)
    fused = st_deform_attn_fused(inputs.value, case.shapes, inputs.reference, inputs.offsets, inputs.logits)
    torch.testing.assert_close(fused, ours)


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
    assert 1e3 * roofline_seconds(CASES["full_800x1333_T5"], 2) == pytest.approx(0.5516, rel=1e-3)
    assert 1e3 * roofline_seconds(CASES["encoder_800x1333_T1"], 2) == pytest.approx(0.0221, rel=5e-3)
    assert 1e3 * roofline_seconds(CASES["decoder_800x1333_T5"], 2) == pytest.approx(0.0135, rel=5e-3)


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
    keys = ["suite=op", "op.cases=[decoder_480p_T1]", "op.locations=[clustered]", "op.kinds=[plain,fused]"]
    run(
        compose("bench", [*keys, "op.repeats=1", "op.sweep=false", "op.memory=false", f"output={output}", "device=cpu"])
    )
    document = json.loads(output.read_text())
    assert {"command", "commit", "machine", "date", "rows", "absent", "backend"} <= document.keys()
    assert {"deformable_detr", "deformops"} == document["absent"].keys() - {"stdetr"}
    rows = {(row["kind"], row["implementation"]): row for row in document["rows"]}
    assert {"reference", "grid_sample"} <= {name for _, name in rows}
    assert all(row["both_ms"] > 0 for row in document["rows"])
    if "stdetr" not in document["absent"]:
        ours, peer = rows["plain", "stdetr"], rows["plain", "grid_sample"]
        assert peer["both_times_ours"] == pytest.approx(peer["both_ms"] / ours["both_ms"])
    assert "| decoder_480p_T1 | clustered | fused | grid_sample" in capsys.readouterr().out


def test_a_training_step_needs_little_beside_inputs_outputs_and_gradients(kernels):
    memory = peak_memory_in_process("plain", "stdetr", CASES["encoder_480p_T5"], "clustered", torch.float32, 0)
    case = CASES["encoder_480p_T5"]
    value = 5 * case.tokens * 256
    assert memory["needed"] == 4 * (2 * value + 2 * 3 * case.points + 2 * case.tokens * 256)
    assert memory["peak"] <= 1.1 * memory["needed"]


def test_the_sweep_fits_growth_for_each_implementation(monkeypatch, capsys):
    names = ("decoder_480p_T1", "decoder_480p_T5", "decoder_480p_T16")
    monkeypatch.setattr("stdetr.bench.op.SWEEP", names)
    keys = ["suite=op", "op.cases=[]", "op.repeats=1", "op.memory=false", "op.peers=[grid_sample]", "device=cpu"]
    run(compose("bench", keys))
    text = capsys.readouterr().out
    assert "growth with the number of frames, plain op (1 = linear)" in text
    assert all(f"| {name}" in text for name in names)
    result = measure(compose("bench", keys))
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
    ours = next(one for one in implementations(torch.device("cpu"), None) if one.name == "stdetr")
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
        ("op.cases=[enc]", "is no case"),
        ("op.locations=[near]", "op.locations may have clustered, uniform, got 'near'"),
        ("op.kinds=[all]", "op.kinds may have plain, fused, got 'all'"),
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
