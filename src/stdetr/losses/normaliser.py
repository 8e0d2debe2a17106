"""The normalisers of losses when several processes share a batch."""

from __future__ import annotations

from torch import Tensor, distributed


def reduce_count(count: Tensor) -> Tensor:
    """The normaliser for a loss summed over this process's clips: max(count of all processes, 1) / processes.

    count: one count or several, any shape and dtype; returns float32 of that shape, without gradient.

    Gradients are averaged over processes, so the mean of ``local sum / reduce_count(local count)`` is
    ``global sum / max(global count, 1)``: loss and gradient equal those of one process with the whole batch, even
    where a process has nothing to count.  All processes must call it equally often and in the same order.
    """
    total = count.detach().float()
    processes = _processes()
    if processes > 1:
        total = total.clone()
        distributed.all_reduce(total)
    return total.clamp(min=1.0) / processes


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
