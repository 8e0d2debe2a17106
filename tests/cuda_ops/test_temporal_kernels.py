"""The temporal kernels in every schedule against float64, on the host: the kernels' own source, thread by thread.

Shape legend
    B clips    T frames of a clip    S tokens of a frame    H heads    D channels per head
    Q queries  F sampled frames    L levels    K points per head, level and frame    R rows of the tables
"""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from harness import build
from harness.host import Gradients, Inputs, Schedule, backward, forward, scratch_bytes
from kernel_cases import Size, answer, error, frame_logits_error, log_sum_exp, make, random_grad_out, rounding

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")

# Largest error relative to the largest number.
FORWARD = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 1e-2, torch.bfloat16: 1e-2}
BACKWARD = {torch.float32: 1e-4, torch.float64: 1e-12, torch.float16: 1e-2, torch.bfloat16: 1e-2}
NAMES = ("value", "reference", "locations", "velocity", "weights", "offset_table", "logit_table", "frame_logits")
MANY = Schedule(split_points=1, split_frames=1)  # one group of lanes takes a query
# One processor gets few blocks, so that each takes several runs of queries.
TURNS = replace(MANY, processors=1)
SCHEDULES = {
    "many queries": MANY,
    "many queries, threads descending": replace(MANY, order="descending"),
    "many queries, threads at random": replace(MANY, order="random", seed=5),
    "coarse levels in shared memory": replace(MANY, coarse_levels=2, coarse_parts=2),
    "all levels in shared memory": replace(MANY, coarse_levels=3, order="random"),
    "few queries": Schedule(),
    "two groups per frame": Schedule(split_points=2, split_frames=1),
    "two groups share the frames": Schedule(split_points=1, split_frames=2, order="random", seed=2),
    "more groups than frames": Schedule(split_points=1, split_frames=8),
    "two warps per query": Schedule(split_points=4, split_frames=4, order="random", seed=3),
    "eight warps per query": Schedule(split_points=4, split_frames=8, order="descending"),
    "one element a lane": Schedule(force_scalar=True),
}


def _backward(
    inputs: Inputs, schedule: Schedule, *, deterministic: bool = False, reference_gradient: bool = True
) -> Gradients:
    out, lse = forward(inputs, schedule)
    return backward(
        inputs,
        random_grad_out(inputs),
        schedule,
        out=out,
        lse=lse,
        deterministic=deterministic,
        reference_gradient=reference_gradient,
    )


def check(inputs: Inputs, schedule: Schedule, deterministic: bool = False) -> None:
    """Output, log-sum-exp and all gradients agree with float64."""
    dtype = inputs.value.dtype
    wanted, gradients = answer(inputs, random_grad_out(inputs))
    assert gradients is not None
    out, lse = forward(inputs, schedule)
    assert error(out, wanted) < FORWARD[dtype]
    assert error(lse, log_sum_exp(inputs)) < FORWARD[lse.dtype]
    found = _backward(inputs, schedule, deterministic=deterministic)
    for name in NAMES[:-1]:
        bar = BACKWARD[dtype] * rounding(inputs, name)
        assert error(getattr(found, name), getattr(gradients, name)) < bar, name
    if inputs.frame_logits is not None:
        assert frame_logits_error(found, gradients) < BACKWARD[dtype]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("schedule", [MANY, Schedule()])
def test_without_frame_logits(schedule: Schedule, deterministic: bool) -> None:
    inputs = make("temporal", Size(queries=5, frames=4, frame_logits=False), torch.float32, seed=12)
    check(inputs, schedule, deterministic)
    assert _backward(inputs, schedule).frame_logits is None


@pytest.mark.parametrize("reference_size", [2, 4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str, reference_size: int) -> None:
    size = Size(queries=11, frames=5, reference_size=reference_size, ratios=True)
    check(make("temporal", size, torch.float32, seed=1), SCHEDULES[name])


def test_queries_that_are_tokens() -> None:
    size = Size(batch=1, frames=4, queries_are_tokens=True)
    check(make("temporal", size, torch.bfloat16, seed=1), replace(MANY, tile_rows=2))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", FORWARD)
@pytest.mark.parametrize("channels", [32, 16])
def test_dtypes(channels: int, dtype: torch.dtype, deterministic: bool) -> None:
    size = Size(channels=channels, queries=5, frames=3, reference_size=4)
    check(make("temporal", size, dtype, seed=2), MANY, deterministic)
    check(make("temporal", replace(size, reference_size=2), dtype, seed=2), Schedule(), deterministic)


# Lanes of 16 bytes: 1, 2, 3 of 4, 8, 32 of them; more than 32 (tiles); no whole piece; odd.
@pytest.mark.parametrize("channels", [1, 3, 8, 16, 24, 64, 130, 264])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_channels(channels: int, dtype: torch.dtype) -> None:
    inputs = make("temporal", Size(batch=1, clip=2, queries=3, channels=channels, levels=2), dtype, seed=channels)
    check(inputs, MANY)
    check(inputs, Schedule(), deterministic=True)


@pytest.mark.parametrize(("levels", "points"), [(2, 1), (1, 4), (2, 3), (3, 5), (4, 4), (1, 67), (4, 16)])
def test_any_levels_and_points(levels: int, points: int) -> None:
    """Up to several chunks of points per query, and numbers that fill none (one point in all has no logit to learn)."""
    size = Size(batch=1, clip=2, queries=3, channels=16, levels=levels, points=points, frames=3, reference_size=4)
    inputs = make("temporal", size, torch.float32, seed=levels * 10 + points)
    for schedule in (MANY, Schedule(), Schedule(split_points=4, split_frames=2, order="descending")):
        check(inputs, schedule)
    check(make("temporal", size, torch.bfloat16, seed=levels * 10 + points), MANY)


# 64: the sums of the tables do not fit in shared memory.
@pytest.mark.parametrize("rows", [0, 2, 30, 64])
@pytest.mark.parametrize("frames", [None, 1, 7])
def test_any_rows_and_frames(rows: int, frames: int | None) -> None:
    inputs = make("temporal", Size(queries=5, rows=rows, frames=frames), torch.float32, seed=4)
    check(inputs, MANY)
    check(inputs, Schedule())


@pytest.mark.parametrize("queries", [1, 17, 67])
def test_queries_straddle_blocks_and_clips(queries: int) -> None:
    size = Size(batch=3, clip=2, queries=queries, heads=1, channels=8, levels=1, points=3)
    check(make("temporal", size, torch.bfloat16, seed=queries), MANY)


@pytest.mark.parametrize("deterministic", [False, True])
def test_blocks_take_several_runs_of_queries(deterministic: bool) -> None:
    """A clip's ten runs of 32 queries go to four blocks, three runs to each; the last ones are not full or missing."""
    size = Size(batch=2, clip=2, queries=311, heads=1, levels=2, frames=2, reference_size=4)
    inputs = make("temporal", size, torch.float32, seed=5)
    alone = make("temporal", replace(size, queries=1, batch=1), torch.float32)
    assert scratch_bytes(inputs, TURNS)["table_shares"] == 2 * 4 * scratch_bytes(alone)["table_shares"]
    check(inputs, TURNS, deterministic)


def test_distances_between_and_beyond_the_rows() -> None:
    """Halves go to the even row, distances beyond the last row to that row."""
    inputs = make("temporal", Size(queries=13, frames=4, channels=8), torch.float32, seed=6)
    assert inputs.dt is not None
    some = torch.tensor([0.5, -0.5, 1.5, -1.5, 2.5, 0.49, -0.51, 1.0, -1.0, 40.0, -1e6, 0.0, -0.0])
    inputs = replace(inputs, dt=some.repeat(8).view(2, 4, 13).transpose(1, 2).contiguous())
    check(inputs, MANY)
    check(inputs, Schedule())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_distances_that_are_not_numbers(bad: float) -> None:
    """The samples of such a frame lie nowhere: they keep their probability and move nothing."""
    inputs = make("temporal", Size(queries=5, frames=3), torch.float32, seed=7)
    assert inputs.dt is not None
    assert inputs.reference is not None
    where = torch.zeros(inputs.dt.shape, dtype=torch.bool)
    where[:, :3, 1] = True
    where[0, 3] = True
    # PyTorch would multiply a zero gradient by such a distance: the same with a reference that lies nowhere, and with a
    # distance that has the same row.
    same_row = torch.tensor(bad).nan_to_num(0.0, posinf=1e6, neginf=-1e6)
    lost = replace(
        inputs,
        dt=torch.where(where, same_row, inputs.dt),
        reference=torch.where(where[..., None], torch.nan, inputs.reference),
    )
    wanted, gradients = answer(lost, random_grad_out(inputs))
    assert gradients is not None
    inputs = replace(inputs, dt=torch.where(where, bad, inputs.dt))
    for schedule in (MANY, Schedule()):
        out, lse = forward(inputs, schedule)
        assert error(out, wanted) < 1e-5
        assert error(lse, log_sum_exp(lost)) < 1e-5
        found = _backward(inputs, schedule)
        for name in NAMES:
            assert error(getattr(found, name), getattr(gradients, name)) < 1e-4, name
        assert found.locations[0, 3].eq(0).all()


def test_locations_that_are_not_numbers() -> None:
    inputs = make("temporal", Size(queries=5), torch.float32, seed=8)
    bad = inputs.locations.clone()
    flat = bad.view(-1, 2)
    flat[0, 0] = torch.nan
    flat[3, 1] = torch.inf
    flat[6] = -torch.inf
    flat[9] = 1e30
    inputs = replace(inputs, locations=bad)
    for schedule in (MANY, replace(MANY, coarse_levels=2), Schedule()):
        check(inputs, schedule)
    found = _backward(inputs, MANY)
    assert all(getattr(found, name).isfinite().all() for name in NAMES)
    assert found.locations.view(-1, 2)[[0, 3, 6, 9]].eq(0).all()


def test_values_of_masked_frames_are_not_read() -> None:
    inputs = make("temporal", Size(frames=3, queries=5), torch.float32, seed=9)
    assert inputs.frame_index is not None
    index = torch.where(inputs.frame_index == 1, -1, inputs.frame_index)
    value = inputs.value.clone()
    value[:, 1] = torch.nan
    clean = replace(inputs, frame_index=index, value=torch.nan_to_num(value, nan=0.0))
    poisoned = replace(clean, value=value)
    for schedule in (MANY, Schedule()):
        for name in NAMES:
            one, other = (getattr(_backward(given, schedule), name) for given in (clean, poisoned))
            assert torch.equal(one, other), name
        assert torch.equal(forward(clean, schedule)[0], forward(poisoned, schedule)[0])


def test_all_frames_masked() -> None:
    """Output 0, log-sum-exp -inf, every gradient 0."""
    inputs = make("temporal", Size(frames=3, queries=5), torch.bfloat16, seed=10)
    assert inputs.frame_index is not None
    inputs = replace(inputs, frame_index=torch.full_like(inputs.frame_index, -1))
    for schedule in (MANY, Schedule()):
        out, lse = forward(inputs, schedule)
        assert out.eq(0).all()
        assert lse.eq(-torch.inf).all()
        for deterministic in (False, True):
            found = _backward(inputs, schedule, deterministic=deterministic)
            assert all(getattr(found, name).eq(0).all() for name in NAMES)


def test_one_frame_at_distance_zero_is_the_fused_operator() -> None:
    inputs = make("temporal", Size(frames=1, mask=False, points=4), torch.bfloat16, seed=11)
    assert inputs.dt is not None
    inputs = replace(inputs, dt=torch.zeros_like(inputs.dt))
    fused = replace(
        inputs,
        mode="fused",
        locations=inputs.locations[:, :, :, None],
        weights=inputs.weights[:, :, :, None],
        **dict.fromkeys(("velocity", "offset_table", "logit_table", "dt")),
    )
    for schedule in (MANY, Schedule()):
        for one, other in zip(forward(inputs, schedule), forward(fused, schedule), strict=True):
            assert torch.equal(one, other)
        found, wanted = _backward(inputs, schedule), _backward(fused, schedule)
        assert torch.equal(found.value, wanted.value)
        assert torch.equal(found.locations, wanted.locations[:, :, :, 0])
        assert torch.equal(found.weights, wanted.weights[:, :, :, 0])
        for name in ("velocity", "offset_table", "logit_table"):
            assert getattr(found, name).eq(0).all()


def test_deterministic_pass_does_not_depend_on_the_order() -> None:
    """Bitwise equal for every order of threads and blocks, although all queries meet on the same pixels and rows."""
    size = Size(queries=131, clip=2, levels=1, heads=1, reference_size=4)
    inputs = make("temporal", size, torch.float32, seed=14)
    inputs = replace(inputs, locations=inputs.locations * 0.1)
    for schedule in (replace(TURNS, coarse_parts=2), Schedule(split_points=2, split_frames=2, coarse_parts=2)):
        first = _backward(inputs, schedule, deterministic=True)
        for order, seed in (("descending", 0), ("random", 1), ("random", 2)):
            again = _backward(inputs, replace(schedule, order=order, seed=seed), deterministic=True)
            for name in NAMES:
                assert torch.equal(getattr(first, name), getattr(again, name)), name


def test_the_reference_gets_a_gradient_only_where_it_is_wanted() -> None:
    inputs = make("temporal", Size(queries=5, frames=2, reference_size=4), torch.float32, seed=15)
    for schedule in (MANY, Schedule()):
        wanted = _backward(inputs, schedule)
        found = _backward(inputs, schedule, reference_gradient=False)
        assert found.reference is None
        for name in NAMES:
            if name != "reference":
                assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert scratch_bytes(inputs, reference_gradient=False)["reference_heads"] == 0


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("schedule", [MANY, Schedule(split_points=4, split_frames=2)], ids=["many", "few"])
def test_no_memory_grows_with_the_frames_sampled(schedule: Schedule, deterministic: bool) -> None:
    """Neither scratch memory nor results, but for the gradients of what each frame has: reference and frame_logits."""
    scratch, results = {}, {}
    for frames in (2, 16):
        inputs = make("temporal", Size(queries=5, frames=frames, channels=8, frame_logits=False), torch.bfloat16)
        options = {"deterministic": deterministic, "reference_gradient": False}
        scratch[frames] = scratch_bytes(inputs, schedule, **options)
        found = _backward(inputs, schedule, **options)
        results[frames] = {
            field.name: grad.shape for field in fields(found) if (grad := getattr(found, field.name)) is not None
        }
    assert scratch[2] == scratch[16]
    assert scratch[2]["table_shares"] > 0
    assert results[2] == results[16]
    assert set(results[2]) == set(NAMES) - {"reference", "frame_logits"}


def test_shares_of_the_tables_are_limited() -> None:
    """By the number of processors, however many queries there are, and by memory, however many rows."""
    size = Size(batch=1, clip=1, heads=1, channels=8, levels=1, points=1, mask=False)
    shares = []
    for queries in (40_000, 80_000):
        inputs = make("temporal", replace(size, queries=queries), torch.float64)
        shares.append(scratch_bytes(inputs, replace(MANY, processors=4))["table_shares"])
    assert shares[0] == shares[1] > 0
    large = make("temporal", replace(size, queries=4001, points=16, rows=4096), torch.float32)
    assert scratch_bytes(large, MANY)["table_shares"] <= 4 << 22
