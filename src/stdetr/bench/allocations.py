"""Memory that tensors take, counted instead of sampled: the same figure on every run.

The figures of the operating system depend on what the process did before; these count the allocator's own calls.
Memory that a kernel takes outside PyTorch's allocator is not in them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def peak_allocated(run: Callable[[], object], device: torch.device) -> int:
    """Peak bytes of tensors that ``run`` holds in addition to what existed before.

    Everything that ``run`` returns is freed inside the measurement.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]  (missing in torch's stub)
        highest = max(highest, held)
    return highest


def saved_bytes(run: Callable[[], Tensor], but: set[int] | None = None) -> int:
    """Bytes that the graph of ``run`` keeps for its backward pass; storages kept twice count once.

    ``but`` holds the addresses of storages that do not count: parameters and inputs, which exist anyway.
    """
    storages: dict[int, int] = {}
    skipped = but or set()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in skipped:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
    # The graph lives up to here: no address was used again while they were collected.
    total = sum(storages.values())
    del result
    return total


def addresses(*tensors: Tensor) -> set[int]:
    """Of the tensors' storages, for ``saved_bytes``."""
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}
