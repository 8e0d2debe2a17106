"""Deterministic H.264 files for the toy benchmark."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from stdetr.datasets.toy.settings import ToyEncoder


def encode_h264(path: Path, frames: np.ndarray, settings: ToyEncoder) -> None:
    """Write ``frames`` (T,h,w,3 uint8 RGB, even sides) as an mp4 file; equal frames give equal bytes.

    One thread and the ``bitexact`` flags keep timestamps, versions and thread timing out of the file.  Without
    ``cpu-independent`` x264's AVX-512 code writes different streams from equal frames.
    """
    import av

    height, width = frames.shape[1:3]
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact", "movflags": "+faststart"}) as container:
        stream = container.add_stream(
            "libx264",
            rate=Fraction(settings.fps),
            options={
                "crf": str(settings.crf),
                "preset": settings.preset,
                "flags": "+bitexact",
                "x264-params": f"keyint={settings.gop}:scenecut=0:threads=1:lookahead-threads=1:sliced-threads=0"
                ":cpu-independent=1",
            },
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for array in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
