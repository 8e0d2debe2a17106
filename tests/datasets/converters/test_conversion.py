"""What every format shares: ids, splits, media, atomic output, refusals."""

from __future__ import annotations

import errno
import json
import os
import signal
import tarfile
import zipfile
from pathlib import Path

import pytest

from stdetr.datasets.converters.coco_vid_writer import CocoVidWriter
from stdetr.datasets.converters.conversion import Conversion, work_folder
from stdetr.datasets.converters.convert import FORMATS, convert, reader_class
from stdetr.datasets.converters.options import SplitRules
from stdetr.datasets.converters.problems import MalformedInputError

ROWS = "1,1,1,2,30,40,1\n2,1,2,2,30,40,1\n3,2,5,5,10,10,1\n"


@pytest.fixture
def tree(tmp_path, write, images) -> Path:
    """Two MOT sequences of three frames with image files."""
    root = tmp_path / "set"
    for name in ("a-01", "b-02"):
        folder = root / "train" / name
        write(folder / "seqinfo.ini", "[Sequence]\nimDir=img1\nseqLength=3\nimWidth=80\nimHeight=60\n")
        write(folder / "gt/gt.txt", ROWS)
        images(folder / "img1", ["000001.jpg", "000002.jpg", "000003.jpg"], (80, 60))
    return root


def test_every_format_has_a_reader_and_a_card():
    cards = Path(__file__).resolve().parents[3] / "data"
    for name in FORMATS:
        assert reader_class(name).accepted
        card = (cards / f"{name}.md").read_text()
        assert f"format={name}" in card
        for part in ("Licence", "Where to get it", "Expected tree", "Command", "Counts"):
            assert f"## {part}" in card, (name, part)


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match="format=ua-detrac is unknown; did you mean 'ua_detrac'"):
        convert("ua-detrac", "x", "y")
    with pytest.raises(ValueError, match=r"link=hardlnk is not one of .*did you mean 'hardlink'"):
        convert("mot", Path(__file__).parent, "never-made", link="hardlnk")
    assert not Path("never-made").exists()


def test_keys_that_a_format_would_ignore_are_refused(tree, run):
    with pytest.raises(ValueError, match=r"det=False: format=mot does not take it; it takes annotations, classes"):
        run("mot", tree, det=False)
    with pytest.raises(ValueError, match=r"frame_size=\[0, 3\] must be \[width,height\]"):
        run("ua_detrac", tree, frame_size=[0, 3])
    with pytest.raises(ValueError, match="frames=some must be all or listed"):
        run("imagenet_vid", tree, frames="some")


def test_source_and_output_mistakes(tree, tmp_path, run):
    with pytest.raises(FileNotFoundError, match=r"source=.*sett: no such file or folder; did you mean .*set\?"):
        run("mot", tree.with_name("sett"))
    with pytest.raises(ValueError, match="lies inside source"):
        run("mot", tree, output=tree / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        run("mot", tree, output=tmp_path / "file")


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"train": [5, 1]}, r"splits.train=\[5, 1\]: give \[first,last\]"),
        ({"train": [1, 2, 3]}, "give"),
        ({"train": []}, "splits.train is empty"),
        ({"train": [1.5, 2]}, "give"),
        ({"../x": [1, 2]}, "a split is named with letters"),
        ({"all": [1, 2]}, "and not 'all'"),
    ],
)
def test_split_rules_of_another_form(rules, reason):
    with pytest.raises(ValueError, match=reason):
        SplitRules(rules)


def test_split_rules():
    rules = SplitRules({"train": [[1, 3], [10, 12]], "val": ["b-*"], "test": None})
    assert rules.of_frame("a", "", 3) == ["train", "all"]
    assert rules.of_frame("a", "", 4) == ["all"]
    assert rules.of_frame("b-02", "train", 12) == ["train", "val", "all"]
    assert SplitRules({}).of_frame("a", "val", 1) == ["val"]
    assert SplitRules(None).of_frame("a", "", 1) == ["all"]


def test_splits_by_video_name(tree, run):
    converted = run("mot", tree, splits={"train": ["a-*"], "val": "b-02"})
    assert list(converted.counts) == ["train", "val", "all"]
    assert [v["name"] for v in converted.document("val")["videos"]] == ["b-02"]
    # The same record has the same id in each file.
    everything = {i["id"]: i for i in converted.document()["images"]}
    assert all(everything[i["id"]] == i for i in converted.document("val")["images"])
    assert converted.counts["all"].videos == 2


@pytest.mark.parametrize("link", ["auto", "copy", "hardlink", "symlink"])
def test_frames_are_reachable_from_the_output(tree, tmp_path, run, link):
    converted = run("mot", tree, link=link)
    name = converted.document("train")["images"][0]["file_name"]
    assert name == "videos/train/a-01/img1/000001.jpg"
    source, place = tree / "train/a-01/img1/000001.jpg", converted.folder / name
    assert place.read_bytes() == source.read_bytes()
    assert place.is_symlink() == (link == "symlink")
    assert (converted.folder / "videos").is_symlink() == (link == "auto")
    assert place.samefile(source) == (link != "copy")
    # Again: what is in place is kept.
    before = place.stat().st_mtime_ns
    run("mot", tree, link=link)
    assert place.stat().st_mtime_ns == before


def test_without_links_the_source_is_the_root(tree, run):
    converted = run("mot", tree, link="none")
    assert converted.document("train")["images"][0]["file_name"] == "train/a-01/img1/000001.jpg"
    assert not (converted.folder / "videos").exists()


def test_link_modes_do_not_write_through_each_other(tree, run):
    run("mot", tree, link="auto")
    with pytest.raises(ValueError, match=r"is a link to .* from an earlier conversion"):
        run("mot", tree, link="copy")


def test_a_hard_link_across_file_systems_becomes_a_copy(tmp_path, write, video, run, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    source = tmp_path / "s"
    video(source / "street.avi", 3, (64, 48))
    write(source / "gt.txt", ROWS)
    place = run("mot", source).folder / "videos/street.avi"
    assert place.read_bytes() == (source / "street.avi").read_bytes()
    assert not place.samefile(source / "street.avi")


def test_an_existing_folder_of_videos_is_not_replaced(tree, tmp_path, run):
    (tmp_path / "converted/videos").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"exists and is not a link to .*; remove it, or use link=copy"):
        run("mot", tree)


def die_in_a_child(action) -> None:
    """Run ``action`` in a child process that is expected to kill itself with SIGKILL."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_killed_while_converting(tree, tmp_path, run, monkeypatch):
    output = tmp_path / "converted"
    run("mot", tree)
    before = (output / "train.json").read_bytes()
    gt = tree / "train/a-01/gt/gt.txt"
    gt.write_text(ROWS + "3,3,20,20,10,10,1\n")
    original = Conversion._frame

    def killed(self, video, *rest):
        if video.name == "b-02":
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, video, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Conversion, "_frame", killed)
        die_in_a_child(lambda: convert("mot", tree, output))
    # The former result is whole, the unfinished one is apart.
    assert (output / "train.json").read_bytes() == before
    assert (output / ".conversion").is_dir()
    converted = run("mot", tree)
    assert converted.counts["train"].boxes == 7
    assert not (output / ".conversion").exists()


def test_killed_while_publishing(tree, tmp_path, run, monkeypatch):
    output = tmp_path / "converted"
    splits = {"train": [1, 2], "val": [3, 3]}
    published = []
    original = CocoVidWriter.publish

    def killed(self):
        if published:
            os.kill(os.getpid(), signal.SIGKILL)
        original(self)
        published.append(self.path)

    with monkeypatch.context() as patch:
        patch.setattr(CocoVidWriter, "publish", killed)
        die_in_a_child(lambda: convert("mot", tree, output, splits=splits))
    there = list(output.glob("*.json"))
    assert len(there) == 1
    assert json.loads(there[0].read_text())["categories"]
    assert len(list(run("mot", tree, splits=splits).folder.glob("*.json"))) == 4


def test_killed_while_replacing_never_mixes_two_conversions(tree, tmp_path, run, monkeypatch):
    output, splits = tmp_path / "converted", {"train": [1, 2], "val": [3, 3]}
    run("mot", tree, splits=splits)
    (output / "mine.json").write_text("{}")
    former = {path.name: path.read_bytes() for path in output.glob("*.json")}
    for name in ("a-01", "b-02"):
        (tree / f"train/{name}/gt/gt.txt").write_text(ROWS.replace("30,40", "31,41").replace("10,10", "11,11"))
    original = CocoVidWriter.publish

    def killed(self):
        original(self)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(CocoVidWriter, "publish", killed)
        die_in_a_child(lambda: convert("mot", tree, output, splits=splits))
    there = {path.name: path.read_bytes() for path in output.glob("*.json")}
    assert there.pop("mine.json") == b"{}"  # somebody else's file stays
    assert len(there) == 1, "the complete set would have train, val, all and the report"
    assert all(content != former[name] for name, content in there.items())
    assert "conversion.json" not in there
    run("mot", tree, splits=splits)
    now = {path.name: path.read_bytes() for path in output.glob("*.json")}
    assert now.keys() == former.keys()
    assert all(now[f"{name}.json"] != former[f"{name}.json"] for name in ("train", "val", "all"))


def test_a_refused_conversion_leaves_the_former_one(tree, tmp_path, run):
    run("mot", tree)
    before = (tmp_path / "converted/train.json").read_bytes()
    (tree / "train/b-02/gt/gt.txt").write_text("1,1,x,2,30,40,1\n")
    with pytest.raises(MalformedInputError, match=r"train/b-02/gt/gt.txt:1: x \(column 3\) is 'x'"):
        run("mot", tree)
    assert (tmp_path / "converted/train.json").read_bytes() == before
    assert not (tmp_path / "converted/.conversion").exists()


def test_skipped_records_are_listed_and_the_list_goes_when_they_do(tree, run):
    good = (tree / "train/b-02/gt/gt.txt").read_text()
    (tree / "train/b-02/gt/gt.txt").write_text("9,1,1,2,30,40,1\n" + good)
    converted = run("mot", tree, strict=False)
    report = json.loads((converted.folder / "conversion.json").read_text())
    assert report["skipped"] == 1
    assert report["splits"]["train"]["boxes"] == 6
    assert report["splits"]["train"]["per_class"] == {"person": 6}
    assert "train/b-02/gt/gt.txt:1: frame 9" in (converted.folder / "skipped.txt").read_text()
    (tree / "train/b-02/gt/gt.txt").write_text(good)
    assert not (run("mot", tree).folder / "skipped.txt").exists()


def test_one_conversion_at_a_time(tree, tmp_path, run):
    with work_folder(tmp_path / "converted"), pytest.raises(ValueError, match="another conversion is writing there"):
        run("mot", tree)
    run("mot", tree)


def test_links_out_of_the_source_are_refused(tree, tmp_path, run):
    outside = tmp_path / "outside"
    (tree / "train/b-02").rename(outside)
    (tree / "train/b-02").symlink_to(outside)
    with pytest.raises(MalformedInputError, match="train/b-02 is a link that leads outside the source; refused"):
        run("mot", tree)
    assert run("mot", tree, follow_links=True).counts["train"].videos == 2


def test_a_box_wholly_outside_is_left_out_and_counted(tree, run):
    (tree / "train/b-02/gt/gt.txt").write_text("1,1,90,2,30,40,1\n1,2,0,0,80,60,1\n2,1,-9,-9,10,10,1\n")
    converted = run("mot", tree)
    count = converted.counts["train"]
    assert (count.outside, count.clipped, count.boxes) == (1, 1, 5)
    assert converted.boxes("train")[3:] == [(0, 1, 2, [0, 0, 80, 60], 0), (1, 1, 1, [0, 0, 1, 1], 0)]


def pack(folder: Path, path: Path) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for item in sorted(folder.rglob("*")):
                packed.write(item, item.relative_to(folder))
    else:
        with tarfile.open(path, "w:gz") as packed:
            packed.add(folder, arcname=".")
    return path


@pytest.mark.parametrize("name", ["set.zip", "set.tar.gz"])
def test_an_archive_as_the_source(tree, tmp_path, run, name):
    archive = pack(tree, tmp_path / name)
    converted = run("mot", archive)
    image = converted.document("train")["images"][0]["file_name"]
    assert (converted.folder / image).read_bytes() == (tree / "train/a-01/img1/000001.jpg").read_bytes()
    unpacked = converted.folder / "source/train/a-01/gt/gt.txt"
    unpacked.write_text(ROWS + "3,3,20,20,10,10,1\n")
    # A finished extraction is kept; a changed archive is unpacked again.
    assert run("mot", archive).counts["train"].boxes == 7
    os.utime(archive, (1, 1))
    assert run("mot", archive).counts["train"].boxes == 6


def evil_tar(path: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Path:
    with tarfile.open(path, "w") as packed:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        packed.addfile(member)
    return path


@pytest.mark.parametrize(
    ("name", "kind", "link", "reason"),
    [
        ("../evil.txt", tarfile.REGTYPE, "", "member '../evil.txt' points outside the archive; refused"),
        ("/etc/evil", tarfile.REGTYPE, "", "points outside"),
        ("a/link", tarfile.SYMTYPE, "/etc", "member 'a/link' is a link or a device; refused"),
        ("a/hard", tarfile.LNKTYPE, "../x", "is a link or a device"),
        ("a/fifo", tarfile.FIFOTYPE, "", "is a link or a device"),
    ],
)
def test_archives_that_reach_out_are_refused(tmp_path, name, kind, link, reason):
    archive = evil_tar(tmp_path / "evil.tar", name, kind, link)
    with pytest.raises(MalformedInputError, match=reason):
        convert("mot", archive, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    assert not (tmp_path / "evil.txt").exists()


def test_zip_archives_that_reach_out_are_refused(tmp_path):
    for name, mode, reason in (("..\\evil.txt", 0o100644, "points outside"), ("link", 0o120777, "is a link; refused")):
        with zipfile.ZipFile(tmp_path / "evil.zip", "w") as packed:
            member = zipfile.ZipInfo("x")
            member.filename, member.external_attr = name, mode << 16
            packed.writestr(member, "/etc/passwd")
        with pytest.raises(MalformedInputError, match=reason):
            convert("mot", tmp_path / "evil.zip", tmp_path / "out", strict=False)
    (tmp_path / "broken.zip").write_bytes(b"PK not really")
    with pytest.raises(MalformedInputError, match=r"broken.zip: damaged or unreadable archive"):
        convert("mot", tmp_path / "broken.zip", tmp_path / "out")
