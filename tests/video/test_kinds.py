"""Kinds of files that people really have and that packets or headers describe wrongly: each as ffmpeg shows it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stdetr.video.cache import make_cache
from stdetr.video.frame_folder import read_image
from stdetr.video.open import open_source
from stdetr.video.source import VideoSource

H264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")
GROUPS = (*H264, "-g", "12", "-bf", "3")
BACKENDS = ["av", "decord"]


def agrees(source: VideoSource, truth: np.ndarray) -> None:
    """In order, at random and in clips: ffmpeg's frames."""
    assert (len(source), source.size) == (len(truth), truth.shape[1:3])
    np.testing.assert_array_equal(np.stack([frame for _, frame in source.iterate()]), truth)
    order = np.random.default_rng(0).permutation(len(truth))[:12].tolist()
    np.testing.assert_array_equal(source.read(order), truth[order])
    for start in range(0, len(truth) - 5, 5):
        np.testing.assert_array_equal(source.read(range(start, start + 5)), truth[start : start + 5])
    source.close()


@pytest.fixture
def make(encode: Callable[..., Path], ffmpeg: Callable[..., bytes], tmp_path: Path) -> Callable[[str], Path]:
    """A file of each kind."""

    def remuxed(name: str, *before: object, after: tuple[object, ...] = ()) -> Path:
        ffmpeg(*before, "-i", encode("a.mp4", *GROUPS), *after, "-c", "copy", tmp_path / name)
        return tmp_path / name

    def written(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    def ends_early() -> Path:
        content = bytearray(encode("a.mp4", *GROUPS).read_bytes())
        at = content.index(b"elst") + 12
        content[at : at + 4] = (int.from_bytes(content[at : at + 4], "big") // 2).to_bytes(4, "big")
        return written("trim.mp4", content)

    def joined() -> Path:
        part = encode("a.ts", *H264, "-g", "10", "-bf", "0", frames=20).read_bytes()
        return written("joined.ts", part + part)

    def begins_late() -> Path:
        content = encode("b.ts", *GROUPS, "-muxdelay", "0").read_bytes()
        return written("late.ts", content[188 * (len(content) // 188 // 4) :])

    def two_streams(name: str, first: Path, *flags: str) -> Path:
        both = ("-i", first, "-i", encode("a.mp4", *GROUPS), "-map", "0", "-map", "1", "-c", "copy")
        ffmpeg(*both, *flags, tmp_path / name)
        return tmp_path / name

    def cover() -> Path:
        Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "cover.png")
        return two_streams("cover.mp4", tmp_path / "cover.png", "-disposition:v:0", "attached_pic")

    small = ("-disposition:v:0", "0", "-disposition:v:1", "default")
    kinds: dict[str, Callable[[], Path]] = {
        "h264 in avi": lambda: encode("b.avi", *GROUPS),
        "mpeg4 in avi": lambda: encode("x.avi", "-c:v", "mpeg4", "-bf", "2", "-g", "16"),
        "joined streams": joined,
        "begins inside a group": begins_late,
        "ends early by its edit list": ends_early,
        "begins late by its edit list": lambda: remuxed("roll.mp4", "-ss", "0.7"),
        "frames dropped while recording": lambda: encode(
            "gap.avi", "-vf", "select=not(between(n\\,10\\,14))", "-fps_mode", "vfr", "-c:v", "mjpeg"
        ),
        "mirrored": lambda: remuxed("hflip.mp4", "-display_hflip"),
        "upside down": lambda: remuxed("vflip.mp4", "-display_vflip"),
        "turned and mirrored": lambda: remuxed("both.mp4", "-display_rotation", "90", "-display_hflip"),
        "preview first": lambda: two_streams("preview.mp4", encode("s.mp4", *H264, size="32x24"), *small),
        "cover first": cover,
        "packets that show nothing": lambda: encode(
            "alt.webm", "-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-pix_fmt", "yuv420p"
        ),
        "wmv": lambda: encode("a.wmv", "-c:v", "wmv2", "-g", "20"),
        "intra refresh": lambda: encode("refresh.mp4", *H264, "-g", "20", "-x264-params", "intra-refresh=1"),
        "interlaced": lambda: encode("field.mp4", *GROUPS, "-flags", "+ilme+ildct", "-x264-params", "tff=1"),
    }
    return lambda kind: kinds[kind]()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "kind",
    [
        "h264 in avi", "mpeg4 in avi", "joined streams", "begins inside a group", "ends early by its edit list",
        "begins late by its edit list", "frames dropped while recording", "mirrored", "upside down",
        "turned and mirrored", "preview first", "cover first", "packets that show nothing", "wmv", "intra refresh",
        "interlaced",
    ],
)  # fmt: skip
def test_as_ffmpeg_shows_it(
    kind: str, backend: str, make: Callable[[str], Path], decode: Callable[..., np.ndarray]
) -> None:
    if kind == "interlaced":  # ffmpeg converts the colours of each field by itself
        truth = np.stack([frame for _, frame in open_source(make(kind)).iterate()])
    else:
        truth = decode(make(kind), *((128, 96) if kind == "turned and mirrored" else (96, 128)))
    counts = {"joined streams": 40, "ends early by its edit list": 30, "frames dropped while recording": 55}
    assert len(truth) == counts.get(kind, len(truth))
    assert len(truth) >= 30
    agrees(open_source(make(kind), backend=backend), truth)


@pytest.mark.parametrize("name", ["cut.avi", "cut.mp4"])
def test_a_file_that_is_cut_off_is_still_damaged(
    name: str, encode: Callable[..., Path], ffmpeg: Callable[..., bytes], tmp_path: Path
) -> None:
    whole = encode("b.avi", *GROUPS) if name == "cut.avi" else tmp_path / "front.mp4"
    if name == "cut.mp4":
        ffmpeg("-i", encode("a.mp4", *GROUPS), "-c", "copy", "-movflags", "+faststart", whole)
    content = whole.read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(ValueError, match=rf"{name} is damaged: \d+ complete frames of the 60"):
        open_source(tmp_path / name)


@pytest.fixture
def spoilt(encode: Callable[..., Path], tmp_path: Path) -> Path:
    """A file with a broken picture in the middle, which its decoder notices and repairs somehow."""
    content = bytearray(encode("a.mp4", *GROUPS).read_bytes())
    at = len(content) // 2
    content[at : at + 600] = bytes(600)
    (tmp_path / "spoilt.mp4").write_bytes(content)
    return tmp_path / "spoilt.mp4"


@pytest.mark.parametrize("backend", BACKENDS)
def test_damaged_frames_are_refused_or_counted(
    backend: str, spoilt: Path, encode: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    truth = open_source(encode("a.mp4", *GROUPS)).read(range(60))
    source = open_source(spoilt, backend=backend)
    refused = []
    for number in range(60):
        try:
            frame = source.read([number])[0]
        except ValueError as error:
            assert str(spoilt) in str(error)  # noqa: PT017
            refused.append(number)
        else:
            np.testing.assert_array_equal(frame, truth[number], err_msg=f"frame {number} is wrong, not refused")
    assert 1 <= len(refused) <= 40
    with caplog.at_level(logging.WARNING):
        kept = open_source(spoilt, backend=backend, on_corrupt="keep")
        for number in refused:
            try:
                kept.read([number])
            except ValueError as error:
                assert "cannot be decoded" in str(error)  # noqa: PT017 - its picture is lost, not only damaged
    assert kept.corrupt and kept.corrupt <= set(refused)
    assert sum("is damaged; it and others like it are kept" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("kind", ["none", "memory", "disk", "jpeg"])
def test_every_cache_passes_it_on(kind: str, spoilt: Path, tmp_path: Path) -> None:
    for on_corrupt in ("keep", "stop"):  # what was kept is not there for those who refuse it
        cache = make_cache(kind, tmp_path / "cache", 1.0, on_corrupt=on_corrupt)
        try:
            cache.frames(spoilt, range(60), "av")
            assert on_corrupt == "keep"
        except ValueError as error:
            assert "damaged" in str(error)  # noqa: PT017
    with pytest.raises(ValueError, match="on_corrupt=drop is unknown, it may be stop or keep"):
        open_source(spoilt, on_corrupt="drop")


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.tif"])
def test_files_of_several_pictures_are_refused(name: str, tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (8, 6), (25 * n, 0, 0)) for n in range(4)]
    pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:])
    with pytest.raises(ValueError, match=rf"{name} holds 4 pictures"):
        open_source(tmp_path / name)
    pictures[1].save(tmp_path / name)
    assert abs(int(open_source(tmp_path / name).read([0])[0, 0, 0, 0]) - 25) <= 2


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_of_sixteen_bits_the_upper_eight_are_used(name: str, tmp_path: Path) -> None:
    values = np.array([[0, 255, 256], [20000, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    frame = read_image(tmp_path / name)
    assert frame.shape == (2, 3, 3)
    assert frame[..., 0].tolist() == [[0, 0, 1], [78, 128, 255]]  # 20000 // 256 = 78
    assert (frame == frame[..., :1]).all()
    Image.fromarray(values.astype(np.int32) * 9).save(tmp_path / "wide.tif")
    with pytest.raises(ValueError, match=r"wide\.tif has 32 bits per channel"):
        read_image(tmp_path / "wide.tif")
