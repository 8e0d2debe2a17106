"""The data of a run: splits, samplers, transforms and loaders, built from ``conf/data/*.yaml``."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import nn

from stdetr.data.coco_vid import CocoVid, read_coco_vid
from stdetr.data.dataset import ClipDataset
from stdetr.data.loader import ClipLoader, Share, build_loader
from stdetr.data.sampling import ClipSampler
from stdetr.data.subsets import thin
from stdetr.data.transforms import ClipTransform
from stdetr.structures import ClassNames
from stdetr.video.cache import JpegCache, NoCache, make_cache
from stdetr.video.probe import probe_videos

SPLITS = ("train", "val", "test")


class Benchmark(Protocol):
    """A data set that can generate itself."""

    def directory(self, root: str | Path) -> Path:
        """Where under ``root`` it is, or will be."""
        ...

    def prepare(self, root: str | Path) -> Path:
        """Generate what is missing under ``root``; returns the folder with the annotation files."""
        ...


@dataclass(frozen=True)
class LoaderSettings:
    """The keys of ``data.loader``; see :func:`~stdetr.data.loader.build_loader`.

    batch_size: clips of one training step, on all processes together
    eval_batch_size: clips of one forward pass of evaluation, on each process

    Raises ValueError for numbers that are too small.
    """

    batch_size: int = 4
    eval_batch_size: int = 1
    num_workers: int = 0
    pad_to: int = 32
    prefetch: int = 2
    pin_memory: bool = False
    start_method: str = "forkserver"
    timeout: float = 0.0

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "eval_batch_size": 1, "num_workers": 0, "pad_to": 1, "prefetch": 1, "timeout": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value < bound:
                raise ValueError(f"data.loader.{name} must be at least {bound}, got {value}")


class DataModule:
    """Datasets and loaders of the splits of one data set.

    root:  folder that holds the annotation files and, below it, what their file names are relative to
    train, val, test: names of the annotation files in ``root``; None where there is no such split
    benchmark: makes the data set when it is absent (the toy); files then lie in the folder it returns
    frames: T of the samplers
    strict: a box outside its frame is an error (otherwise it is clipped)
    cache, cache_dir, cache_limit_gb, cache_quality: ``none``, ``memory``, ``disk`` or ``jpeg``, see
        :mod:`stdetr.video.cache`
    on_corrupt: what to do with a frame that its decoder calls damaged: ``stop``, or ``keep`` it with a warning
    probe_seconds: time within which another process must be able to open each video file; None skips that check

    Raises ValueError or FileNotFoundError in one line for keys and files that do not fit.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        train: str | None,
        val: str | None,
        test: str | None,
        train_sampler: ClipSampler,
        eval_sampler: ClipSampler,
        frames: int,
        train_transforms: Sequence[nn.Module] = (),
        eval_transforms: Sequence[nn.Module] = (),
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        min_side: float = 1.0,
        min_share: float = 0.0,
        loader: LoaderSettings | Mapping[str, object] | None = None,
        benchmark: Benchmark | None = None,
        backend: str = "av",
        strict: bool = True,
        cache: str = "none",
        cache_dir: str | Path | None = None,
        cache_limit_gb: float = 2.0,
        cache_quality: int = 95,
        probe_seconds: float | None = None,
        on_corrupt: str = "stop",
        seed: int = 0,
    ) -> None:
        self._root, self._files = Path(root), {"train": train, "val": val, "test": test}
        self.train_sampler, self.eval_sampler, self.frames = train_sampler, eval_sampler, frames
        self._train_transform = ClipTransform(
            list(train_transforms), mean=mean, std=std, min_side=min_side, min_share=min_share
        )
        self.eval_transform = ClipTransform(list(eval_transforms), mean=mean, std=std)
        self.loader = loader if isinstance(loader, LoaderSettings) else LoaderSettings(**dict(loader or {}))  # pyright: ignore[reportArgumentType]
        self.benchmark, self.backend, self.strict, self.seed = benchmark, backend, strict, seed
        self.on_corrupt = on_corrupt
        self._cache = make_cache(cache, cache_dir, cache_limit_gb, cache_quality, on_corrupt)
        self._probe_seconds = probe_seconds
        self._probe_record = None if cache_dir is None else Path(cache_dir) / "probed.json"
        self._indices: dict[str, CocoVid] = {}

    def read(self, *splits: str) -> ClassNames:
        """Read and probe these splits now, so that errors show up early; returns the classes."""
        for split in splits:
            self.index(split)
        return self.classes

    @cached_property
    def root(self) -> Path:
        """The folder that the annotation files lie in; a benchmark that is absent is generated first."""
        if self.benchmark is not None:
            return self.benchmark.prepare(self._root)
        if not self._root.is_dir():
            raise FileNotFoundError(f"data.root={self._root} is not a folder; give the folder of the annotation files")
        return self._root

    def is_there(self) -> bool:
        """False where a benchmark would have to be generated."""
        return self.benchmark is None or self.benchmark.directory(self._root).is_dir()

    def annotations(self, split: str) -> Path:
        """The annotation file of a split."""
        if split not in self._files:
            near = difflib.get_close_matches(split, SPLITS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"split {split!r} is unknown, it may be {', '.join(SPLITS)}{hint}")
        name = self._files[split]
        if name is None:
            raise ValueError(f"this data set has no split {split!r}: data.{split} is null")
        return self.root / name

    def thinned(self, split: str, windows: int, frames: int, folder: Path) -> str:
        """The name of a split of ``windows`` windows of ``frames`` images of each video of ``split``, for every method
        of this object; its annotation file is written below ``folder``.
        """
        name = f"{split}-{windows}x{frames}"
        if name not in self._files:
            target = (folder / f"{name}.json").resolve()
            self._files[name] = str(thin(self.annotations(split), target, windows, frames))
        return name

    def index(self, split: str) -> CocoVid:
        """The parsed annotation file of a split, read once."""
        if split not in self._indices:
            index = read_coco_vid(self.annotations(split), strict=self.strict)
            self._probe(index)
            self._indices[split] = index
        return self._indices[split]

    def _probe(self, index: CocoVid) -> None:
        """Let another process open each video first, since a worker of this run could hang on it."""
        if not self._probe_seconds:
            return
        names = {index.video_files[video] for video in range(index.videos)} - {""}
        faults = probe_videos(
            [self.root / name for name in sorted(names)],
            backend=self.backend,
            seconds=self._probe_seconds,
            record=self._probe_record,
        )
        if faults:
            first = next(iter(faults.values()))
            more = f" ({len(faults)} such files of {len(names)})" if len(faults) > 1 else ""
            raise ValueError(f"{index.path}: {first}{more}")

    @cached_property
    def classes(self) -> ClassNames:
        """Classes of the training split, or else of the first split that exists."""
        split = next((name for name in SPLITS if self._files[name] is not None), None)
        if split is None:
            raise ValueError("data.train, data.val and data.test are all null: there is no annotation file")
        return self.index(split).classes

    def dataset(self, split: str, *, train: bool, frames: int | None = None) -> ClipDataset:
        """Clips of a split, sampled and transformed as for training or as for evaluation, of ``frames`` frames."""
        index = self.index(split)
        if index.classes.names != self.classes.names or index.classes.ids != self.classes.ids:
            raise ValueError(
                f"{index.path} has the classes {list(index.classes.names)[:5]}..., but training has "
                f"{list(self.classes.names)[:5]}...: the splits of a data set must share their categories"
            )
        sampler = self.train_sampler if train else self.eval_sampler
        return ClipDataset(
            index,
            self.root,
            sampler if frames is None else sampler.with_frames(frames),
            self._train_transform if train else self.eval_transform,
            # A lossy cache serves training alone: numbers do not depend on it, and reading in order needs none.
            cache=self._cache
            if train or not isinstance(self._cache, JpegCache)
            else NoCache(on_corrupt=self.on_corrupt),
            backend=self.backend,
            seed=self.seed,
        )

    def train_dataset(self, frames: int | None = None) -> ClipDataset:
        """Training clips; ``frames`` replaces T."""
        return self.dataset("train", train=True, frames=frames)

    def val_dataset(self, frames: int | None = None) -> ClipDataset:
        """Validation clips that cover every frame once."""
        return self.dataset("val", train=False, frames=frames)

    def test_dataset(self, frames: int | None = None) -> ClipDataset:
        """Test clips that cover every frame once."""
        return self.dataset("test", train=False, frames=frames)

    def train_loader(
        self, *, frames: int | None = None, batch_size: int | None = None, share: Share = (0, 1)
    ) -> ClipLoader:
        """Training batches of epoch 0; ``loader.start_at`` selects another epoch and first batch.

        frames, batch_size: replace T and the clips of a step.  With ``frames`` alone the batch grows or shrinks so that
        it shows about as many frames as before (T = 1 gets five times the clips of T = 5).
        share: (rank, processes), for a process that takes its part of each batch
        """
        if batch_size is None:
            batch_size = self.loader.batch_size
            if frames is not None:
                batch_size = max(1, round(batch_size * self.train_sampler.frames / frames))
        return self._loader(self.train_dataset(frames), batch_size, train=True, share=share)

    def eval_loader(
        self,
        split: str = "val",
        *,
        frames: int | None = None,
        batch_size: int | None = None,
        share: Share = (0, 1),
        without: Collection[int] = (),
    ) -> ClipLoader:
        """Batches that cover every frame of a split once, without augmentation; in order, or with one run of batches
        per worker in turn.

        share: (rank, processes), for a process that takes its part of the videos
        without: ids of videos that are left out
        """
        size = batch_size or self.loader.eval_batch_size
        places = np.flatnonzero(np.isin(self.index(split).video_ids, list(without))).tolist()
        dataset = self.dataset(split, train=False, frames=frames)
        return self._loader(dataset, size, train=False, share=share, without=places)

    def _loader(
        self, dataset: ClipDataset, batch_size: int, *, train: bool, share: Share, without: Collection[int] = ()
    ) -> ClipLoader:
        settings = self.loader
        return build_loader(
            dataset,
            batch_size,
            shuffle=train,
            num_workers=settings.num_workers,
            seed=self.seed,
            pad_to=settings.pad_to,
            prefetch=settings.prefetch,
            pin_memory=settings.pin_memory,
            start_method=settings.start_method,
            timeout=settings.timeout,
            share=share,
            without=without,
        )
