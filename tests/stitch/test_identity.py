"""Ids that last: what duplicates, weak detections, occlusion and crossings must not do to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stdetr.inference.predictions import VideoInfo, VideoPredictions
from stdetr.stitch.association import StitchRules
from stdetr.stitch.stitching import Stitcher
from stdetr.stitch.tracks import fill_gaps
from stdetr.structures import ClassNames, Tubes

Row = tuple[float, float, float]  # centre x, centre y, score of a 20 x 40 box


def clip(frames: range, *tubes: dict[int, Row]) -> Tubes:
    """One clip: each tube says where it is on which frames."""
    count, length = len(tubes), len(frames)
    boxes, scores = torch.zeros(count, length, 4), torch.zeros(count, length)
    present = torch.zeros(count, length, dtype=torch.bool)
    for n, tube in enumerate(tubes):
        for t, frame in enumerate(frames):
            if frame in tube:
                x, y, score = tube[frame]
                boxes[n, t] = torch.tensor([x - 10, y - 20, x + 10, y + 20])
                scores[n, t], present[n, t] = score, True
    labels = torch.zeros(count, dtype=torch.int64)
    return Tubes(
        boxes, scores, labels, labels - 1, torch.tensor(list(frames)), scores.amax(1) if count else labels.float(),
        present,
    )  # fmt: skip


def walk(frames: range, x: float, speed: float, y: float = 50, score: float = 0.8) -> dict[int, Row]:
    return {frame: (x + speed * frame, y, score) for frame in frames}


def predictions(stitcher: Stitcher, clips: list[Tubes]) -> VideoPredictions:
    pieces = [stitcher.push(item) for item in clips]
    info = VideoInfo("v", "v", (200, 400), 10.0, ())
    return VideoPredictions.from_clips([*pieces, stitcher.flush()], info, ClassNames((1,), ("person",)))


def ids_at(found: VideoPredictions, path: dict[int, Row]) -> list[int]:
    """The ids, in order of time, of the detections whose centre lies on ``path``."""
    result = []
    for frame, (x, y, _) in sorted(path.items()):
        rows = found.on_frame(frame)
        centres = (rows["boxes"][:, :2] + rows["boxes"][:, 2:]) / 2
        result += rows["track_ids"][np.abs(centres - [x, y]).max(1) < 0.5].tolist()
    return result


def spans(length: int, frames: int, overlap: int) -> list[range]:
    starts = list(range(0, length - frames, frames - overlap))
    return [range(start, start + frames) for start in [*starts, length - frames]]


def cut(path: dict[int, Row], span: range) -> dict[int, Row]:
    return {frame: row for frame, row in path.items() if frame in span}


@pytest.mark.parametrize(("frames", "overlap"), [(5, 0), (5, 2), (1, 0)])
def test_a_duplicate_never_takes_the_id(frames: int, overlap: int):
    # A second tube 3 px beside the first (IoU 17 / 23), in each clip stronger or weaker in turn.
    clips = []
    for n, span in enumerate(spans(20, frames, overlap)):
        first, second = walk(span, 50, 3, score=0.8), walk(span, 53, 3, score=0.7 if n % 2 else 0.9)
        clips.append(clip(span, first, second))
    found = predictions(Stitcher(overlap), clips)
    assert len(found) == 20
    assert set(found.track_ids.tolist()) == {1}
    kept_twin = predictions(Stitcher(overlap, StitchRules(duplicate_iou=1.0)), clips)
    assert len(kept_twin) >= 40  # on common frames, the twins of both windows
    assert sorted(set(kept_twin.track_ids.tolist())) == [-1, 1]
    assert (kept_twin.track_ids == 1).sum() == 20
    kept_both = predictions(Stitcher(overlap, StitchRules(duplicate_iou=1.0, twin_iou=1.0)), clips)
    assert len(kept_both) == 40
    assert set(kept_both.track_ids.tolist()) == {1, 2}


@pytest.mark.parametrize("overlap", [0, 2])
def test_two_that_cover_each_other_while_they_cross_stay_two(overlap: int):
    # They meet at frame 12 on one row: there their boxes are equal, and one is taken for a duplicate of the other.
    right, left = walk(range(25), 40, 5), walk(range(25), 160, -5, score=0.7)
    clips = [clip(span, cut(right, span), cut(left, span)) for span in spans(25, 5, overlap)]
    found = predictions(Stitcher(overlap), clips)
    apart = [frame for frame in range(25) if frame != 12]
    assert set(ids_at(found, {f: right[f] for f in apart})) == {1}
    assert set(ids_at(found, {f: left[f] for f in apart})) == {2}
    assert len(found) == 50


def test_overlap_at_a_crossing_is_decided_by_motion():
    # Frames 8 and 9 are shared; there both stand close, and the next clip's tubes begin on the wrong ones.
    right, left = walk(range(20), 20, 10), walk(range(20), 190, -10)
    right_again = {**cut(right, range(8, 18)), 8: left[8], 9: left[9]}
    left_again = {**cut(left, range(8, 18)), 8: right[8], 9: right[9]}
    clips = [clip(range(10), cut(right, range(10)), cut(left, range(10))), clip(range(8, 18), right_again, left_again)]
    by_motion = predictions(Stitcher(2, StitchRules(motion_weight=1.0)), clips)
    after = range(11, 18)
    assert set(ids_at(by_motion, cut(right, after))) == set(ids_at(by_motion, cut(right, range(7))))
    assert set(ids_at(by_motion, cut(left, after))) == set(ids_at(by_motion, cut(left, range(7))))
    by_boxes = predictions(Stitcher(2, StitchRules(motion_weight=0.0)), clips)
    assert set(ids_at(by_boxes, cut(right, after))) == set(ids_at(by_boxes, cut(left, range(7))))


def test_weak_detections_carry_a_track_over_but_do_not_bring_it_back():
    def found(weak: range, hidden: range) -> list[int]:
        path = walk(range(40), 30, 2)
        path.update(walk(weak, 30, 2, score=0.1))
        seen = {frame: row for frame, row in path.items() if frame not in hidden}
        clips = [clip(span, cut(seen, span)) if cut(seen, span) else clip(span) for span in spans(40, 5, 0)]
        return ids_at(predictions(Stitcher(0, StitchRules(track_threshold=0.4)), clips), seen)

    assert set(found(weak=range(10, 20), hidden=range(0))) == {1}
    # Hidden for ten frames and weak for five: the weak ones are nobody's, the strong ones after them are its own.
    assert found(weak=range(20, 25), hidden=range(10, 20)) == [1] * 10 + [-1] * 5 + [1] * 15


def test_a_strong_tube_goes_to_the_strong_track_before_a_weak_one_fits_better():
    # The weak track lies exactly where the tube continues, the strong one 4 px off.
    first = clip(range(2), walk(range(2), 50, 0), walk(range(2), 54, 0, y=58, score=0.2))
    second = clip(range(2, 4), walk(range(2, 4), 54, 0, y=58))
    stitcher = Stitcher(0, StitchRules(track_threshold=0.4))
    stitcher.push(first)
    assert stitcher.push(second).track_ids.tolist() == [1]


@pytest.mark.parametrize(("gap", "expected"), [(6, {1}), (20, {1}), (31, {1, 2})])
def test_occlusion_is_bridged_by_motion_up_to_max_gap(gap: int, expected: set[int]):
    hidden = range(10, 10 + gap)
    path = {f: row for f, row in walk(range(60), 20, 3).items() if f not in hidden}
    clips = [clip(span, cut(path, span)) if cut(path, span) else clip(span) for span in spans(60, 5, 0)]
    found = predictions(Stitcher(0, StitchRules(damping=1.0, max_gap=30)), clips)
    assert set(found.track_ids.tolist()) == expected


def test_one_who_enters_elsewhere_is_someone_else():
    leaves = walk(range(10), 20, 3)
    enters = walk(range(15, 30), 320, -3)
    clips = [clip(span, *(part for part in (cut(leaves, span), cut(enters, span)) if part)) for span in spans(30, 5, 0)]
    found = predictions(Stitcher(0), clips)
    assert (set(ids_at(found, leaves)), set(ids_at(found, enters))) == ({1}, {2})


def test_of_two_lost_tracks_the_one_seen_last_goes_on():
    # Both stood at x = 50; one was last seen on frame 1, the other (born there later) on frame 11.
    clips = [
        clip(range(2), walk(range(2), 50, 0)),
        clip(range(2, 10)),
        clip(range(10, 12), walk(range(10, 12), 50, 0)),
    ]
    rules = StitchRules(max_gap=12, gap_weight=1.0, min_similarity=0.5)  # 8 of 12 frames: similarity 1 / 3
    stitcher = Stitcher(0, rules)
    assert [stitcher.push(item).track_ids.tolist() for item in clips] == [[1], [], [2]]
    assert stitcher.push(clip(range(12, 14), walk(range(12, 14), 50, 0))).track_ids.tolist() == [2]
    loose = Stitcher(0, StitchRules(max_gap=12, gap_weight=0.5, min_similarity=0.5))
    assert [loose.push(item).track_ids.tolist() for item in clips] == [[1], [], [1]]


def test_gaps_are_filled_on_the_line_between_their_ends():
    boxes = np.array([[0, 0, 10, 10], [6, 3, 16, 13], [9, 3, 19, 13]], np.float32)
    new, filled, scores = fill_gaps(np.array([4, 7, 12]), boxes, np.array([0.9, 0.6, 0.8]), 2)
    assert new.tolist() == [5, 6]
    assert filled.tolist() == [[2, 1, 12, 11], [4, 2, 14, 12]]
    assert filled.dtype == np.float32
    assert scores.tolist() == [0.6, 0.6]
    assert fill_gaps(np.array([4, 7, 12]), boxes, np.ones(3), 4)[0].tolist() == [5, 6, 8, 9, 10, 11]
    assert fill_gaps(np.array([4, 7, 12]), boxes, np.ones(3), 0)[0].tolist() == []
    assert fill_gaps(np.array([4]), boxes[:1], np.ones(1), 9)[0].tolist() == []
    assert fill_gaps(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0), 9)[1].shape == (0, 4)


def test_filled_predictions_keep_order_and_leave_unconfirmed_ones_alone():
    path = walk(range(0, 24, 2), 20, 3)
    hidden = {f: row for f, row in path.items() if f not in (8, 10, 16)}
    weak = {0: (200.0, 50.0, 0.1), 6: (200.0, 50.0, 0.1)}
    frames = range(0, 24, 2)  # every second frame is looked at
    found = predictions(Stitcher(0, StitchRules(track_threshold=0.4)), [clip(frames, hidden, weak)])
    assert len(found) == 9 + 2
    once = found.filled(1)
    assert once.frame_index[once.track_ids == 1].tolist() == [0, 2, 4, 6, 12, 14, 16, 18, 20, 22]
    full = found.filled(2)
    assert ids_at(full, path) == [1] * 12
    assert full.frame_index.tolist() == sorted(full.frame_index.tolist())
    assert full.on_frame(6)["scores"].tolist() == pytest.approx([0.8, 0.1])
    assert len(full) == 12 + 2
    assert len(found.filled(0)) == len(found)
    with pytest.raises(ValueError, match="fill_gap=-1 must not be negative"):
        found.filled(-1)
    nothing = predictions(Stitcher(0), [clip(range(3))])
    assert len(nothing.filled(5)) == 0
