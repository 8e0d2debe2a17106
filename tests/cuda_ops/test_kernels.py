"""Every kernel schedule against float64, on the host: the kernels' own source, thread by thread.

Shape legend
    B clips    T frames of a clip    S tokens of a frame    H heads    D channels per head
    Q queries  F sampled frames    L levels    K points per head, level and frame
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from harness import build
from harness.host import Gradients, Inputs, Schedule, backward, forward
from kernel_cases import Size, answer, error, frame_logits_error, log_sum_exp, make, random_grad_out, rounding
from torch import Tensor

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")

MODES = ("plain", "fused")
# Largest error relative to the largest number: forward, and backward for sums kept in the accumulation type.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1e-2}
MANY = Schedule(split_points=1, split_frames=1)  # one group of lanes takes a query
SCHEDULES = {
    "many queries": MANY,
    "many queries, threads descending": Schedule(split_points=1, split_frames=1, order="descending"),
    "many queries, threads at random": Schedule(split_points=1, split_frames=1, order="random", seed=5),
    "tiles of tokens": Schedule(split_points=1, split_frames=1, tile_rows=2),
    "coarse levels in shared memory": Schedule(split_points=1, split_frames=1, coarse_levels=2, coarse_parts=2),
    "all levels in shared memory": Schedule(
        split_points=1, split_frames=1, coarse_levels=3, coarse_parts=1, order="random"
    ),
    "few queries": Schedule(),
    "two groups per frame": Schedule(split_points=2, split_frames=1),
    "frames apart": Schedule(split_points=1, split_frames=4),
    "two warps per query": Schedule(split_points=4, split_frames=4, order="random", seed=3),
    "one element a lane": Schedule(force_scalar=True),
}


def _backward(inputs: Inputs, grad_out: Tensor, schedule: Schedule, deterministic: bool = False) -> Gradients:
    out = lse = None
    if inputs.mode == "fused":
        out, lse = forward(inputs, schedule)
    return backward(inputs, grad_out, schedule, out=out, lse=lse, deterministic=deterministic)


def check(inputs: Inputs, schedule: Schedule, deterministic: bool = False) -> None:
    """Forward and backward agree with float64."""
    limit = TOLERANCE[inputs.value.dtype]
    grad_out = random_grad_out(inputs)
    wanted, gradients = answer(inputs, grad_out)
    assert gradients is not None
    out, lse = forward(inputs, schedule)
    assert error(out, wanted) < limit
    if inputs.mode == "fused":
        assert error(lse, log_sum_exp(inputs)) < 1e-5
    found = _backward(inputs, grad_out, schedule, deterministic)
    for name in ("value", "locations", "weights", "reference"):
        if getattr(gradients, name) is not None:
            bar = limit * rounding(inputs, name)
            assert error(getattr(found, name), getattr(gradients, name)) < bar, name
    if inputs.frame_logits is not None:
        assert frame_logits_error(found, gradients) < limit


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(mode: str, name: str) -> None:
    size = Size(frames=4, queries_are_tokens="tiles" in name, batch=1)
    if "tiles" not in name:
        size = replace(size, batch=2, queries=11)
    check(make(mode, size, torch.float32, seed=1), SCHEDULES[name])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels", [32, 16])
def test_dtypes(mode: str, dtype: torch.dtype, channels: int) -> None:
    check(make(mode, Size(channels=channels, queries=5), dtype, seed=2), MANY)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_deterministic_pass(mode: str, dtype: torch.dtype) -> None:
    check(make(mode, Size(frames=2, queries=13), dtype, seed=3), Schedule(coarse_parts=2), deterministic=True)


# Lanes of 16 bytes: 1, 2, 3 of 4, 8, 16 and 32 of them; more than 32 (tiles); no whole piece; odd.
@pytest.mark.parametrize("channels", [1, 3, 5, 8, 16, 24, 36, 64, 130, 264])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_channels(channels: int, dtype: torch.dtype) -> None:
    size = Size(batch=1, clip=2, queries=3, heads=2, channels=channels, levels=2, points=1)
    inputs = make("fused", size, dtype, seed=channels)
    check(inputs, MANY)
    check(inputs, Schedule(split_points=1, split_frames=1, coarse_levels=1))
    check(inputs, Schedule(), deterministic=True)


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize("points", [1, 2, 3, 4, 5])
def test_any_levels_and_points(levels: int, points: int) -> None:
    size = Size(batch=1, clip=2, queries=3, channels=16, levels=levels, points=points)
    for mode in MODES:
        for schedule in (MANY, Schedule()):
            check(make(mode, size, torch.float32, seed=levels * 10 + points), schedule)


@pytest.mark.parametrize("reference_size", [2, 4])
@pytest.mark.parametrize("ratios", [False, True])
@pytest.mark.parametrize("frames", [None, 1, 5])
def test_references_and_valid_ratios(reference_size: int, ratios: bool, frames: int | None) -> None:
    size = Size(reference_size=reference_size, ratios=ratios, frames=frames, queries=5)
    check(make("fused", size, torch.float32, seed=4), MANY)
    check(make("fused", size, torch.bfloat16, seed=4), Schedule())


@pytest.mark.parametrize("queries", [1, 2, 17, 31, 67])
def test_queries_straddle_blocks_and_clips(queries: int) -> None:
    """Prime numbers of queries, none a multiple of what a block takes; three clips."""
    size = Size(batch=3, clip=2, queries=queries, heads=1, channels=8, levels=1, points=1)
    check(make("fused", size, torch.bfloat16, seed=queries), MANY)
    check(
        make("plain", size, torch.float32, seed=queries),
        Schedule(split_points=1, split_frames=1, coarse_levels=1, coarse_parts=3),
    )


def test_tiles_visit_every_token_once() -> None:
    """Strips of 2, 3 and 8 rows over levels of 5x7, 3x4 and 2x2 tokens, for a clip of two frames of queries."""
    size = Size(batch=1, clip=1, queries_are_tokens=True, heads=1, channels=4, levels=3, points=1)
    inputs = make("plain", size, torch.float32, seed=6)
    twice = replace(
        inputs, locations=inputs.locations.repeat(1, 2, 1, 1, 1, 1, 1), weights=inputs.weights.repeat(1, 2, 1, 1, 1, 1)
    )
    wanted, _ = answer(twice)
    for rows in (0, 2, 3, 8):
        out, _ = forward(twice, Schedule(split_points=1, split_frames=1, tile_rows=rows))
        assert error(out, wanted) < 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_locations_that_are_not_numbers(mode: str) -> None:
    """NaN and infinite locations add nothing and get zero gradient; their neighbours are not disturbed."""
    inputs = make(mode, Size(queries=5), torch.float32, seed=8)
    bad = inputs.locations.clone()
    flat = bad.view(-1, 2)
    flat[0, 0] = torch.nan
    flat[3, 1] = torch.inf
    flat[6] = -torch.inf
    flat[9] = 1e30
    inputs = replace(inputs, locations=bad)
    check(inputs, MANY)
    check(inputs, Schedule(coarse_levels=2))
    check(inputs, Schedule(), deterministic=True)
    found = _backward(inputs, random_grad_out(inputs), MANY)
    assert found.locations.view(-1, 2)[[0, 3, 6, 9]].eq(0).all()
    assert all(getattr(found, name).isfinite().all() for name in ("value", "locations", "weights"))


@pytest.mark.parametrize("mode", ["plain", "fused"])
def test_values_of_masked_frames_are_not_read(mode: str) -> None:
    inputs = make(mode, Size(frames=3, queries=5), torch.float32, seed=9)
    assert inputs.frame_index is not None
    index = inputs.frame_index.clone()
    index[index == 1] = -1
    value = inputs.value.clone()
    value[:, 1] = torch.nan
    inputs = replace(inputs, frame_index=index, value=value)
    clean = replace(inputs, value=torch.nan_to_num(value, nan=0.0))
    wanted, gradients = answer(clean, random_grad_out(inputs))
    assert gradients is not None
    for schedule in (MANY, Schedule()):
        out, _ = forward(inputs, schedule)
        assert error(out, wanted) < 1e-5
        found = _backward(inputs, random_grad_out(inputs), schedule)
        for name in ("value", "locations", "weights"):
            assert error(getattr(found, name), getattr(gradients, name)) < 1e-5


def test_all_frames_masked() -> None:
    """Output 0, log-sum-exp -inf, every gradient 0."""
    inputs = make("fused", Size(frames=3, queries=5), torch.bfloat16, seed=10)
    assert inputs.frame_index is not None
    inputs = replace(inputs, frame_index=torch.full_like(inputs.frame_index, -1))
    for schedule in (MANY, Schedule()):
        out, lse = forward(inputs, schedule)
        assert out.eq(0).all()
        assert lse.eq(-torch.inf).all()
        for deterministic in (False, True):
            found = _backward(inputs, random_grad_out(inputs), schedule, deterministic)
            for name in ("value", "locations", "weights", "reference", "frame_logits"):
                assert getattr(found, name).eq(0).all()


@pytest.mark.parametrize("deterministic", [False, True])
def test_without_frame_logits(deterministic: bool) -> None:
    """None of them, and zeros, are the same to the last bit; a constant for all frames changes only the log-sum-exp."""
    inputs = make("fused", Size(frames=4, queries=5, frame_logits=False), torch.float32, seed=12)
    zeros = torch.zeros(2, 5, 2, 4)
    for schedule in (MANY, Schedule()):
        check(inputs, schedule, deterministic)
        found = _backward(inputs, random_grad_out(inputs), schedule, deterministic)
        same = _backward(replace(inputs, frame_logits=zeros), random_grad_out(inputs), schedule, deterministic)
        assert all(torch.equal(getattr(found, n), getattr(same, n)) for n in ("value", "locations", "weights"))
        out, lse = forward(inputs, schedule)
        lifted, more = forward(replace(inputs, frame_logits=zeros + 3), schedule)
        assert error(lifted, out) < 1e-5
        assert error(more, lse + 3) < 1e-6


def test_a_frame_without_weight() -> None:
    """-inf takes a frame out as a mask does, with gradients that are 0 and not NaN; so does -inf for all frames."""
    inputs = make("fused", Size(queries=5), torch.float32, seed=13)
    assert inputs.frame_logits is not None
    for frames in (slice(1, 2), slice(None)):
        more = inputs.frame_logits.clone()
        more[..., frames] = -torch.inf
        index = torch.arange(3, dtype=torch.int32).repeat(2, 5, 1)
        index[..., frames] = -1
        masked, taken = replace(inputs, frame_index=index), replace(inputs, frame_logits=more)
        for schedule in (MANY, Schedule()):
            assert torch.equal(forward(taken, schedule)[0], forward(masked, schedule)[0])
            for deterministic in (False, True):
                found = _backward(taken, random_grad_out(inputs), schedule, deterministic)
                same = _backward(masked, random_grad_out(inputs), schedule, deterministic)
                for name in ("value", "locations", "weights", "reference", "frame_logits"):
                    assert torch.equal(getattr(found, name), getattr(same, name)), name


def test_extreme_logits() -> None:
    """Logits of hundreds neither overflow nor vanish: one point takes all the weight, the others' gradients are 0."""
    inputs = make("fused", Size(queries=5), torch.float32, seed=11)
    logits = inputs.weights * 200
    logits[..., 0, 0] -= 5000
    inputs = replace(inputs, weights=logits)
    grad_out = random_grad_out(inputs)
    wanted, gradients = answer(inputs, grad_out)
    assert gradients is not None
    for schedule in (MANY, Schedule()):
        out, lse = forward(inputs, schedule)
        assert error(out, wanted) < 1e-5
        assert error(lse, log_sum_exp(inputs)) < 1e-6
        found = _backward(inputs, grad_out, schedule)
        assert error(found.value, gradients.value) < 1e-5
        assert error(found.locations, gradients.locations) < 1e-5
        # Differences of equal numbers: nothing but rounding is left.
        assert (found.weights - gradients.weights).abs().max() < 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_deterministic_pass_does_not_depend_on_the_order(mode: str) -> None:
    """Bitwise equal for every order of threads and blocks, although all queries meet on the same pixels."""
    inputs = make(mode, Size(queries=29, levels=1, heads=1), torch.float32, seed=14)
    inputs = replace(inputs, locations=inputs.locations * 0.1 + (0.4 if mode != "fused" else 0.0))
    grad_out = random_grad_out(inputs)
    first = _backward(inputs, grad_out, Schedule(coarse_parts=2), deterministic=True)
    for schedule in (
        Schedule(coarse_parts=2, order="descending"),
        Schedule(coarse_parts=3, order="random", seed=1),
        Schedule(coarse_parts=1, order="random", seed=2),
    ):
        again = _backward(inputs, grad_out, schedule, deterministic=True)
        assert torch.equal(first.value, again.value)
        assert torch.equal(first.weights, again.weights)
    # The other pass does depend on it here, so that the test can fail.
    sums = [
        _backward(inputs, grad_out, Schedule(split_points=1, split_frames=1, coarse_levels=0, order=order)).value
        for order in ("ascending", "descending")
    ]
    assert not torch.equal(*sums)


def test_deterministic_pass_keeps_its_precision_at_any_scale() -> None:
    inputs = make("plain", Size(queries=5), torch.float32, seed=15)
    for scale in (1e-20, 1.0, 1e20):
        grad_out = random_grad_out(inputs) * scale
        _, gradients = answer(inputs, grad_out)
        assert gradients is not None
        found = _backward(inputs, grad_out, MANY, deterministic=True)
        assert error(found.value / scale, gradients.value / scale) < 1e-6


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_deterministic_pass_passes_on_what_is_not_finite(bad: float) -> None:
    inputs = make("plain", Size(queries=5), torch.float32, seed=16)
    grad_out = random_grad_out(inputs)
    grad_out[0, 0, 0] = bad
    assert _backward(inputs, grad_out, MANY, deterministic=True).value.isnan().all()
    zero = _backward(inputs, torch.zeros_like(grad_out), MANY, deterministic=True)
    assert zero.value.eq(0).all()
