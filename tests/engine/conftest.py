"""A toy benchmark of a few short videos and a run that takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig

from stdetr.config import compose


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy")


class Tiny:
    """Composes ``stdetr train`` for a tiny run in ``folder``, with further overrides."""

    def __init__(self, toy_root: Path) -> None:
        self.toy_root = toy_root

    def words(self, folder: Path, *overrides: str) -> list[str]:
        return [
            "experiment=toy",
            f"paths.data={self.toy_root}",
            f"output_dir={folder}",
            "data.benchmark.frame_size=64",
            "data.benchmark.frames=8",
            "data.benchmark.splits.train.videos=6",
            "data.benchmark.splits.val.videos=2",
            "data.benchmark.splits.test.videos=2",
            "data.frames=3",
            "data.loader.batch_size=2",
            "model.width=32",
            "model.queries=6",
            "model.feed_forward=32",
            "model.detector.neck.norm_groups=4",
            "trainer.max_steps=6",
            "trainer.log_every=2",
            "trainer.save_every=0",
            "trainer.threads=2",
            "logger=jsonl",
            "viz.samples=0",
            *overrides,
        ]

    def __call__(self, folder: Path, *overrides: str) -> DictConfig:
        return compose("train", self.words(folder, *overrides))


@pytest.fixture(scope="session")
def compose_tiny(toy_root: Path) -> Tiny:
    return Tiny(toy_root)


@pytest.fixture
def tiny(compose_tiny: Tiny, tmp_path: Path):
    """A function that composes ``stdetr train`` for a tiny run of that name, with further overrides."""
    return lambda name="run", *overrides: compose_tiny(tmp_path / name, *overrides)
