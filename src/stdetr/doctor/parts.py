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
    """Writes a short H.264 video and reads it back through decord: the path of every training clip."""
    import torch  # noqa: F401  # decord must be imported after torch, or the process may crash

    yield Check("video", *_round_trip())
    program = shutil.which("ffmpeg")
    text = program or "none on the path; PyAV writes and reads videos without it"
    yield Check("ffmpeg", "ok" if program else "note", text)


def _round_trip() -> tuple:
    import av
    import numpy as np
    from decord import VideoReader, cpu

    versions = f"decord2 {metadata.version('decord2')}, av {metadata.version('av')}"
    levels = [40, 90, 140, 190]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "levels.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for level in levels:
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        reader = VideoReader(str(path), ctx=cpu(0), num_threads=1)
        frames = [reader[index].asnumpy() for index in range(len(reader))]
        del reader
    read = [round(float(frame.mean())) for frame in frames]
    right = len(read) == len(levels) and all(abs(a - b) <= 3 for a, b in zip(read, levels, strict=True))
    if right:
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
        yield Check(
            "configurations", "broken", f"{folder}: {'; '.join(broken)}", "see STDETR_CONF, or reinstall stdetr"
        )
    else:
        yield Check("configurations", "ok", f"{folder}: {len(VERBS)} verbs compose")


def check_wandb() -> Check:
    """W&B's version and what ``logger.wandb.mode=auto`` means here."""
    from stdetr.logger.wandb import resolve_mode

    asked = os.environ.get("WANDB_MODE")
    reason = (
        f"WANDB_MODE={asked}" if asked else "an account is set up" if resolve_mode("auto") == "online" else "no account"
    )
    return Check("wandb", "ok", f"{metadata.version('wandb')}, runs are {resolve_mode('auto')} ({reason})")
