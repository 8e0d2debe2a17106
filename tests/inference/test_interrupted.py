"""Predicting what breaks: interrupted runs, damaged files among others, shards, long streams."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from stdetr import config as configs
from stdetr.config import compose, instantiate
from stdetr.data.transforms import ClipTransform
from stdetr.inference import predict
from stdetr.inference.detector import Detector
from stdetr.inference.journal import Journal, pack, unpack
from stdetr.inference.predict import PROGRESS, run
from stdetr.structures import ClassNames, Tubes
from stdetr.video.encode import write_video
from stdetr.video.open import list_sources, open_source

LENGTH = 23
CLASSES = ClassNames((7, 3, 5), ("red", "green", "blue"))
RESULTS = ("predictions.json", "detections.csv", "tracks.txt")


def journey(length: int = LENGTH) -> list:
    return [((6 + 2 * t, 10, 12), (60 - 2 * t, 40, 10) if 4 <= t < 10 else None, None) for t in range(length)]


@pytest.fixture
def trained(tmp_path: Path, write_run) -> Path:
    return write_run(tmp_path / "run", target="colour_models.ColourDetector")


@pytest.fixture
def videos(tmp_path: Path, squares) -> Path:
    folder = tmp_path / "videos"
    for number in range(4):
        write_video(folder / f"v{number}.mp4", squares(journey(6 + number)), 12.0, crf=4, gop=4)
    return folder


def command(trained: Path, source: Path | str, out: Path, *more: str) -> list[str]:
    return [f"checkpoint={trained}", f"source={source}", f"output_dir={out}", "device=cpu", "overlay=false",
            "sampling_figure=false", *more]  # fmt: skip


def results(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.name in RESULTS or path.name == "overlay.mp4"
    }


class KilledError(RuntimeError):
    """Stands for a kill: no handler of the code under test catches it."""


class Interrupted:
    """A source that kills the run when frame ``at`` is read for the first time."""

    def __init__(self, source, at: int) -> None:
        self.source, self.at = source, at
        self.name, self.size, self.fps, self.corrupt = source.name, source.size, source.fps, set()

    def __len__(self) -> int:
        return len(self.source)

    def read(self, numbers):
        return self.source.read(numbers)

    def iterate(self, start=0, stop=None, step=1):
        for number, frame in self.source.iterate(start, stop, step):
            if number >= self.at:
                self.at = 10**9
                raise KilledError
            yield number, frame


def causal_model():
    torch.manual_seed(0)
    overrides = ["model=small", "model.classes=3", "model.causal=true", "model.encoder_layers=1"]
    model = instantiate(compose("train", overrides).model.detector)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("at", [2, 9, 22])
@pytest.mark.parametrize(("causal", "overlap", "step"), [(False, 2, 1), (False, 0, 1), (False, 3, 2), (True, 2, 1)])
def test_a_stream_goes_on_where_a_kill_ended_it(
    tmp_path: Path, colour_detector, squares, array_source, causal: bool, overlap: int, step: int, at: int
):
    model = causal_model() if causal else colour_detector(0.25)
    transform = ClipTransform([], mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    detector = Detector(model, CLASSES, transform, clip_length=5, overlap=overlap, step=step, score_threshold=0.02)
    video = Interrupted(array_source(squares(journey())), at)
    whole = list(detector.stream(video.source))
    with pytest.raises(KilledError):
        list(detector.stream(video, journal=Journal(tmp_path / PROGRESS, "key")))
    journal = Journal(tmp_path / PROGRESS, "key")
    windows = len(getattr(model, "windows", []))
    again = list(detector.stream(video, journal=journal))
    for name in ("frame_index", "boxes", "scores", "labels", "track_ids", "present"):
        for a, b in zip(whole, again, strict=True):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-5, rtol=1e-5)
    if not causal:
        assert len(model.windows) - windows == len(set(model.windows[:windows])) - journal.records, "none twice"


def test_records_lose_no_digit_and_a_torn_line_is_dropped(tmp_path: Path):
    tubes = Tubes(torch.rand(2, 3, 4), torch.rand(2, 3), torch.tensor([0, 2]), torch.tensor([-1, -1]),
                  torch.tensor([4, 5, 6]), torch.rand(2), torch.rand(2, 3) > 0.5)  # fmt: skip
    nothing = tubes.select(torch.zeros(2, dtype=torch.bool))
    path = tmp_path / "p.jsonl"
    journal = Journal(path, "a")
    for each in (tubes, nothing):
        journal.append(pack(each))
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"boxes": [[')
    journal = Journal(path, "a")
    assert journal.records == 2
    for record, expected in zip(journal, (tubes, nothing), strict=True):
        found = unpack(record)
        for name in ("boxes", "scores", "labels", "track_ids", "frame_index", "tube_scores", "present"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name
    journal.append(pack(tubes))
    journal.close()
    assert Journal(path, "a").records == 3
    assert Journal(path, "b").records == 0, "another run's"
    assert Journal(path, "a").records == 0


def test_a_killed_process_goes_on_and_gives_the_same_bytes(tmp_path: Path, trained: Path, squares):
    video = write_video(tmp_path / "long.mp4", squares(journey(20) * 3), 12.0, crf=4, gop=10)
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(configs.compose("predict", command(trained, video, whole)))
    assert not (whole / PROGRESS).exists()
    # The process kills itself in the middle of a line of its journal.
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); import conftest, types\n"
        "module = types.ModuleType('colour_models'); module.ColourDetector = conftest.ColourDetector\n"
        "sys.modules['colour_models'] = module\n"
        "from stdetr.inference import journal; from stdetr.cli import main\n"
        "append, count = journal.Journal.append, [0]\n"
        "def dying(self, record):\n"
        "    count[0] += 1\n"
        "    if count[0] == 12: self._file.write(b'{\"box'); self._file.flush(); os.kill(os.getpid(), 9)\n"
        "    append(self, record)\n"
        "journal.Journal.append = dying\n"
        "main(['predict', *sys.argv[2:]])\n"
    )
    own = "trust=colour_models.ColourDetector"
    words = [sys.executable, "-c", code, str(Path(__file__).parent), *command(trained, video, out, own)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run(words, env=environment, capture_output=True, check=False).returncode == -9
    assert len((out / PROGRESS).read_bytes().splitlines()) == 1 + 11 + 1
    run(configs.compose("predict", command(trained, video, out)))
    assert results(out) == results(whole)
    assert not (out / PROGRESS).exists()
    # Another setting is another run.
    Journal(out / PROGRESS, "of another run").append({})
    run(configs.compose("predict", command(trained, video, out, "fill_gap=0")))


def test_results_so_far_are_written_as_the_run_goes(
    tmp_path: Path, trained: Path, squares, monkeypatch: pytest.MonkeyPatch
):
    video = write_video(tmp_path / "v.mp4", squares(journey()), 12.0, crf=4)
    monkeypatch.setattr(predict, "WRITE_SECONDS", 0.0)
    seen = []
    to_csv = predict.VideoPredictions.to_csv
    monkeypatch.setattr(
        predict.VideoPredictions, "to_csv", lambda self, path: (seen.append(len(self)), to_csv(self, path))[1]
    )
    run(configs.compose("predict", command(trained, video, tmp_path / "out")))
    assert len(seen) >= 6
    assert seen == sorted(seen)
    assert seen[0] < seen[-1]


def damaged(folder: Path, squares) -> Path:
    """A video whose frames 12 on cannot all be decoded."""
    path = write_video(folder / "bad.mp4", squares(journey(30)), 12.0, crf=4, gop=6)
    content = bytearray(path.read_bytes())
    at = content.index(b"mdat") + 4
    middle = at + (len(content) - at) // 2
    content[middle : middle + 60] = bytes(60)
    path.write_bytes(content)
    return path


def test_a_damaged_frame_stops_or_is_skipped_and_nothing_is_lost(
    tmp_path: Path, trained: Path, squares, capsys: pytest.CaptureFixture[str]
):
    video, out = damaged(tmp_path, squares), tmp_path / "out"
    with pytest.raises(ValueError, match=r"bad\.mp4.*the results in .* end at frame \d+; with on_error=skip") as caught:
        run(configs.compose("predict", command(trained, video, out)))
    last = int(str(caught.value).split("end at frame ")[1].split(";")[0])
    rows = (out / "detections.csv").read_text().splitlines()[1:]
    assert 5 <= last < 29
    assert max(int(row.split(",")[0]) for row in rows) == last
    (found,) = run(configs.compose("predict", command(trained, video, out, "on_error=skip")))
    said = capsys.readouterr().out
    assert "goes on after" in said
    assert f"{30 - len(found.info.frame_index)} frames left out" in said
    assert found.info.frame_index[: last + 1] == tuple(range(last + 1))
    assert found.info.frame_index[-1] == 29
    # What goes on is what a run with on_error=skip gives from the start.
    (whole,) = run(configs.compose("predict", command(trained, video, tmp_path / "skip", "on_error=skip")))
    assert whole.info.frame_index == found.info.frame_index
    assert results(out) == results(tmp_path / "skip")
    keep = ("on_error=skip", "on_corrupt=keep", "overlay=true")
    (kept,) = run(configs.compose("predict", command(trained, video, out, *keep)))
    assert len(open_source(out / "overlay.mp4")) == len(kept.info.frame_index)
    assert len(kept.info.frame_index) > len(found.info.frame_index)
    assert "damaged and kept" in capsys.readouterr().out
    with pytest.raises(ValueError, match="on_error=ignore is unknown, it may be stop or skip"):
        run(configs.compose("predict", command(trained, video, out, "on_error=ignore")))


def test_shards_of_many_videos_give_the_bytes_of_one_process(
    tmp_path: Path, trained: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
):
    one, many = tmp_path / "one", tmp_path / "many"
    assert len(run(configs.compose("predict", command(trained, videos, one, "overlay=true")))) == 4
    for shard in range(3):
        run(configs.compose("predict", command(trained, videos, many, "overlay=true", f"shard={shard}/3")))
    assert len(results(one)) == 4 * 4
    assert results(one) == results(many)
    both = [sorted(str(path.relative_to(root)) for path in root.rglob("*")) for root in (one, many)]
    assert both[0] == both[1]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    (second,) = run(configs.compose("predict", command(trained, videos, tmp_path / "rank")))
    assert second.info.name == "v1.mp4"
    for shard in ("3/3", "1", "a/b"):
        with pytest.raises(ValueError, match=rf"shard={shard} must be i/n"):
            run(configs.compose("predict", command(trained, videos, many, f"shard={shard}")))


def test_a_bad_video_is_told_at_the_end_and_the_others_are_done_once(
    tmp_path: Path, trained: Path, videos: Path, capsys: pytest.CaptureFixture[str]
):
    (videos / "v1.mp4").write_text("no video")
    (videos / "._v2.mp4").write_text("a side file")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"1 of 4 videos failed, the others are done: .*v1\.mp4 is not a video"):
        run(configs.compose("predict", command(trained, videos, out)))
    assert sorted(path.name for path in out.iterdir()) == ["v0", "v2", "v3"]
    before = {name: (out / name).stat().st_mtime_ns for name in ("v0/tracks.txt", "v3/tracks.txt")}
    (videos / "v1.mp4").write_bytes((videos / "v2.mp4").read_bytes())
    (again,) = run(configs.compose("predict", command(trained, videos, out)))
    assert again.info.name == "v1.mp4"
    assert capsys.readouterr().out.count("done by the run before") == 3
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert not list(out.rglob(PROGRESS))
    # Nothing is left unfinished, so the command begins anew.
    assert len(run(configs.compose("predict", command(trained, videos, out)))) == 4


def test_what_names_several_videos(tmp_path: Path, videos: Path):
    files = [str(videos / f"v{n}.mp4") for n in range(4)]
    assert list_sources(str(videos)) == files
    assert list_sources(str(videos / "v[01].mp4")) == files[:2]
    assert list_sources(files[1:3]) == files[1:3]
    (tmp_path / "list.txt").write_text("\n".join(files[2:]) + "\n\n")
    assert list_sources(str(tmp_path / "list.txt")) == files[2:]
    assert list_sources(files[0]) == files[:1]
    assert list_sources("nothing/*.mp4") == ["nothing/*.mp4"]
    (videos / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match="holds 4 videos and 1 images"):
        list_sources(str(videos))
    assert predict._names(["a/x.mp4", "b/y.mp4"]) == ["x", "y"]
    assert predict._names(["a/x.mp4", "a/x.avi"]) == ["x.mp4", "x.avi"]
    assert predict._names(["a/x.mp4", "b/x.mp4"]) == ["0_x.mp4", "1_x.mp4"]


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_memory_and_speed_are_flat_over_20000_frames(tmp_path: Path, colour_detector, causal: bool):
    class Endless:
        name, size, fps, corrupt = "endless", (24, 32), 10.0, set()

        def __len__(self) -> int:
            return 20_000 if not causal else 5_000

        def iterate(self, start=0, stop=None, step=1):
            for t in range(start, len(self)):
                frame = np.full((24, 32, 3), 30, np.uint8)
                frame[6:14, t % 20 : t % 20 + 8, 0] = 230
                yield t, frame

    model = causal_model() if causal else colour_detector(0.25)
    if not causal:  # the fake would note every window
        model.detect = lambda tokens, frame_mask=None, frame_index=None: type(model).detect(model, tokens, frame_mask)
    detector = Detector(model, CLASSES, ClipTransform([], mean=(0.4,) * 3, std=(0.2,) * 3), clip_length=5, overlap=2)
    video = Endless()
    tenth, marks, frames = len(video) // 10, [], 0
    for clip in detector.stream(video, journal=Journal(tmp_path / PROGRESS, "key")):
        frames += len(clip.frame_index)
        if frames // tenth > len(marks):
            marks.append((_resident(), time.process_time()))
    assert frames == len(video)
    memory, clock = zip(*marks, strict=True)
    assert memory[-1] <= 1.02 * memory[1]
    seconds = np.diff(clock)
    assert np.median(seconds[-3:]) <= 1.3 * np.median(seconds[:3])


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
