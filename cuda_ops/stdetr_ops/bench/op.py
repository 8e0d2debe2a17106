"""``stdetr bench suite=op``: the attention op against its reference and its peers, in one run.

For each case and implementation: seconds of inference (forward), of the backward pass and of a training step (both),
peak memory, and how many times longer than ours it takes; then growth with the number of frames, as a fitted exponent.
Implementations take turns, so that a busy machine disturbs all of them alike; figures are medians.  A turn starts with
a call that is not timed: in a model the values have just been written, while here the implementation before has emptied
the caches, and a decoder's short call would mostly measure that.  ``op.warm=false`` leaves it out.

On a GPU the calls are captured in CUDA graphs and replayed: Python takes 20 to 34 us for a call, a decoder's kernel
less.  What cannot be captured is called as it is, and its row says so.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stdetr.bench.report import draw_table, fit_exponent, machine, write
from stdetr.ops import backend
from stdetr_ops.bench.cases import (
    CPU_CASES,
    GPU_CASES,
    KINDS,
    LOCATIONS,
    SWEEP,
    OpCase,
    OpInputs,
    find_cases,
    gpu_label,
    make_inputs,
    roofline_seconds,
)
from stdetr_ops.bench.measure import (
    available_bytes,
    estimated_bytes,
    peak_memory,
    peak_memory_in_process,
    prepare,
    replayed,
    time_once,
)
from stdetr_ops.bench.peers import PEERS, Implementation, implementations

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class OpBench:
    """The keys of ``op`` in ``conf/bench.yaml``; None stands for the device's default."""

    cases: tuple[str, ...] | None = None
    locations: tuple[str, ...] = LOCATIONS
    kinds: tuple[str, ...] | None = None
    dtype: str | None = None
    peers: tuple[str, ...] | None = None
    repeats: int = 41
    seconds: float = 10.0
    warm: bool = True
    sweep: bool = True
    memory: bool = True
    transformers_wheel: str | None = None
    kernels_folder: str | None = None

    def __post_init__(self) -> None:
        for key, known in (("locations", LOCATIONS), ("kinds", KINDS), ("peers", PEERS)):
            for name in getattr(self, key) or ():
                if name not in known:
                    raise ValueError(f"op.{key} may have {', '.join(known)}, got {name!r}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"op.dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.repeats < 1:
            raise ValueError(f"op.repeats must be at least 1, got {self.repeats}")


def run(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Measure and return a JSON-ready dictionary; ``cfg["op"]`` holds the keys of :class:`OpBench`.

    Raises ValueError for keys that do not fit.
    """
    settings = _settings(cfg.get("op") or {})
    device = _device(str(cfg.get("device", "auto")))
    if cfg.get("threads") is not None:
        torch.set_num_threads(int(cfg["threads"]))
    seed = int(cfg.get("seed", 0))
    gpu = device.type == "cuda"
    dtype = DTYPES[settings.dtype or ("bfloat16" if gpu else "float32")]
    cases = find_cases(settings.cases if settings.cases is not None else (GPU_CASES if gpu else CPU_CASES))
    everything = implementations(device, settings.peers, settings.transformers_wheel, settings.kernels_folder)
    present = [one for one in everything if one.absent is None]
    kinds = settings.kinds or (KINDS if gpu else ("plain",))
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "suite": "op",
        "machine": machine(),
        "backend": str(backend(device)),
        "dtype": str(dtype).removeprefix("torch."),
        "warm": settings.warm,
        "absent": {one.name: one.absent for one in everything if one.absent is not None},
        "rows": rows,
    }

    def measured(case: OpCase, kind: str, locations: str) -> list[dict[str, Any]]:
        new = measure_case(case, kind, locations, present, settings, device, dtype, seed)
        for row in new:
            print(_progress(row), flush=True)
        rows.extend(new)
        if cfg.get("output") is not None:
            # What has been measured outlives a run that is cut off.
            write({**result, "complete": False}, cfg["output"])
        return new

    for case in cases:
        for kind in kinds:
            for locations in settings.locations:
                measured(case, kind, locations)
    if settings.sweep:
        result["sweep"] = {}
        for kind in kinds:
            first = len(rows)
            for case in find_cases(SWEEP):
                for row in measured(case, kind, "clustered"):
                    row["frames"] = case.frames
            result["sweep"][kind] = {"rows": rows[first:], "exponents": _growth(rows[first:], present, settings.memory)}
            del rows[first:]
    return result


def _growth(
    rows: Sequence[Mapping[str, Any]], present: Sequence[Implementation], memory: bool
) -> dict[str, dict[str, float]]:
    """The exponents of time and memory in F, by least squares, of each implementation with three figures or more."""
    exponents: dict[str, dict[str, float]] = {}
    for one in present:
        mine = [row for row in rows if row["implementation"] == one.name and "both_ms" in row]
        keys = ["forward_ms", "both_ms", *(["memory_peak"] if memory else [])]
        if len(mine) >= 3:
            exponents[one.name] = {
                key: fit_exponent([row["frames"] for row in mine], [row[key] for row in mine]) for key in keys
            }
    return exponents


def _settings(keys: Mapping[str, Any]) -> OpBench:
    given: dict[str, Any] = {str(key): tuple(value) if _is_list(value) else value for key, value in dict(keys).items()}
    unknown = sorted(set(given) - set(OpBench.__dataclass_fields__))
    if unknown:
        raise ValueError(f"op.{unknown[0]} is not a key; there are {', '.join(OpBench.__dataclass_fields__)}")
    return OpBench(**given)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _device(name: str) -> torch.device:
    if name not in {"auto", "cpu", "cuda"}:
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no GPU; use device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def measure_case(
    case: OpCase,
    kind: str,
    locations: str,
    present: Sequence[Implementation],
    settings: OpBench,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> list[dict[str, Any]]:
    """One row an implementation: medians in milliseconds, memory in bytes, and the ratio to ours."""
    inputs = make_inputs(case, locations, dtype, device, seed)
    present = [one for one in present if kind in one.kinds]
    rows: dict[str, dict[str, Any]] = {}
    times: dict[str, list[dict[str, float]]] = {}
    for one in present:
        rows[one.name] = {"case": case.name, "locations": locations, "kind": kind, "implementation": one.name}
        needed = estimated_bytes(case, one.name, inputs.value.element_size())
        if needed > 0.6 * available_bytes(device):
            rows[one.name]["skipped"] = f"needs about {needed / 2**30:.0f} GiB"
        else:
            times[one.name] = []
    calls = {one: prepare(kind, one, inputs) for one in present if one.name in times}
    timers = {}
    pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
    for one, (call, leaves) in calls.items():
        timers[one.name] = partial(time_once, call, leaves, inputs.grad_out)
        if device.type == "cuda":
            try:
                with one.applied():
                    reason = _replay(timers, one.name, call, leaves, inputs, pool)
            except RuntimeError as error:  # such as too little memory
                rows[one.name]["skipped"] = f"failed: {str(error).splitlines()[0]}"
                del times[one.name], timers[one.name]
                continue
            rows[one.name]["timed"] = "graph" if reason is None else f"call ({reason})"
    calls = {one: found for one, found in calls.items() if one.name in times}
    spent = {one.name: 0.0 for one in calls}
    for turn in range(settings.repeats + 1):
        for one, (call, _) in calls.items():
            name = one.name
            # The first turn warms up, unless it alone takes all the time there is; three turns are the least.
            if len(times[name]) >= min(3, settings.repeats) and spent[name] > settings.seconds:
                continue
            started = time.perf_counter()
            with one.applied():
                if settings.warm:
                    with torch.no_grad():
                        call()
                once = timers[name]()
            took = time.perf_counter() - started
            if turn > 0 or took > settings.seconds:
                times[name].append(once)
                spent[name] += took
    for name, turns in times.items():
        for key in ("forward", "backward", "both"):
            rows[name][f"{key}_ms"] = 1e3 * statistics.median(turn[key] for turn in turns)
        rows[name]["turns"] = len(turns)
    del calls, timers
    if settings.memory:
        for one in present:
            if one.name in times:
                if device.type == "cuda":
                    with one.applied():
                        memory = peak_memory(kind, one, inputs)
                else:
                    memory = peak_memory_in_process(kind, one.name, case, locations, dtype, seed)
                rows[one.name] |= {f"memory_{key}": value for key, value in memory.items()}
    ours = rows.get("stdetr", {})
    if device.type == "cuda" and "forward_ms" in ours:
        least = roofline_seconds(case, inputs.value.element_size(), gpu_label(torch.cuda.get_device_name(device)))
        if least is not None:
            ours["roofline_ms"] = 1e3 * least
            ours["roofline_share"] = ours["roofline_ms"] / ours["forward_ms"]
    for name, row in rows.items():
        if name != "stdetr" and "forward_ms" in row and "forward_ms" in ours:
            for key in ("forward", "backward", "both"):
                row[f"{key}_times_ours"] = row[f"{key}_ms"] / ours[f"{key}_ms"]
    return list(rows.values())


def _replay(
    timers: dict[str, Callable[[], dict[str, float]]],
    name: str,
    call: Callable[[], Tensor],
    leaves: list[Tensor],
    inputs: OpInputs,
    pool: Any,
) -> str | None:
    """Puts graphs in the place of ``timers[name]``; the reason where they cannot be captured.

    The first call compiles and tunes, the second measures how long one takes.
    """
    timers[name]()
    once = timers[name]()
    try:
        timers[name] = replayed(call, leaves, inputs.grad_out, once["forward"], pool)
    except RuntimeError as error:
        torch.cuda.synchronize()
        return str(error).splitlines()[0]
    return None


def _progress(row: Mapping[str, Any]) -> str:
    what = f"{row['case']} {row['kind']} {row['locations']} {row['implementation']}"
    if "skipped" in row:
        return f"{what}: skipped, {row['skipped']}"
    return f"{what}: forward {row['forward_ms']:.2f} ms, forward + backward {row['both_ms']:.2f} ms"


def table(result: Mapping[str, Any]) -> str:
    """The result as text: one table of cases, one of growth, and the peers that could not run."""
    header = ["case", "locations", "op", "implementation", "forward ms", "backward ms", "both ms"]
    header += ["x ours (forward)", "x ours (both)", "peak MiB", "peak / needed"]
    text = ["", _draw(header, result["rows"])]
    for kind, sweep in result.get("sweep", {}).items():
        lines = [
            [name, *(found.get(key) for key in ("forward_ms", "both_ms", "memory_peak"))]
            for name, found in sweep["exponents"].items()
        ]
        growth = draw_table(["implementation", "forward", "forward + backward", "peak memory"], lines)
        text += ["", f"growth with the number of frames, {kind} op (1 = linear)", growth]
        text += ["", _draw(header, sweep["rows"])]
    for row in result["rows"]:
        if "roofline_share" in row:
            share = f"{100 * row['roofline_share']:.0f} % of the forward pass's roofline ({row['roofline_ms']:.3f} ms)"
            text.append(f"{row['case']} {row['locations']} {row['kind']}: {share} on this {result['machine']['gpu']}")
        if str(row.get("timed", "graph")) != "graph":
            text.append(f"{row['case']} {row['kind']} {row['implementation']}: timed as a {row['timed']}")
    text += [f"absent: {name}: {reason}" for name, reason in result["absent"].items()]
    return "\n".join(text)


def _draw(header: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        first = [row["case"], row["locations"], row["kind"], row["implementation"]]
        times = [row.get(key) for key in ("forward_ms", "backward_ms", "both_ms", "forward_times_ours")]
        peak, needed = row.get("memory_peak"), row.get("memory_needed")
        share = peak / needed if peak is not None and needed else None
        mebibytes = None if peak is None else peak / 2**20
        lines.append([*first, *times, row.get("both_times_ours"), mebibytes, share])
    return draw_table(header, lines)
