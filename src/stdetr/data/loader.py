"""Batches of clips in an order that depends on seed and epoch alone."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import threading
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from stdetr.data.collate import Collate
from stdetr.data.dataset import ClipDataset
from stdetr.data.worker_memory import WorkerCollate
from stdetr.structures import ClipBatch


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of ``(epoch, clip number)``.

    shuffle:   a new order each epoch, drawn from ``(seed, epoch)``
    drop_last: leave out a smaller last batch
    start_batch: batches to leave out at the start of the next pass, for a run that resumes within an epoch
    runs: without shuffling, cut the pass into so many runs of neighbouring batches and take one of each in turn.  A
        loader deals its batches to its workers in turn, so with a run for each worker nobody decodes what another
        one skips
    """

    def __init__(
        self,
        clips: int,
        batch_size: int,
        *,
        shuffle: bool,
        drop_last: bool = False,
        seed: int = 0,
        start_batch: int = 0,
        runs: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"data.loader.batch_size must be at least 1, got {batch_size}")
        if drop_last and clips < batch_size:
            raise ValueError(
                f"data.loader.batch_size={batch_size} is more than the {clips} clips of an epoch and the last batch is "
                "dropped: nothing would be left"
            )
        self.clips, self.batch_size, self.shuffle, self.drop_last = clips, batch_size, shuffle, drop_last
        self.seed, self.epoch, self.start_batch, self.runs = seed, 0, start_batch, runs

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.clips, self.batch_size)
        return whole + (1 if rest and not self.drop_last else 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        clips, batches = np.arange(self.clips), range(len(self))
        if self.shuffle:
            clips = np.random.default_rng([self.seed, self.epoch, 3]).permutation(self.clips)
        elif self.runs > 1:
            batches = in_turn(len(self), self.runs)
        first, self.start_batch = self.start_batch, 0
        for batch in batches[first:]:
            numbers = clips[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, int(number)) for number in numbers]


def in_turn(count: int, runs: int) -> list[int]:
    """0, ..., count - 1 cut into runs whose lengths differ by one at most, the longer first; one of each in turn."""
    starts = [run * (count // runs) + min(run, count % runs) for run in range(runs)]
    return [starts[place % runs] + place // runs for place in range(count)]


class ClipLoader(DataLoader[ClipBatch]):
    """A DataLoader over clips; :meth:`set_epoch` chooses the epoch of the next pass."""

    def set_epoch(self, epoch: int) -> None:
        batches = self.batch_sampler
        assert isinstance(batches, EpochBatches)
        batches.set_epoch(epoch)


def _start_worker(_: int) -> None:
    # One decoding thread a worker: more would only fight the training process for the cores.
    torch.set_num_threads(1)
    keep_freed_memory()
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # torch's workers watch the process that forked them.  With a fork server that is the server, which in turn lives as
    # long as any worker does: where training is killed, both would stay for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def keep_freed_memory() -> bool:
    """Let this process keep freed blocks of up to 32 MB (256 MB of them at most) for the next allocation.

    Frames of a clip are some megabytes that come and go with each clip.  By default glibc gives such blocks back to the
    system, and touching fresh pages again costs more than copying the frames (mallopt(3): M_MMAP_THRESHOLD,
    M_TRIM_THRESHOLD).  Returns False where there is no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mmap_threshold, trim_threshold = -3, -1
    return bool(mallopt(mmap_threshold, 32 << 20)) and bool(mallopt(trim_threshold, 256 << 20))


def build_loader(
    dataset: ClipDataset,
    batch_size: int,
    *,
    shuffle: bool,
    num_workers: int = 0,
    seed: int = 0,
    drop_last: bool = False,
    pad_to: int = 32,
    prefetch: int = 2,
    pin_memory: bool = False,
    persistent: bool = True,
    start_method: str = "forkserver",
    timeout: float = 0.0,
    start_batch: int = 0,
) -> ClipLoader:
    """A loader whose batches do not depend on the number of workers.  Nor does their order, unless they are not
    shuffled: then each worker reads a run of neighbouring clips, and those runs come in turn (:class:`EpochBatches`).

    num_workers: 0 loads in this process.  Workers start by ``spawn`` or ``forkserver``; fork would deadlock decoders
    prefetch: batches that each worker prepares ahead, which bounds the memory
    pin_memory: where there is a GPU, batches lie in page-locked memory
    persistent: keep the workers from one epoch to the next
    timeout: seconds after which a batch that a worker does not deliver ends the run with an error; 0 waits for ever
    start_batch: batches of the first pass to leave out, for resuming

    Raises ValueError for settings that give no batch.
    """
    if num_workers < 0:
        raise ValueError(f"data.loader.num_workers must be at least 0, got {num_workers}")
    if start_method not in ("spawn", "forkserver"):
        raise ValueError(f"data.loader.start_method must be spawn or forkserver, got {start_method!r}")
    keep_freed_memory()
    context = multiprocessing.get_context(start_method) if num_workers else None
    if context is not None and start_method == "forkserver":
        # The server imports torch once; workers then start in milliseconds.  It loads no decoder, so forks are safe.
        context.set_forkserver_preload(["stdetr.data.dataset"])
    batches = EpochBatches(
        len(dataset),
        batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        seed=seed,
        start_batch=start_batch,
        runs=max(num_workers, 1),
    )
    collate = Collate(pad_to, dataset.transforms.pixels)
    return ClipLoader(
        dataset,  # pyright: ignore[reportArgumentType] - a loader of batches over a dataset of clips
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=WorkerCollate(collate, prefetch) if num_workers else collate,
        pin_memory=pin_memory and torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        multiprocessing_context=context,
        prefetch_factor=prefetch if num_workers else None,
        persistent_workers=persistent and num_workers > 0,
        timeout=timeout if num_workers else 0,
        # Starting a pass draws a number.  Drawn from the global generator, it would give a run that was stopped, and so
        # starts one pass more, other noise than a run that was not.
        generator=torch.Generator().manual_seed(seed),
    )
