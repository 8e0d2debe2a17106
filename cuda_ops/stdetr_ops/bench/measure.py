"""Time and peak memory of one implementation on one case.

Run as a module it measures memory in a separate process: ``python -m stdetr_ops.bench.measure '<json>'``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stdetr_ops.bench.cases import CHANNELS, OpCase, OpInputs, make_inputs, temporal_terms
from stdetr_ops.bench.peers import Implementation, formed, implementations


def prepare(kind: str, implementation: Implementation, inputs: OpInputs) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """A call of the op and the tensors whose gradients a training step needs.

    plain: locations and weights are given.  fused: reference, offsets and logits are; where an implementation cannot
    take them, PyTorch operations make locations and weights, and are part of what is measured.  temporal: what
    ``temporal_terms`` gives, likewise.
    """
    value = inputs.value.detach().requires_grad_()
    if kind == "plain":
        locations, weights = (tensor.detach().requires_grad_() for tensor in inputs.placed())
        return lambda: implementation.plain(value, inputs.shapes, locations, weights), [value, locations, weights]
    if kind == "temporal":
        terms = temporal_terms(inputs)
        names = [name for name in vars(terms) if name != "dt"]
        free = [getattr(terms, name).requires_grad_() for name in names]
        mine = replace(inputs, value=value)
        if implementation.temporal is not None:
            temporal = implementation.temporal
            return lambda: temporal(mine, terms), [value, *free]
        return lambda: _from_offsets(implementation, formed(mine, terms)), [value, *free]
    offsets, logits = (tensor.detach().requires_grad_() for tensor in (inputs.offsets, inputs.logits))
    own = OpInputs(inputs.case, value, inputs.reference, offsets, logits, inputs.grad_out)
    return lambda: _from_offsets(implementation, own), [value, offsets, logits]


def _from_offsets(implementation: Implementation, inputs: OpInputs) -> Tensor:
    if implementation.fused is not None:
        return implementation.fused(inputs)
    return implementation.plain(inputs.value, inputs.shapes, *inputs.placed())


class Clock:
    """Seconds between marks, on the device's own clock where it has one."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
        if self._gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        if self._gpu:
            torch.cuda.synchronize()
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return [one.elapsed_time(other) / 1e3 if self._gpu else other - one for one, other in pairs]


def time_once(call: Callable[[], Tensor], leaves: list[Tensor], grad_out: Tensor) -> dict[str, float]:
    """Seconds of one inference (forward) and of one training step (backward, both)."""
    clock = Clock(grad_out.device)
    clock.mark()
    with torch.no_grad():
        call()
    clock.mark()
    out = call()
    clock.mark()
    grads = torch.autograd.grad(out, leaves, grad_out)
    clock.mark()
    forward, with_graph, backward = clock.seconds()
    del grads
    return {"forward": forward, "backward": backward, "both": with_graph + backward}


def replayed(
    call: Callable[[], Tensor], leaves: list[Tensor], grad_out: Tensor, seconds: float, pool: Any
) -> Callable[[], dict[str, float]]:
    """``time_once`` without Python's part: CUDA graphs of the inference and of the training step, replayed.

    ``seconds``: what an inference takes about; short ones are captured several times in a row, so that a replay takes
    at least a millisecond.  backward is both less the inference.  Graphs may share the memory ``pool``: nobody reads
    what they leave there.  RuntimeError: the call cannot be captured.
    """

    def step() -> None:
        torch.autograd.grad(call(), leaves, grad_out)

    def inference() -> None:
        with torch.no_grad():
            call()

    times = max(1, min(100, round(1e-3 / seconds)))
    graphs = []
    for run in (inference, step):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1], pool=pool):
            for _ in range(times):
                run()

    def timed() -> dict[str, float]:
        clock = Clock(grad_out.device)
        clock.mark()
        for graph in graphs:
            graph.replay()
            clock.mark()
        forward, both = (duration / times for duration in clock.seconds())
        return {"forward": forward, "backward": both - forward, "both": both}

    return timed


def estimated_bytes(case: OpCase, implementation: str, size: int) -> int:
    """What a PyTorch formulation keeps for a step: every sampled row, about four times over."""
    rows = {"grid_sample": 4, "reference": 12}.get(implementation, 0)
    return rows * case.points * CHANNELS * size


def available_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_memory(kind: str, implementation: Implementation, inputs: OpInputs) -> dict[str, int]:
    """Bytes of one forward and backward: ``needed`` (inputs, output and gradients) and ``peak`` beside nothing else.

    On the CPU the process has to be fresh, because the system reports only the process's peak.
    """
    call, leaves = prepare(kind, implementation, inputs)
    extra = [] if kind == "plain" else [inputs.reference]
    given = _bytes(inputs.grad_out, *leaves, *extra)
    if inputs.value.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = call()
        grads = torch.autograd.grad(out, leaves, inputs.grad_out)
        grown = torch.cuda.max_memory_allocated() - before
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from here
        before = _status("VmRSS")
        out = call()
        grads = torch.autograd.grad(out, leaves, inputs.grad_out)
        grown = _status("VmHWM") - before
    return {"needed": given + _bytes(out, *grads), "peak": given + grown}


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def peak_memory_in_process(
    kind: str, implementation: str, case: OpCase, locations: str, dtype: torch.dtype, seed: int
) -> dict[str, int]:
    """``peak_memory`` on the CPU, in a separate process.  Raises RuntimeError with its last line if that fails."""
    job = {
        "kind": kind,
        "implementation": implementation,
        "case": case.name,
        "locations": locations,
        "dtype": str(dtype).removeprefix("torch."),
        "seed": seed,
        "threads": torch.get_num_threads(),
    }
    # Freed memory goes back to the system at once, so that the resident set is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "stdetr_ops.bench.measure", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(f"measuring memory failed: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])


def _main(text: str) -> None:
    from stdetr_ops.bench.cases import CASES

    job = json.loads(text)
    torch.set_num_threads(job["threads"])
    device, dtype = torch.device("cpu"), getattr(torch, job["dtype"])
    name = job["implementation"]
    implementation = next(one for one in implementations(device, [name]) if one.name == name)
    # Threads, allocator and autograd engine exist before the measurement starts.
    small = OpCase("warm-up", 1, 2, (64, 64), 64)
    peak_memory(job["kind"], implementation, make_inputs(small, job["locations"], dtype, device))
    inputs = make_inputs(CASES[job["case"]], job["locations"], dtype, device, job["seed"])
    if job["kind"] == "plain":
        # Made before the measurement, and what they were made from is freed.
        locations, weights = inputs.placed()
        inputs.placed = lambda: (locations, weights)  # type: ignore[method-assign]
        inputs.offsets = inputs.logits = torch.empty(0)
    print(json.dumps(peak_memory(job["kind"], implementation, inputs)))


if __name__ == "__main__":
    _main(sys.argv[1])
