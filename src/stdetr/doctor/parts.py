"""The project's own parts: op, video reading and writing, configurations, W&B."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from stdetr.doctor.check import Check


def check_ops() -> Check:
    """Which implementation of the attention op runs, and why."""
    from stdetr.ops import backend

    return Check("op", "ok", str(backend()))


def check_video() -> Iterator[Check]:
    """Writes a short H.264 video and reads it back through decord, as frames of training clips may be read."""
    yield Check("video", *_round_trip())
    program = shutil.which("ffmpeg")
    text = program or "none on the path; PyAV writes and reads videos without it"
    yield Check("ffmpeg", "ok" if program else "note", text)


def _round_trip() -> tuple:
    import numpy as np
    import torch  # noqa: F401  # decord must be imported after torch, or the process may crash

    from stdetr.video.encode import write_video
    from stdetr.video.open import open_source

    versions = f"decord2 {metadata.version('decord2')}, av {metadata.version('av')}"
    levels = [40, 90, 140, 190]
    with tempfile.TemporaryDirectory() as folder:
        frames = [np.full((64, 64, 3), level, np.uint8) for level in levels]
        source = open_source(write_video(Path(folder) / "levels.mp4", frames, 10), backend="decord")
        read = [round(float(frame.mean())) for frame in source.frames(range(len(source)))]
        source.close()
    if len(read) == len(levels) and all(abs(a - b) <= 3 for a, b in zip(read, levels, strict=True)):
        return "ok", f"{versions}: a written H.264 video reads back frame for frame"
    return "broken", f"{versions}: grey levels {levels} read back as {read}", "make clean-env env"


def check_configurations() -> Iterator[Check]:
    """The folder of configurations, and whether each verb's composes."""
    from stdetr.cli.verbs import VERBS
    from stdetr.config import compose, config_dir

    folder = config_dir()
    broken = []
    for verb in VERBS:
        try:
            compose(verb, folder=folder)
        except (ValueError, OSError) as error:
            broken.append(f"{verb}: {error}")
    if broken:
        text = f"{folder}: {'; '.join(broken)}"
        yield Check("configurations", "broken", text, "see STDETR_CONF, or reinstall stdetr")
    else:
        yield Check("configurations", "ok", f"{folder}: {len(VERBS)} verbs compose")


def check_wandb() -> Check:
    """W&B's version and what ``logger.wandb.mode=auto`` means here."""
    from stdetr.logger.wandb import resolve_mode

    asked, mode = os.environ.get("WANDB_MODE"), resolve_mode("auto")
    reason = f"WANDB_MODE={asked}" if asked else "an account is set up" if mode == "online" else "no account"
    return Check("wandb", "ok", f"{metadata.version('wandb')}, runs are {mode} ({reason})")
