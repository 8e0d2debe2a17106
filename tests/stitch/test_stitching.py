"""Windows in, tracks out: ids, boxes and memory against synthetic objects with known paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stdetr.stitch.association import StitchRules
from stdetr.stitch.stitching import Stitcher
from stdetr.structures import Tubes

Path = Callable[[int], tuple[float, float] | None]  # centre of a 20x20 box on a frame, None where it is not seen


def window(frames: Sequence[int], paths: Sequence[Path], labels: Sequence[int] | None = None, score: float = 0.8,
           order: Sequence[int] | None = None, size: float = 20.0) -> Tubes:  # fmt: skip
    """What a perfect detector says of ``frames``: one tube per path that is seen on any of them, in ``order``."""
    boxes, present = torch.zeros(len(paths), len(frames), 4), torch.zeros(len(paths), len(frames), dtype=torch.bool)
    for row, path in enumerate(paths):
        for column, frame in enumerate(frames):
            if (centre := path(frame)) is not None:
                x, y = centre
                boxes[row, column] = torch.tensor([x - size / 2, y - size / 2, x + size / 2, y + size / 2])
                present[row, column] = True
    classes = torch.tensor(list(labels) if labels is not None else [0] * len(paths), dtype=torch.int64)
    tubes = Tubes(boxes, present * score, classes, torch.full((len(paths),), -1), torch.tensor(list(frames)),
                  torch.full((len(paths),), score), present)  # fmt: skip
    return tubes.select(torch.tensor(order if order is not None else list(range(len(paths))), dtype=torch.int64))


def starts(length: int, frames: int, overlap: int) -> Iterable[range]:
    begin = 0
    while begin + frames < length:
        yield range(begin, begin + frames)
        begin += frames - overlap
    yield range(max(0, length - frames), length)


def stitch(stitcher: Stitcher, windows: Iterable[Tubes]) -> dict[int, dict[int, tuple[Tensor, float, int]]]:
    """frame -> track id -> (box, score, label); checks that frames come out once and in order."""
    result: dict[int, dict[int, tuple[Tensor, float, int]]] = {}
    clips = [stitcher.push(item) for item in windows]
    clips.append(stitcher.flush())
    frames = torch.cat([clip.frame_index for clip in clips])
    assert frames.tolist() == sorted(set(frames.tolist()))
    for clip in clips:
        for column, frame in enumerate(clip.frame_index.tolist()):
            rows = clip.present[:, column].nonzero().flatten().tolist()
            result[frame] = {
                int(clip.track_ids[row]): (
                    clip.boxes[row, column],
                    float(clip.scores[row, column]),
                    int(clip.labels[row]),
                )
                for row in rows
            }
            assert len(result[frame]) == len(rows)  # an id is on a frame once
    return result


def crossing(frame: int) -> tuple[float, float]:
    return (10 + 4.0 * frame, 50.0)


def opposite(frame: int) -> tuple[float, float]:
    return (170 - 4.0 * frame, 54.0)


@pytest.mark.parametrize(("frames", "overlap"), [(5, 2), (5, 1), (8, 4), (5, 0), (1, 0), (3, 2)])
def test_crossing_objects_keep_their_ids_and_exact_boxes(frames: int, overlap: int):
    windows = [
        window(span, (crossing, opposite), order=(0, 1) if index % 2 else (1, 0))
        for index, span in enumerate(starts(41, frames, overlap))
    ]
    result = stitch(Stitcher(overlap), windows)
    assert sorted(result) == list(range(41))
    ids = {path: {i for f in result for i, (box, _, _) in result[f].items()
                  if torch.allclose(box[:2] + 10, torch.tensor(path(f)))} for path in (crossing, opposite)}  # fmt: skip
    assert sorted(map(sorted, ids.values())) == [[1], [2]]
    assert all(len(result[frame]) == 2 for frame in result)


def test_leave_and_come_back_within_the_gap_keeps_the_id_and_beyond_it_does_not():
    def path(until: int, back: int) -> Path:
        return lambda frame: None if until <= frame < back else (20 + 1.0 * frame, 40.0)

    def ids(back: int) -> list[int]:
        spans = starts(60, 5, 2)
        result = stitch(
            Stitcher(2, StitchRules(max_gap=10, damping=1.0)), [window(s, (path(20, back),)) for s in spans]
        )
        return sorted({i for frame in result.values() for i in frame})

    assert ids(back=30) == [1]  # frames 20..29 are missed: exactly max_gap
    assert ids(back=31) == [1, 2]


def test_gap_follows_the_motion_not_the_place():
    # Hidden for 8 frames at 3 px per frame: the mover is 27 px on, and a standing object appears where it vanished.
    def mover(frame: int) -> tuple[float, float] | None:
        return None if 10 <= frame < 18 else (10 + 3.0 * frame, 40.0)

    def stander(frame: int) -> tuple[float, float] | None:
        return (37.0, 40.0) if frame >= 18 else None

    rules = StitchRules(damping=1.0)
    result = stitch(Stitcher(0, rules), [window(range(s, s + 2), (stander, mover)) for s in range(0, 26, 2)])
    assert [i for i, (box, _, _) in result[25].items() if float(box[0]) == 10 + 75 - 10] == [1]
    assert len(result[25]) == 2


def test_damping_by_hand():
    # velocity 2 px per frame, gap 3, damping 0.5: 2 * (0.5 + 0.25 + 0.125) = 1.75 px
    from stdetr.stitch.tracks import extrapolate, fit_velocity

    frames = torch.tensor([1_000_000, 1_000_001, 1_000_003])
    boxes = torch.tensor([[[0.0, 0, 10, 10], [2, 0, 12, 10], [6, 0, 16, 10]]])
    seen = torch.ones(1, 3, dtype=torch.bool)
    velocity = fit_velocity(boxes, seen, frames)
    assert velocity[0].tolist() == pytest.approx([2, 0, 0, 0], abs=1e-6)
    moved = extrapolate(boxes[:, -1], velocity, torch.tensor([[3]]), 0.5)
    assert moved[0, 0].tolist() == pytest.approx([7.75, 0, 17.75, 10], abs=1e-5)
    assert fit_velocity(boxes, seen & (frames == 1_000_001), frames).tolist() == [[0, 0, 0, 0]]


def test_overlap_frames_are_merged_by_score():
    def still(x: float) -> Path:
        return lambda frame: (x, 50.0)

    stitcher = Stitcher(overlap=1)
    first = stitcher.push(window([0, 1], (still(50),), score=0.9))
    second = stitcher.push(window([1, 2], (still(54),), score=0.3))
    assert (first.frame_index.tolist(), second.frame_index.tolist()) == ([0], [1])
    # weighted mean of the centres: (0.9 * 50 + 0.3 * 54) / 1.2 = 51; mean score 0.6
    assert second.boxes[0, 0].tolist() == pytest.approx([41, 40, 61, 60])
    assert float(second.scores[0, 0]) == pytest.approx(0.6)
    assert float(second.tube_scores[0]) == pytest.approx(0.6)
    rest = stitcher.flush()
    assert rest.frame_index.tolist() == [2]
    assert rest.boxes[0, 0].tolist() == pytest.approx([44, 40, 64, 60])
    assert stitcher.flush().frame_index.tolist() == []


def test_frames_with_a_low_score_hardly_count_for_matching():
    # Frames 2 and 3 are shared.  On frame 3 the second window is unsure and far off: IoU (1 * 0.8 + 0 * 0.1) / 0.9.
    def right(frame: int) -> tuple[float, float]:
        return (50.0, 50.0)

    def astray(frame: int) -> tuple[float, float]:
        return (90.0, 90.0) if frame == 3 else (50.0, 50.0)

    later = window([2, 3, 4], (astray,))
    unsure = replace(later, scores=torch.tensor([[0.8, 0.1, 0.8]]))
    for tubes, expected in ((unsure, [1]), (later, [1, 2])):
        stitcher = Stitcher(2, StitchRules(min_similarity=0.6))
        stitcher.push(window([0, 1, 2, 3], (right,)))
        stitcher.push(tubes)
        assert sorted(stitcher.flush().track_ids.tolist()) == expected


def test_class_decides_between_equal_boxes_and_a_flicker_does_not_break_a_track():
    def still(frame: int) -> tuple[float, float]:
        return (50.0, 50.0)

    both = [
        window(range(s, s + 4), (still, still), labels=(3, 1), order=(s // 2 % 2, 1 - s // 2 % 2)) for s in (0, 2, 4)
    ]
    result = stitch(Stitcher(2), both)
    assert {i: label for i, (_, _, label) in result[7].items()} == {i: label for i, (_, _, label) in result[0].items()}

    flicker = [window(range(s, s + 4), (still,), labels=(label,)) for s, label in ((0, 1), (2, 1), (4, 0), (6, 1))]
    result = stitch(Stitcher(2), flicker)
    assert {i for frame in result.values() for i in frame} == {1}
    assert {label for frame in result.values() for _, _, label in frame.values()} == {1}

    result = stitch(Stitcher(2, StitchRules(class_weight=1.0)), flicker)
    assert {i for frame in result.values() for i in frame} == {1, 2}


def test_two_objects_reported_apart_on_one_frame_are_never_joined():
    # They share frame 3 at different places, although one begins right where the other's motion leads.
    def early(frame: int) -> tuple[float, float] | None:
        return (50.0, 50.0) if frame <= 3 else None

    def late(frame: int) -> tuple[float, float] | None:
        return (75.0, 50.0) if frame == 3 else (50.0, 50.0)

    stitcher = Stitcher(1)
    stitcher.push(window([0, 1, 2, 3], (early,)))
    stitcher.push(window([3, 4, 5, 6], (late,)))
    assert stitcher.flush().track_ids.tolist() == [2]


def test_empty_windows_emit_empty_frames():
    stitcher = Stitcher(2)
    first = stitcher.push(window(range(5), ()))
    assert (len(first), first.frame_index.tolist()) == (0, [0, 1, 2])
    second = stitcher.push(window(range(3, 8), (crossing,)))
    assert (len(second), second.frame_index.tolist()) == (1, [3, 4, 5])
    third = stitcher.push(window(range(6, 11), ()))
    assert (third.present.sum(), third.frame_index.tolist()) == (2, [6, 7, 8])
    assert (len(stitcher.flush()), len(stitcher.flush())) == (0, 0)
    assert Stitcher(0).flush().frame_index.tolist() == []


def test_tube_that_is_present_nowhere_is_dropped():
    tubes = window(range(3), (lambda frame: None,))
    stitcher = Stitcher(0)
    assert len(stitcher.push(tubes)) == 0


def test_strided_windows_keep_source_frame_numbers():
    spans = [range(0, 20, 4), range(12, 32, 4), range(24, 44, 4)]
    result = stitch(Stitcher(2), [window(span, (crossing,)) for span in spans])
    assert sorted(result) == list(range(0, 44, 4))
    assert {i for frame in result.values() for i in frame} == {1}


def test_many_tracks_on_a_grid():
    generator = torch.Generator().manual_seed(3)

    def still(row: int, column: int) -> Path:
        return lambda frame: (30.0 * column + frame % 3, 30.0 * row)

    paths = [still(row, column) for row in range(10) for column in range(10)]
    windows = [window(s, paths, order=torch.randperm(100, generator=generator).tolist()) for s in starts(23, 5, 2)]
    result = stitch(Stitcher(2), windows)
    where = {}
    for frame in result.values():
        assert len(frame) == 100
        for track, (box, _, _) in frame.items():
            cell = (round(float(box[0] + 9) / 30), round(float(box[1] + 10) / 30))
            assert where.setdefault(track, cell) == cell
    assert sorted(where) == list(range(1, 101))


def test_memory_does_not_grow_with_the_video():
    def passing(start: int) -> Path:
        return lambda frame: (10 + 2.0 * (frame - start), 40.0) if start <= frame < start + 12 else None

    def largest(length: int) -> tuple[int, int]:
        stitcher, sizes = Stitcher(2, StitchRules(max_gap=5)), []
        for span in starts(length, 6, 2):
            stitcher.push(window(span, [passing(10 * n) for n in range(length // 10)]))
            sizes.append((len(stitcher._tracks), stitcher._frames.numel()))
        return max(size[0] for size in sizes), max(size[1] for size in sizes)

    assert largest(400) == largest(100)


def test_weak_tracks_get_their_id_when_they_become_sure():
    def still(frame: int) -> tuple[float, float]:
        return (50.0, 50.0)

    def other(frame: int) -> tuple[float, float]:
        return (150.0, 50.0)

    stitcher = Stitcher(0, StitchRules(track_threshold=0.5))
    assert stitcher.push(window([0, 1], (still, other), score=0.2)).track_ids.tolist() == [-1, -1]
    assert stitcher.push(window([2, 3], (other,), score=0.6)).track_ids.tolist() == [1]
    last = stitcher.push(window([4, 5], (still, other), score=0.5))
    assert {int(box): i for box, i in zip(last.boxes[:, 0, 0], last.track_ids.tolist(), strict=True)} == {40: 2, 140: 1}


def test_ids_go_on_after_a_flush():
    stitcher = Stitcher(0)
    assert stitcher.push(window([0, 1], (crossing,))).track_ids.tolist() == [1]
    stitcher.flush()
    assert stitcher.push(window([0, 1], (crossing,))).track_ids.tolist() == [2]
    stitcher.reset()
    assert stitcher.push(window([0, 1], (crossing,))).track_ids.tolist() == [1]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="overlap=-1 must not be negative"):
        Stitcher(-1)
    with pytest.raises(ValueError, match=r"stitch.min_similarity=1.5 must lie in \[0, 1\]"):
        StitchRules(min_similarity=1.5)
    for name, value in (("max_gap", -1), ("motion_frames", 1), ("match_frames", 0)):
        with pytest.raises(ValueError, match=f"stitch.{name}={value} must be at least"):
            StitchRules(**{name: value})
    with pytest.raises(ValueError, match=r"stitch.max_distance=0 must be above 0"):
        StitchRules(max_distance=0)
    stitcher = Stitcher(1)
    stitcher.push(window([4, 5, 6], ()))
    with pytest.raises(ValueError, match="windows must advance: frame 6 after frame 6"):
        stitcher.push(window([5, 6], ()))
    with pytest.raises(ValueError, match="in order and not empty"):
        stitcher.push(window([8, 7], ()))
    with pytest.raises(ValueError, match="frame 3 is new but lies before frame 6"):
        stitcher.push(window([3, 7], ()))
