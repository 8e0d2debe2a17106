"""Batches of clips in an order that depends on seed and epoch alone, shared out among processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from stdetr.data.collate import Collate
from stdetr.data.dataset import ClipDataset
from stdetr.structures import ClipBatch

Share = tuple[int, int]
"""(rank, processes): the part of the work that a process takes."""
Batch = list[tuple[int, int]]
"""The ``(epoch, clip number)`` of each clip."""


class EpochBatches(Sampler[Batch]):
    """A process's share of the training batches.

    Each pass over the clips has a new order, drawn from ``(seed, epoch)``; a smaller last batch is dropped, unless it
    is the only one.

    batch_size: clips per step of all processes together.  Each process takes a slice; slices differ by at most one
        clip, and their union does not depend on the number of processes.

    Raises ValueError where a process would get no clip.
    """

    def __init__(self, clips: int, batch_size: int, *, seed: int = 0, share: Share = (0, 1)) -> None:
        rank, processes = share
        if batch_size < 1:
            raise ValueError(f"data.loader.batch_size must be at least 1, got {batch_size}")
        if batch_size < processes:
            raise ValueError(
                f"data.loader.batch_size={batch_size} counts the clips of all {processes} processes together; "
                f"it must be at least {processes}"
            )
        if clips < processes:
            raise ValueError(f"an epoch has {clips} clips, too few for {processes} processes")
        self.clips, self.batch_size, self.seed = clips, min(batch_size, clips), seed
        self.rank, self.processes = rank, processes
        self.epoch = self.start = 0

    def start_at(self, epoch: int, batch: int = 0) -> None:
        """Begin the next pass at ``batch`` of ``epoch``."""
        self.epoch, self.start = epoch, batch

    def __len__(self) -> int:
        return self.clips // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        clips = np.random.default_rng([self.seed, self.epoch, 3]).permutation(self.clips)
        for batch in range(self.start, len(self)):
            numbers = clips[batch * self.batch_size : (batch + 1) * self.batch_size]
            part = np.array_split(numbers, self.processes)[self.rank]
            yield [(self.epoch, int(number)) for number in part]


def video_batches(
    videos: np.ndarray, batch_size: int, *, share: Share = (0, 1), workers: int = 1, without: Collection[int] = ()
) -> list[Batch]:
    """A process's share of the batches that show every clip once, those of a video in order.

    Whole videos are assigned, the longest first, each to the process with the fewest clips so far; and in the same way
    to the workers of a process, whose batches are taken in turn, as a loader deals them: each worker reads consecutive
    batches.  A batch holds clips of one video only, so batches and results do not depend on the number of processes.

    videos: the video of each clip; without: those that are left out
    """
    if not batch_size or batch_size < 1:
        raise ValueError(f"data.loader.eval_batch_size must be at least 1, got {batch_size}")
    order = np.argsort(videos, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(videos[order])) + 1) if len(order) else []
    groups = [group for group in groups if videos[group[0]] not in without]
    rank, processes = share
    parts = _dealt(_dealt(groups, processes)[rank], workers)
    lines = [
        [
            [(0, int(number)) for number in group[first : first + batch_size]]
            for group in part
            for first in range(0, len(group), batch_size)
        ]
        for part in parts
    ]
    return [batch for turn in zip_longest(*lines) for batch in turn if batch is not None]


def _dealt(groups: Sequence[np.ndarray], parts: int) -> list[list[np.ndarray]]:
    """The groups in parts of about equal length, in each in the order given."""
    load, chosen = [0] * parts, [[] for _ in range(parts)]
    for place in sorted(range(len(groups)), key=lambda place: -len(groups[place])):
        least = load.index(min(load))
        load[least] += len(groups[place])
        chosen[least].append(place)
    return [[groups[place] for place in sorted(part)] for part in chosen]


class ClipLoader(DataLoader[ClipBatch]):
    """A DataLoader over clips; :meth:`start_at` sets the epoch and batch at which the next pass begins."""

    def start_at(self, epoch: int, batch: int = 0) -> None:
        batches = self.batch_sampler
        assert isinstance(batches, EpochBatches)
        batches.start_at(epoch, batch)

    def __iter__(self) -> Iterator[ClipBatch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for frames, rest in super().__iter__():
            yield replace(pickle.loads(rest), frames=frames)


class _Parcel:
    """Collates clips into a tensor of frames and the rest as bytes.

    Between processes torch sends each tensor through a separate file descriptor: with a few tensors per clip a worker
    would run out of them.
    """

    def __init__(self, collate: Collate) -> None:
        self.collate = collate

    def __call__(self, clips: Sequence) -> tuple[Tensor, bytes]:
        batch = self.collate(clips)
        return batch.frames, pickle.dumps(replace(batch, frames=batch.frames[..., :0].clone()))


def _start_worker(_: int) -> None:
    # One decoding thread per worker: more would only fight the training process for the cores.
    torch.set_num_threads(1)
    # Ctrl-C and a scheduler's signals reach the whole group of processes.  The run finishes its step, with its workers.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # torch's workers watch the process that forked them.  With a fork server that is the server, which lives as long as
    # any worker does: after a kill of the training process both would stay forever.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def build_loader(
    dataset: ClipDataset,
    batch_size: int,
    *,
    shuffle: bool,
    num_workers: int = 0,
    seed: int = 0,
    pad_to: int = 32,
    prefetch: int = 2,
    pin_memory: bool = False,
    start_method: str = "forkserver",
    timeout: float = 0.0,
    share: Share = (0, 1),
    without: Collection[int] = (),
) -> ClipLoader:
    """A loader whose batches do not depend on the number of workers, nor, taken together, on that of processes.

    shuffle: training (:class:`EpochBatches`), otherwise every clip once (:func:`video_batches`)
    num_workers: 0 loads in this process.  Workers start by ``spawn`` or ``forkserver``; fork would deadlock decoders.
        They live as long as the loader
    prefetch: batches that each worker prepares ahead, which bounds the memory
    pin_memory: where there is a GPU, put frames in page-locked memory
    without: videos (their positions in the index) that are left out where not shuffled
    timeout: seconds to wait for a batch of a worker before the run ends with an error; 0 waits forever

    Raises ValueError for settings that give no batch.
    """
    if num_workers < 0:
        raise ValueError(f"data.loader.num_workers must be at least 0, got {num_workers}")
    if start_method not in ("spawn", "forkserver"):
        raise ValueError(f"data.loader.start_method must be spawn or forkserver, got {start_method!r}")
    context = multiprocessing.get_context(start_method) if num_workers else None
    if context is not None and start_method == "forkserver":
        # The server imports torch once; workers then start in milliseconds.  It loads no decoder, so forks are safe.
        context.set_forkserver_preload(["stdetr.data.dataset"])
    if shuffle:
        batches = EpochBatches(len(dataset), batch_size, seed=seed, share=share)
    else:
        batches = video_batches(dataset.videos(), batch_size, share=share, workers=max(num_workers, 1), without=without)
    return ClipLoader(
        dataset,  # pyright: ignore[reportArgumentType] - a loader of batches over a dataset of clips
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_Parcel(Collate(pad_to, dataset.transforms.pixels)),
        pin_memory=pin_memory and torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        multiprocessing_context=context,
        prefetch_factor=prefetch if num_workers else None,
        persistent_workers=num_workers > 0,
        timeout=timeout if num_workers else 0,
        # Starting a pass draws a number, which must not come from the global generator.
        generator=torch.Generator().manual_seed(seed),
    )
