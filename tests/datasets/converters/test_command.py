"""The verb: convert, validate, stats and show, end to end."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf

from stdetr.cli.data import run
from stdetr.config import compose
from stdetr.datasets.stats import measure, size_shares, table
from stdetr.video.open import open_source
from stdetr.viz.annotations import show
from stdetr.viz.style import UNCONFIRMED, track_colour

# Two tracks in 4 frames of 64x48: track 1 moves 3 px right and 4 px down a frame, track 2 stands still and skips one.
ROWS = """1,1,0,0,16,16,1
2,1,3,4,16,16,1
3,1,6,8,16,16,1
1,2,30,0,34,48,1
3,2,30,0,34,48,1
4,9,0,0,5,5,0
"""


@pytest.fixture
def converted(tmp_path, write, video):
    source = tmp_path / "source"
    video(source / "street.avi", 4, (64, 48))
    write(source / "gt.txt", ROWS)
    keys = [f"source={source}", f"output={tmp_path / 'out'}", "splits.train=[1,3]", "splits.val=[4,4]"]
    assert run(compose("data", ["action=convert", "format=mot", *keys])) == 0
    return tmp_path / "out"


def test_convert_prints_the_counts(converted, capsys, tmp_path):
    run(compose("data", ["action=convert", "format=mot", f"source={tmp_path / 'source'}", f"output={converted}"]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["file", "videos", "images", "boxes", "ignore", "tracks", "clipped", "outside"]
    assert lines[1].split() == ["all.json", "1", "4", "5", "1", "2", "0", "0"]
    assert lines[-1] == f"written to {converted}"
    assert {path.name for path in converted.glob("*.json")} == {"all.json", "conversion.json", "train.json", "val.json"}


def test_validate_gives_the_exit_code(converted, capsys):
    assert run(compose("data", ["action=validate", f"path={converted / 'all.json'}"])) == 0
    assert "valid (1 categories, 1 videos, 4 images, 6 annotations)" in capsys.readouterr().out
    broken = json.loads((converted / "all.json").read_text())
    broken["annotations"][0]["bbox"] = [0, 0, 99, 99]
    (converted / "all.json").write_text(json.dumps(broken))
    assert run(compose("data", ["action=validate", f"path={converted / 'all.json'}"])) == 1
    out = capsys.readouterr().out
    assert "annotations[0] (id 1): bbox [0, 0, 99, 99] leaves its 64x48 frame" in out
    assert "1 violation (" in out


def test_stats_by_hand(converted, tmp_path, capsys):
    statistics = measure(converted / "all.json")
    # Speed 5 px per frame twice for track 1, 0 for track 2 over its gap of 2 frames.
    np.testing.assert_allclose(sorted(statistics.speed_px), [0, 5, 5])
    np.testing.assert_allclose(sorted(statistics.speed_rel), [0, 5 / 16, 5 / 16])
    np.testing.assert_allclose(sorted(statistics.side), [16, 16, 16, (34 * 48) ** 0.5, (34 * 48) ** 0.5], rtol=1e-6)
    assert sorted(statistics.track_length) == [3, 3]
    assert statistics.ignored == 1
    rows = table(statistics).splitlines()
    assert rows[0].endswith("1 videos, 4 frames, 5 boxes (1.25 per frame), 1 ignore regions, 2 tracks")
    assert rows[2].split() == ["person", "5", "2", "60.0", "40.0", "0.0", "16.0", "3", "5.00", "0.312"]
    assert rows[3].split()[1:] == rows[2].split()[1:]
    figure = tmp_path / "figures/f.png"
    assert run(compose("data", ["action=stats", f"path={converted / 'all.json'}", f"output={figure}"])) == 0
    assert figure.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match=r"f.txt: the figure is a .png"):
        run(compose("data", ["action=stats", f"path={converted / 'all.json'}", "output=f.txt"]))
    capsys.readouterr()


def test_stats_without_boxes(converted, tmp_path):
    document = json.loads((converted / "val.json").read_text())
    assert measure(converted / "val.json").ignored == 1
    document["annotations"] = []
    (converted / "val.json").write_text(json.dumps(document))
    statistics = measure(converted / "val.json")
    assert table(statistics).splitlines()[-1].split() == ["all", "0", "0", "0.0", "0.0", "0.0", "-", "-", "-", "-"]
    assert run(compose("data", ["action=stats", f"path={converted / 'val.json'}", f"output={tmp_path / 'e.png'}"])) == 0


def test_size_shares_follow_cocos_limits():
    np.testing.assert_allclose(size_shares(np.array([31.9, 32.0, 95.9, 96.0])), (0.25, 0.5, 0.25))


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def test_show_draws_on_the_object(converted, tmp_path):
    (path,) = show(converted / "all.json", tmp_path / "shown")
    source = open_source(path)
    assert (len(source), source.size) == (4, (480, 640))  # 48 x 64 enlarged ten times
    first, last = source.read([0, 3]).astype(int)
    # Frame 0 is black: the left border of the second box (x 30) has its track's colour, the middle of the first none.
    assert np.abs(first[300, 300] - rgb(track_colour(2))).max() < 60
    assert first[120, 80].max() < 60
    # The ignore region of frame 3 (flat 36) has a grey right border, at x 5.
    assert np.abs(last[48, 50] - rgb(UNCONFIRMED)).max() < 60
    source.close()


def test_show_some_frames_of_a_named_video(converted, tmp_path):
    (path,) = show(converted / "train.json", tmp_path / "shown", videos=["street"], max_frames=2)
    source = open_source(path)
    assert len(source) == 2
    source.close()
    (again,) = show(converted / "train.json", tmp_path / "shown", videos=["1"], max_frames=1)
    assert again == path
    with pytest.raises(ValueError, match=r"videos=stret: .* has no video of that name or id; did you mean 'street'"):
        show(converted / "train.json", tmp_path / "shown", videos=["stret"])
    with pytest.raises(ValueError, match="max_frames=0 must be at least 1"):
        show(converted / "train.json", tmp_path / "shown", max_frames=0)


def test_show_image_files(tmp_path, write, images):
    source = tmp_path / "set/train/a"
    write(source / "seqinfo.ini", "[Sequence]\nseqLength=3\nimWidth=80\nimHeight=60\n")
    write(source / "gt/gt.txt", "1,1,1,2,30,40,1\n")
    images(source / "img1", ["000001.jpg", "000002.jpg", "000003.jpg"], (80, 60))
    keys = [f"source={tmp_path / 'set'}", f"output={tmp_path / 'out'}"]
    assert run(compose("data", ["action=convert", "format=mot", *keys])) == 0
    keys = [f"path={tmp_path / 'out/train.json'}", f"output={tmp_path / 'shown'}", "videos=[a]", "max_frames=null"]
    assert run(compose("data", ["action=show", *keys])) == 0
    opened = open_source(tmp_path / "shown/a.mp4")
    assert (len(opened), opened.size) == (3, (480, 640))
    opened.close()


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (["action=convrt"], "action=convrt is not one of convert, validate, stats, show; did you mean 'convert'"),
        ([], "action=None is not one of"),
        (["action=convert"], "output is missing: action=convert needs output=FOLDER"),
        (["action=convert", "output=x"], "format is missing: action=convert needs format=mot"),
        (["action=convert", "output=x", "format=mot"], "source is missing"),
        (["action=validate"], "path is missing: action=validate needs path=FILE.json"),
    ],
)
def test_missing_and_wrong_keys(keys, reason):
    with pytest.raises(ValueError, match=reason):
        run(compose("data", keys))


def test_validating_loads_nothing_heavy(tmp_path, write):
    video = {"id": 1, "name": "a", "width": 64, "height": 48, "length": 1}
    image = {"id": 1, "video_id": 1, "frame_id": 0, "file_name": "0.jpg"}
    document = {"videos": [video], "images": [image], "annotations": [], "categories": [{"id": 1, "name": "car"}]}
    path = write(tmp_path / "f.json", json.dumps(document))
    write(tmp_path / "0.jpg", "")
    code = (
        "import sys; from stdetr.cli import main\n"
        f"assert main(['data', 'action=validate', 'path={path}']) == 0\n"
        "heavy = ('torch', 'decord', 'av', 'PIL', 'matplotlib', 'pycocotools', 'supervision', 'scipy', 'wandb')\n"
        "print(sorted(set(heavy) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{path}: valid (1 categories, 1 videos, 1 images, 0 annotations)", "[]"]


def test_a_plain_configuration_is_enough(converted, capsys):
    assert run(OmegaConf.create({"action": "validate", "path": str(converted / "all.json")})) == 0
    assert "valid" in capsys.readouterr().out
