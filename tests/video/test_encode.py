"""Video files, checked by the pixels that come out of them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from stdetr.video.encode import write_video


def decode(path: Path) -> tuple[list[np.ndarray], float, str, str]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert stream.average_rate is not None
        return frames, float(stream.average_rate), stream.codec_context.name, str(stream.codec_context.pix_fmt)


def test_video_is_h264_with_the_frames_that_went_in(tmp_path: Path):
    frames = [np.full((48, 64, 3), value, np.uint8) for value in (20, 120, 220)]
    path = write_video(tmp_path / "deep" / "a.mp4", frames, 29.97)
    decoded, fps, codec, pixels = decode(path)
    assert (codec, pixels) == ("h264", "yuv420p")
    assert fps == pytest.approx(29.97, abs=0.001)
    assert [round(float(frame.mean())) for frame in decoded] == pytest.approx([20, 120, 220], abs=2)
    assert [item.name for item in path.parent.iterdir()] == ["a.mp4"]


def test_colours_are_rgb_and_odd_sizes_are_filled_up(tmp_path: Path):
    frame = np.zeros((47, 63, 3), np.uint8)
    frame[..., 0] = 250
    decoded, *_ = decode(write_video(tmp_path / "a.mp4", [frame] * 2, 5))
    assert decoded[0].shape == (48, 64, 3)
    assert decoded[0][20, 30].tolist() == pytest.approx([250, 0, 0], abs=8)
    assert decoded[0][47, 63].tolist() == pytest.approx([250, 0, 0], abs=8)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", [np.zeros((16, 16, 3), np.uint8)], 5)
    before = path.read_bytes()

    def interrupted():
        yield np.zeros((16, 16, 3), np.uint8)
        raise RuntimeError("decoder")

    with pytest.raises(RuntimeError, match="decoder"):
        write_video(path, interrupted(), 5)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("gop", [None, 4])
def test_key_frames_come_as_often_as_asked(tmp_path: Path, gop: int | None):
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    path = write_video(tmp_path / "a.mp4", (np.roll(noise, t, 1) for t in range(10)), 5, gop=gop)
    with av.open(str(path)) as container:
        keys = [n for n, packet in enumerate(p for p in container.demux(video=0) if p.size) if packet.is_keyframe]
    assert keys == ([0] if gop is None else [0, 4, 8])


def test_wrong_frames_are_named(tmp_path: Path):
    path, frame = tmp_path / "a.mp4", np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match=r"fps=0 of .* must be positive"):
        write_video(path, [frame], 0)
    with pytest.raises(ValueError, match="frame 0 must be h,w,3 uint8"):
        write_video(path, [frame.astype(np.float32)], 5)
    with pytest.raises(ValueError, match=r"frame 1 is \(8, 16\), the first one was \(16, 16\)"):
        write_video(path, [frame, frame[:8]], 5)
    with pytest.raises(ValueError, match="no frame to write"):
        write_video(path, [], 5)
    assert list(tmp_path.iterdir()) == []
