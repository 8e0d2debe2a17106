"""A user's own data: CVAT exports, and videos with a CSV or MOT file each."""

from __future__ import annotations

from pathlib import Path

import pytest

from stdetr.datasets.converters.problems import MalformedInputError


def cvat(tracks: str, source: str = "street.avi") -> str:
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task><size>6</size>\n'
        "<labels><label><name>walker</name><attributes></attributes></label><label><name>bike</name></label>\n"
        "<label><name>ignore</name></label></labels>\n"
        f"<original_size><width>64</width><height>48</height></original_size></task><source>{source}</source></meta>\n"
        f"{tracks}</annotations>\n"
    )


def box(frame: int, corners: str, outside: int = 0, keyframe: int = 1) -> str:
    xtl, ytl, xbr, ybr = corners.split()
    return (
        f'<box frame="{frame}" outside="{outside}" occluded="0" keyframe="{keyframe}" xtl="{xtl}" ytl="{ytl}" '
        f'xbr="{xbr}" ybr="{ybr}" z_order="0"></box>\n'
    )


TRACKS = (
    '<track id="0" label="walker" source="manual">\n'
    + box(0, "0 0 10 20")
    + box(2, "4 8 14 28")
    + box(4, "4 8 14 28", outside=1)
    + box(5, "50.5 10 70 20")
    + '</track>\n<track id="1" label="ignore">\n'
    + box(1, "30 0 40 10")
    + box(2, "30 0 40 10", outside=1)
    + '</track>\n<track id="2" label="bike"><polygon frame="0" points="1,1;2,2"></polygon></track>\n'
)


@pytest.fixture
def cvat_source(tmp_path, write, video) -> Path:
    video(tmp_path / "s/street.avi", 6, (64, 48))
    write(tmp_path / "s/street.xml", cvat(TRACKS))
    return tmp_path / "s"


def test_cvat_tracks(cvat_source, run):
    converted = run("cvat", cvat_source)
    boxes = converted.boxes()
    # Frame 1 is half way between the key frames 0 and 2; the box of frame 2 stays on frame 3, until outside on 4.
    assert [b for b in boxes if not b[-1]] == [
        (0, 1, 0, [0, 0, 10, 20], 0),
        (1, 1, 0, [2, 4, 10, 20], 0),
        (2, 1, 0, [4, 8, 10, 20], 0),
        (3, 1, 0, [4, 8, 10, 20], 0),
        (5, 1, 0, [50.5, 10, 13.5, 10], 0),
    ]
    assert [b for b in boxes if b[-1]] == [(1, 1, -1, [30, 0, 10, 10], 1), (1, 2, -1, [30, 0, 10, 10], 1)]
    assert converted.document()["categories"] == [{"id": 1, "name": "walker"}, {"id": 2, "name": "bike"}]
    assert converted.problems.notes == {"boxes interpolated between key frames": 2, "shapes left out: polygon": 1}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('label="walker"', 'label="wolker"', r"street.xml:8: track label 'wolker' is not in <meta>"),
        ('frame="2" outside="0"', 'frame="6" outside="0"', "track 0: frame 6 is outside 0..5"),
        ('xtl="50.5"', 'xtl=""', "box xtl is '', not a number"),
        ('frame="5"', 'frame="4"', "two boxes on frame 4"),
        ("<source>street.avi", "<source>../street.avi", "points outside the source; refused"),
        ('<track id="0"', '<image id="0"/><track id="0"', "export the task as 'CVAT for video 1.1'"),
        ("</annotations>", "", "no element found"),
    ],
)
def test_cvat_malformed(tmp_path, write, video, run, old, new, reason):
    video(tmp_path / "s/street.avi", 6, (64, 48))
    text = cvat(TRACKS)
    assert old in text
    write(tmp_path / "s/street.xml", text.replace(old, new))
    with pytest.raises(MalformedInputError, match=reason):
        run("cvat", tmp_path / "s")


def test_cvat_without_its_video(tmp_path, write, run):
    write(tmp_path / "s/street.xml", cvat(TRACKS))
    with pytest.raises(FileNotFoundError, match=r"street.xml: its video street.avi is not in the source"):
        run("cvat", tmp_path / "s")


@pytest.fixture
def videos_source(tmp_path, write, video) -> Path:
    source = tmp_path / "mine"
    video(source / "train/a.mp4", 3, (64, 48))
    write(
        source / "train/a.csv",
        "frame,track_id,class,x1,y1,x2,y2,ignore\n0,4,cat,1,2,11,22,0\n2,4,cat,3,2,13,22,\n2,,,0,0,9,9,1\n1,5,dog,1,1,2,2,0\n",
    )
    video(source / "val/b.avi", 2, (64, 48))
    write(source / "val/b.txt", "1,7,5,5,10,10\n2,7,6,5,10,10,1,2\n2,8,6,5,10,10,0,-1\n")
    return source


def test_videos_with_csv_and_mot(videos_source, run):
    converted = run("videos", videos_source)
    assert converted.boxes("train") == [
        (0, 1, 4, [1, 2, 10, 20], 0),
        (1, 2, 5, [1, 1, 1, 1], 0),
        (2, 1, 4, [3, 2, 10, 20], 0),
        (2, 1, -1, [0, 0, 9, 9], 1),
        (2, 2, -1, [0, 0, 9, 9], 1),
    ]
    # MOT rows count frames from 1; track 7 changes its class, so it goes on under a new id.
    assert converted.boxes("val") == [
        (0, 1, 7, [5, 5, 10, 10], 0),
        (1, 2, 1_000_000_000, [6, 5, 10, 10], 0),
        (1, 1, 8, [6, 5, 10, 10], 1),
    ]
    assert converted.document("train")["videos"][0]["file_name"] == "videos/train/a.mp4"
    assert (converted.folder / "videos/val/b.avi").is_file()


def test_output_of_predict_is_accepted(tmp_path, write, video, run):
    video(tmp_path / "s/a.mp4", 2, (64, 48))
    header = "frame,time_s,track_id,category_id,class,score,x1,y1,x2,y2\n"
    write(tmp_path / "s/a.csv", header + "1,0.1,3,17,cat,0.9,1.5,2.0,11.5,22.0\n")
    assert run("videos", tmp_path / "s").boxes() == [(1, 1, 3, [1.5, 2, 10, 20], 0)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("frame,class,x,y,w,h\n0,kat,1,1,2,2\n", r"a.csv:2: class 'kat' is none of cat, dog; did you mean 'cat'"),
        ("frame,class,x,y,w,h\n2,cat,1,1,2,2\n", r"a.csv:2: frame 2 is outside 0..1 \(frames count from 0\)"),
        ("frame,class,x,y,w\n0,cat,1,1,2\n", "no columns x,y,w,h or x1,y1,x2,y2"),
        ("class,x,y,w,h\n", "a.csv:1: no column 'frame'"),
        ("", "a.csv: the file is empty"),
        ("frame,class,x,y,w,h,ignore\n0,cat,1,1,2,2,maybe\n", "ignore is 'maybe', not 0 or 1"),
        ("frame,class,x,y,w,h\n0,cat,1,1\n", "a.csv:2: 4 cells, the header has 6"),
    ],
)
def test_videos_malformed(tmp_path, write, video, run, text, reason):
    video(tmp_path / "s/a.mp4", 2, (64, 48))
    write(tmp_path / "s/a.csv", text)
    with pytest.raises(MalformedInputError, match=reason):
        run("videos", tmp_path / "s", classes=["cat", "dog"])


def test_a_text_file_named_mp4(tmp_path, write, run):
    write(tmp_path / "s/a.mp4", "not a video at all")
    write(tmp_path / "s/a.csv", "frame,x,y,w,h\n")
    with pytest.raises(ValueError, match=r"a.mp4"):
        run("videos", tmp_path / "s")


def test_a_video_without_annotations(tmp_path, video, run):
    video(tmp_path / "s/a.mp4", 2, (64, 48))
    with pytest.raises(FileNotFoundError, match=r"a.mp4: neither a.csv nor a.txt lies beside it"):
        run("videos", tmp_path / "s")


def test_clips_json_gives_fields_of_videos(tmp_path, write, video, run):
    for name in ("a", "b"):
        video(tmp_path / f"s/{name}.mp4", 2, (64, 48))
        write(tmp_path / f"s/{name}.csv", "frame,x,y,w,h\n0,1,1,2,2\n")
    # A name of CocoVID's own (length), a list and a truth value are not taken over.
    fields = '[{"clip": "b", "scene": 3, "distance": "far", "length": 9, "tags": [1], "night": true}, {"clip": "a"}]'
    write(tmp_path / "s/clips.json", fields)
    a, b = run("videos", tmp_path / "s").document("all")["videos"]
    assert (b["scene"], b["distance"], b["length"]) == (3, "far", 2)
    assert not {"tags", "night", "clip"} & set(b)
    assert "scene" not in a
    chosen = run("videos", tmp_path / "s", splits={"val": ["scene:3"], "train": ["a"]})
    assert [video["name"] for video in chosen.document("val")["videos"]] == ["b"]
    assert [video["name"] for video in chosen.document("train")["videos"]] == ["a"]
    with pytest.raises(ValueError, match=r"splits.val=\['scene:4'\] matches no frame"):
        run("videos", tmp_path / "s", splits={"val": ["scene:4"]})
    write(tmp_path / "s/clips.json", '[{"clip": "b"}, {"clip": "aa"}]')
    with pytest.raises(ValueError, match=r"clips.json names no clip 'a'; did you mean 'aa'"):
        run("videos", tmp_path / "s")
    write(tmp_path / "s/clips.json", '[{"scene": 1}]')
    with pytest.raises(ValueError, match=r"clips.json record 0 has no 'clip'"):
        run("videos", tmp_path / "s")
