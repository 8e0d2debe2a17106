"""Batches on their way from a worker process to the process that trains.

Fresh shared memory costs a page fault every 4 KB, which for the frames of a clip takes longer than all copying (3.5 ms
against 0.1 ms for 3.7 MB, measured).  So a worker keeps a few blocks and fills them in turn; the process that receives
a batch maps each block once and copies the frames out of it when it unpickles the message.
"""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Sequence
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.util import Finalize
from pathlib import Path

import torch
from torch import Tensor

from stdetr.data.collate import Collate, DecodedClip
from stdetr.structures import Clip, ClipBatch


class SharedRing:
    """Blocks of shared memory that are used in turn; a block grows to the largest size that was asked of it."""

    def __init__(self, blocks: int) -> None:
        self._blocks: list[SharedMemory | None] = [None] * blocks
        self._turn = 0
        # Where a worker is killed nobody calls this; then Python's resource tracker removes the blocks.
        Finalize(self, _remove, (self._blocks,), exitpriority=1)

    def take(self, size: int) -> SharedMemory:
        """The next block, of at least ``size`` bytes; raises ValueError where the system has no room for it."""
        turn = self._turn
        self._turn = (turn + 1) % len(self._blocks)
        block = self._blocks[turn]
        if block is None or block.size < size:
            _remove(self._blocks, turn)
            _check_space(size)
            block = self._blocks[turn] = SharedMemory(create=True, size=max(size, 1))
        return block

    def close(self) -> None:
        """Remove all blocks."""
        _remove(self._blocks)


def _remove(blocks: list[SharedMemory | None], only: int | None = None) -> None:
    for place, block in enumerate(blocks):
        if block is not None and only in (None, place):
            blocks[place] = None
            block.close()
            block.unlink()


def _check_space(size: int) -> None:
    # Memory beyond what there is would be granted, and the worker killed when it is written.
    folder = Path("/dev/shm")
    if folder.is_dir() and (free := shutil.disk_usage(folder).free) < size:
        raise ValueError(
            f"shared memory ({folder}) has {free / 1e6:.0f} MB left, a batch needs {size / 1e6:.0f} MB: use fewer "
            "data.loader.num_workers, a smaller data.loader.batch_size, or more of it (docker run --shm-size=8g)"
        )


class WorkerCollate:
    """:class:`~stdetr.data.collate.Collate` for worker processes: what it returns arrives as a ``ClipBatch``.

    ahead: batches of a worker that may be waiting at the receiver.  One more is being received while the receiver has
        already asked for the next, which the worker may be filling.
    """

    def __init__(self, collate: Collate, ahead: int) -> None:
        self.collate, self._blocks = collate, ahead + 2
        self._ring: SharedRing | None = None

    def __call__(self, clips: Sequence[Clip] | Sequence[DecodedClip]) -> _Parcel:
        if self._ring is None:
            self._ring = SharedRing(self._blocks)  # here, in the worker
        ring, names = self._ring, []

        def room(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
            count = math.prod(shape)
            block = ring.take(dtype.itemsize * count)
            names.append(block.name)
            return _view(block, count, dtype).view(tuple(shape))

        batch = self.collate(clips, room)
        (name,) = names
        return _Parcel(name, batch)


class _Parcel:
    """A batch whose frames lie in a shared block."""

    def __init__(self, name: str, batch: ClipBatch) -> None:
        frames = batch.frames
        self.place = (name, frames.dtype, tuple(frames.shape), frames.stride())
        # Nothing here may refer to the block, which could not be closed otherwise.
        self.batch = batch.with_frames(torch.empty(*frames.shape[:3], 0, 0, dtype=frames.dtype))

    def __reduce__(self) -> tuple[object, ...]:
        return _receive, (*self.place, self.batch)


def _view(block: SharedMemory, count: int, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(block.buf, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)


class Attachments:
    """Blocks of other processes, mapped once: mapping a block for each batch costs more than copying it out.

    A block that was not asked for during twice as many calls as there are blocks is let go: its worker has ended or
    replaced it.
    """

    def __init__(self) -> None:
        self._blocks: dict[str, tuple[SharedMemory, int]] = {}  # with the number of the call that used it last
        self._calls = 0
        self._lock = threading.Lock()  # loaders that pin memory receive in threads of their own

    def __len__(self) -> int:
        return len(self._blocks)

    def copy(self, name: str, count: int, dtype: torch.dtype) -> Tensor:
        """The first ``count`` elements of the block ``name``."""
        with self._lock:
            self._calls += 1
            block = self._blocks[name][0] if name in self._blocks else SharedMemory(name)
            self._blocks[name] = (block, self._calls)
            oldest = self._calls - 2 * len(self._blocks)
            for other, (unused, call) in list(self._blocks.items()):
                if call < oldest:
                    del self._blocks[other]
                    unused.close()
            return _view(block, count, dtype).clone()


_attached = Attachments()


def _receive(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...], batch: ClipBatch
) -> ClipBatch:
    frames = _attached.copy(name, math.prod(shape), dtype)
    return batch.with_frames(frames.as_strided(shape, strides))
