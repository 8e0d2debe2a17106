"""What losses are divided by when several processes share a batch."""

from __future__ import annotations

from torch import Tensor, distributed


def reduce_count(count: Tensor) -> Tensor:
    """The normaliser of a loss that this process sums over its clips: max(count of all processes, 1) / processes.

    count: one count or several, any shape and dtype; returns float32 of that shape, without gradient.

    Gradients are averaged over processes.  The mean of ``local sum / reduce_count(local count)`` is thus
    ``global sum / max(global count, 1)``: loss and gradient are those of one process that holds the whole batch, also
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
