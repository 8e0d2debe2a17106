"""The losses and the speed of training since the last line of the log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stdetr.engine import processes
from stdetr.structures import ClipBatch


class Meter:
    """Means since the last log line, over all processes; tensors stay on their device until then."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.terms: dict[str, list[Tensor]] = {}
        self.frames, self.clips, self.waited, self.since = 0, 0, 0.0, time.perf_counter()

    def waiting(self, batches: Iterable[ClipBatch]) -> Iterator[ClipBatch]:
        """The batches; measures the time spent waiting for each."""
        source = iter(batches)
        while True:
            began = time.perf_counter()
            batch = next(source, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def add(self, terms: Mapping[str, Tensor], norm: Tensor | None, batch: ClipBatch) -> None:
        for name, value in terms.items():
            self.terms.setdefault(name, []).append(value)
        if norm is not None:
            self.terms.setdefault("grad_norm", []).append(norm)
        self.frames += batch.frames.shape[0] * batch.frames.shape[1]
        self.clips += batch.frames.shape[0]

    def read(self) -> dict[str, Any]:
        # Normalisers count the clips of all processes: the mean over processes is the loss of the whole batch.
        # Skipped steps have terms that are not finite.
        stacked = [torch.stack(parts) for parts in self.terms.values()]
        means = [values[values.isfinite()].mean().double().cpu() for values in stacked]
        local = torch.tensor([*means, self.waited, self.frames, self.clips], dtype=torch.float64)
        *totals, frames, clips = processes.total(local).tolist()
        *means, waited = (value / processes.count() for value in totals)
        spent = max(time.perf_counter() - self.since, 1e-9)
        values: dict[str, Any] = dict(zip(self.terms, means, strict=True))
        values |= {"frames_per_second": frames / spent, "clips_per_second": clips / spent}
        values["data_wait"] = waited / spent  # share of the time; near 1, the loader is the bottleneck
        self.restart()
        return values

    def state(self, *, alone: bool = False) -> dict[str, Tensor]:
        """The values of each term since the last line, the means over all processes (called on every process) or, with
        ``alone``, those of this one.
        """
        stacked = {name: torch.stack(parts) for name, parts in self.terms.items()}
        if alone or processes.count() == 1:
            return stacked
        return {name: (processes.total(values) / processes.count()).float() for name, values in stacked.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what ``state`` gave; ValueError for anything else."""
        for name, values in state.items():
            if values.ndim != 1 or not values.is_floating_point():
                raise ValueError(f"the values of {name} are no list of numbers")
        self.terms = {name: list(values.unbind()) for name, values in state.items()}
