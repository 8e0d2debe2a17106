"""Processes that work on one run together: started by ``torchrun``, ``accelerate launch`` or Slurm through submitit.

Gradients and losses are reduced by PyTorch in its default group (NCCL on GPUs).  Everything else (taking turns, results
of the main process, predictions) goes through a second group on the CPU without a time limit, which may wait as long as
an evaluation takes.  That is safe because no process waits for a failed one: each watches a key of the shared store and
exits when another process writes there why it failed.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed

from stdetr.lock import locked

T = TypeVar("T")

FAILED = "stdetr/failed"
_FOREVER = timedelta(days=30)
_group: Any = None
_done, _ending = threading.Event(), threading.Lock()


def count() -> int:
    """How many processes work together."""
    return 1 if _group is None else distributed.get_world_size()


def rank() -> int:
    """The number of this process; 0 is the main process, which writes, logs and prints."""
    return 0 if _group is None else distributed.get_rank()


def share() -> tuple[int, int]:
    """(rank, processes): the share of the work that this process takes."""
    return rank(), count()


def say(text: str) -> None:
    """Print, on the main process alone."""
    if rank() == 0:
        print(text, flush=True)


@contextmanager
def together(*, cpu: bool) -> Iterator[None]:
    """Join the other processes of the run, if there are any, for the length of the block.

    cpu: use the CPU even where there are GPUs

    If one process leaves the block with an exception, all end: that one with its exception, the others at once with
    exit code 1, or with that of a ``SystemExit``.  Where all leave together (``agreed``), they do so when each is done.
    """
    _read_submitit()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    _join(cpu)
    _done.clear()
    store = _store()
    threading.Thread(target=_watch, args=(store.clone(), rank()), daemon=True).start()
    try:
        yield
        barrier()
    except BaseException as error:
        if getattr(error, "agreed", False):
            barrier()
        else:
            _announce(store, error)
        raise
    finally:
        _done.set()


@contextmanager
def sole_run(folder: Path) -> Iterator[None]:
    """Keep other runs out of ``folder`` for the length of the block; the main process does, for all of this run."""
    if rank() != 0:
        yield
        return
    with locked(folder):
        yield


def device(name: str) -> torch.device:
    """The device of this process; ``auto`` and ``cuda`` are a GPU for each process of a machine."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and count() > 1:
        return torch.device("cuda", PartialState().local_process_index)
    return torch.device(name)


def barrier() -> None:
    """Wait until every process is here."""
    if _group is not None:
        distributed.barrier(group=_group)


def on_main(work: Callable[[], T]) -> T:
    """Run ``work`` on the main process; the others wait and get the same result."""
    if _group is None:
        return work()
    box: list[Any] = [work() if rank() == 0 else None]
    distributed.broadcast_object_list(box, src=0, group=_group)
    return box[0]


def one_by_one(work: Callable[[], T]) -> T:
    """Run ``work`` on every process: first the main one, then one per machine, then the rest.

    The others can use what the first one wrote to disk.
    """
    if _group is None:
        return work()
    my_turn = 0 if rank() == 0 else 1 if int(os.environ.get("LOCAL_RANK", "0")) == 0 else 2
    result: list[T] = []
    for turn in range(3):
        if turn == my_turn:
            result.append(work())
        barrier()
    return result[0]


def gather(parts: list[T]) -> list[T]:
    """The parts of all processes, on the main process; an empty list on the others."""
    if _group is None:
        return parts
    gathered: list[Any] | None = [None] * count() if rank() == 0 else None
    distributed.gather_object(parts, gathered, dst=0, group=_group)
    return [part for one in gathered or [] for part in one]


def largest(numbers: Sequence[int]) -> list[int]:
    """The element-wise maximum over all processes."""
    if _group is None:
        return list(numbers)
    values = torch.tensor(numbers)
    distributed.all_reduce(values, distributed.ReduceOp.MAX, group=_group)
    return values.tolist()


def total(numbers: Tensor) -> Tensor:
    """The sum over all processes, float64 on the CPU."""
    values = numbers.detach().double().cpu()
    if _group is not None:
        distributed.all_reduce(values, group=_group)
    return values


def _read_submitit() -> None:
    """Tell PyTorch about the tasks of a submitit job, since submitit does not."""
    if "RANK" in os.environ:
        return
    if "SUBMITIT_EXECUTOR" in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        # Each process uses the GPU of its local rank, so all GPUs may be visible to all.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise ValueError(
            f"srun started {os.environ['SLURM_STEP_NUM_TASKS']} tasks that do not know of each other: start one "
            "torchrun on each node, or use launcher=submitit_slurm"
        )


def _join(cpu: bool) -> None:
    global _group
    if _group is None:
        PartialState(cpu=cpu)
        _group = distributed.new_group(backend="gloo", timeout=_FOREVER)


def _store() -> Any:
    return distributed.distributed_c10d._get_default_store()


def _announce(store: Any, error: BaseException) -> None:
    """Tell the others why this process fails; exit if this failure only follows from another process's."""
    lines = str(error).strip().splitlines()
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
    message = f"{rank()} {code} {type(error).__name__}: {lines[0] if lines else ''}"
    try:
        first = store.compare_set(FAILED, "", message).decode()
    except RuntimeError:
        first = "0 1 is gone"
    if first != message:
        _end(first)
    if rank() == 0:
        time.sleep(1)  # the store may live in this process: let the others look


def _watch(store: Any, this_rank: int) -> None:
    """End this process when another one has failed, even while it waits outside Python code."""
    while not _done.wait(0.3):
        try:
            failed = store.get(FAILED).decode() if store.check([FAILED]) else ""
        except RuntimeError:
            if _done.wait(2):
                return
            failed = "0 1 is gone"
        if failed and failed.split(" ", 1)[0] != str(this_rank):
            _end(failed)


def _end(failed: str) -> None:
    with _ending:
        number, code, why = failed.split(" ", 2)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"process {rank()} ends because process {number} failed: {why}", file=sys.stderr, flush=True)
        time.sleep(2)  # let the failed process print its message first
        sys.stdout.flush()
        os._exit(int(code))
