"""The toy benchmark: generated once, deterministic by seed, as H.264 files with CocoVID annotations."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stdetr.atomic import publish, write_text
from stdetr.datasets.toy.scene import Scene, draw_scene
from stdetr.datasets.toy.settings import ToyBackground, ToyDegradation, ToyEncoder, ToyObjects, ToySplit
from stdetr.datasets.toy.sprites import SPRITE_CLASSES
from stdetr.video.encode import write_video

GENERATOR_VERSION = 2
"""Part of the folder's name: increase it whenever the same settings would give different pixels or boxes."""

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ToyBenchmark:
    """Settings of the benchmark; :meth:`prepare` generates it where it is absent.

    frame_size: side of the square frames in pixels, even
    frames:     frames per video
    classes:    how many of ``SPRITE_CLASSES`` occur
    splits:     ``train``, ``val`` and ``test``

    Raises ValueError for settings that make no video.
    """

    splits: Mapping[str, ToySplit]
    frame_size: int = 96
    frames: int = 24
    classes: int = 4
    objects: ToyObjects = field(default_factory=ToyObjects)
    background: ToyBackground = field(default_factory=ToyBackground)
    degradation: ToyDegradation = field(default_factory=ToyDegradation)
    encoder: ToyEncoder = field(default_factory=ToyEncoder)

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", dict(self.splits))
        wrong = sorted(set(self.splits) ^ set(_SPLITS))
        if wrong:
            raise ValueError(f"data.benchmark.splits must be {', '.join(_SPLITS)}; {wrong[0]!r} is missing or too much")
        if self.frame_size < 32 or self.frame_size % 2:
            raise ValueError(f"data.benchmark.frame_size must be even and at least 32, got {self.frame_size}")
        if self.frames < 1:
            raise ValueError(f"data.benchmark.frames must be at least 1, got {self.frames}")
        if not 1 <= self.classes <= len(SPRITE_CLASSES):
            raise ValueError(f"data.benchmark.classes must be 1 to {len(SPRITE_CLASSES)}, got {self.classes}")
        seeds = {split.seed for split in self.splits.values()}
        if len(seeds) < len(self.splits):
            raise ValueError("data.benchmark.splits need three different seeds, or test videos repeat training videos")

    @property
    def fingerprint(self) -> str:
        """Ten hex digits that change with any setting or with the generator."""
        text = json.dumps({"version": GENERATOR_VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def directory(self, root: str | Path) -> Path:
        """Where under ``root`` the benchmark of these settings lies."""
        return Path(root) / self.fingerprint

    def prepare(self, root: str | Path) -> Path:
        """Generate the benchmark unless it is there; returns its folder.

        The folder appears under its final name only when it is complete, so an interrupted or a parallel run never
        leaves half of it.
        """
        final = self.directory(root)
        if (final / "test.json").is_file():
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
        try:
            total = sum(split.videos for split in self.splits.values())
            with tqdm(total=total, desc=f"generate {final}", unit="video", file=sys.stderr, mininterval=2.0) as bar:
                for name in _SPLITS:
                    self._write_split(temporary, name, bar)
            write_text(temporary / "settings.json", json.dumps(asdict(self), indent=1))
            temporary.chmod(0o755)
            try:
                publish(temporary, final)
            except OSError:
                # Another process was faster; its folder has the same contents.
                if not (final / "test.json").is_file():
                    raise
        finally:
            if temporary.is_dir():
                shutil.rmtree(temporary)
        return final

    def scene(self, split: str, video: int) -> Scene:
        """Video number ``video`` of a split before encoding; depends only on the settings and the number."""
        rng = np.random.default_rng([self.splits[split].seed, video])
        return draw_scene(
            rng,
            classes=self.classes,
            frames=self.frames,
            size=self.frame_size,
            split=self.splits[split],
            objects=self.objects,
            background=self.background,
            degradation=self.degradation,
        )

    def _write_split(self, folder: Path, name: str, bar: tqdm) -> None:
        (folder / "videos" / name).mkdir(parents=True)
        videos, images, annotations = [], [], []
        for number in range(self.splits[name].videos):
            scene = self.scene(name, number)
            file_name = f"videos/{name}/{number:05d}.mp4"
            coder = self.encoder
            write_video(folder / file_name, scene.frames, coder.fps, crf=coder.crf, preset=coder.preset, gop=coder.gop)
            size = {"width": self.frame_size, "height": self.frame_size}
            video_id = number + 1
            videos.append(
                {"id": video_id, "name": f"{name}/{number:05d}", "file_name": file_name, "length": self.frames, **size}
            )
            for t, kind in enumerate(scene.degradation):
                image_id = number * self.frames + t + 1
                images.append({"id": image_id, "video_id": video_id, "frame_id": t, "degradation": kind, **size})
                for track in np.flatnonzero(scene.annotated[:, t]):
                    x1, y1, x2, y2 = scene.boxes[track, t]
                    box = [round(float(value), 2) for value in (x1, y1, x2 - x1, y2 - y1)]
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": image_id,
                            "video_id": video_id,
                            "category_id": int(scene.labels[track]) + 1,
                            "instance_id": int(track) + 1,
                            "bbox": box,
                            "area": round(box[2] * box[3], 2),
                            "iscrowd": 0,
                            "visibility": round(float(scene.visibility[track, t]), 2),
                        }
                    )
            bar.update()
        categories = [{"id": n + 1, "name": kind.name} for n, kind in enumerate(SPRITE_CLASSES[: self.classes])]
        document = {"videos": videos, "images": images, "annotations": annotations, "categories": categories}
        write_text(folder / f"{name}.json", json.dumps(document))
