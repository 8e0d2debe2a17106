"""From the tubes of consecutive windows to tracks that last through a video, online and in bounded memory.

Shape legend
    M live tracks      N tubes of the pushed window      W frames kept (buffer)      F frames emitted

For each window, duplicates are removed, tubes are assigned to the live tracks (``association``), and their boxes are
merged into the state of the tracks (``tracks``).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from stdetr.stitch.association import StitchRules, assign, duplicates
from stdetr.stitch.tracks import Tracks, fit_velocity
from stdetr.structures import Tubes

NEVER = -(2**40)  # the last frame of a row that is emitted but is not a track: nothing can continue it


class Stitcher:
    """Joins windows pushed in temporal order; frames are returned once no later window can add to them.

    overlap: how many of its last frames a window shares with the next one (0 for adjacent windows).  They are held
             back until the next ``push``.  A window may share more (the last one of a video, moved back to full
             length): frames already returned are used for matching and not returned again.

    every_track: each track gets an id, however weak it is, instead of those that reach ``rules.track_threshold``

    Where several windows report a frame, box and score are means, the box weighted by score.  Ids count from 1 in order
    of birth and are never reused.  Memory depends on the window length, ``max_gap`` and the number of live tracks, not
    on the length of the video.
    """

    def __init__(self, overlap: int, rules: StitchRules | None = None, *, every_track: bool = False) -> None:
        if overlap < 0:
            raise ValueError(f"overlap={overlap} must not be negative")
        self.overlap = overlap
        self.rules = rules if rules is not None else StitchRules()
        self.confirmed = 0.0 if every_track else self.rules.track_threshold
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next push begins a new video."""
        self._tracks = Tracks.none()
        self._frames = torch.zeros(0, dtype=torch.int64)
        self._sent = -1
        self._since = 0  # the first frame of the previous window
        self._next_id = 1

    def push(self, tubes: Tubes) -> Tubes:
        """Add the next window; returns the frames that are now finished (possibly none: T = 0).

        Raises ValueError if the window does not advance in time or its frames are not in order.
        """
        frames = tubes.frame_index
        if frames.numel() == 0 or bool((frames.diff() <= 0).any()):
            raise ValueError(f"the frames of a window must be in order and not empty, got {frames.tolist()}")
        if self._frames.numel() and frames[-1] <= self._frames[-1]:
            raise ValueError(f"windows must advance: frame {int(frames[-1])} after frame {int(self._frames[-1])}")
        self._add_frames(frames)
        tubes = tubes.select(tubes.present.any(1))
        columns = torch.searchsorted(self._frames, frames)
        rules = self.rules
        twin = duplicates(tubes, iou=rules.twin_iou, iou_other_class=rules.duplicate_iou_other_class)
        duplicate = duplicates(tubes, iou=rules.duplicate_iou, iou_other_class=rules.duplicate_iou_other_class)
        rows = assign(self._tracks, tubes, columns, self._since, twin | duplicate, rules)
        kept = (rows >= 0) | ~duplicate
        tubes, rows, passing = tubes.select(kept), rows[kept], (twin & (rows < 0))[kept]
        born = (rows < 0).nonzero().flatten()
        rows[born] = torch.arange(born.numel()) + len(self._tracks)
        self._merge(tubes, rows, columns, passing)
        self._update_motion(rows)
        self._tracks.last_frame[rows[passing]] = NEVER
        held = min(self.overlap, frames.numel())
        last = int(frames[frames.numel() - held - 1]) if held < frames.numel() else int(frames[0]) - 1
        finished = self._emit(last)
        self._forget(frames)
        self._since = int(frames[0])
        return finished

    def flush(self) -> Tubes:
        """The frames still held back; afterwards the stitcher is reset, except that ids continue."""
        finished = self._emit(int(self._frames[-1]) if self._frames.numel() else -1)
        following = self._next_id
        self.reset()
        self._next_id = following
        return finished

    def _add_frames(self, frames: Tensor) -> None:
        new = frames[~torch.isin(frames, self._frames)]
        if self._frames.numel() and new.numel() and new[0] < self._frames[-1]:
            raise ValueError(f"frame {int(new[0])} is new but lies before frame {int(self._frames[-1])}, already seen")
        self._frames = torch.cat([self._frames, new])
        self._tracks = self._tracks.with_frames(new.numel())

    def _merge(self, tubes: Tubes, rows: Tensor, columns: Tensor, passing: Tensor) -> None:
        born = int((rows >= len(self._tracks)).sum())
        classes = int(tubes.labels.max()) + 1 if len(tubes) else 0
        tracks = self._tracks = self._tracks.with_rows(born, classes)
        if not len(tubes):
            return
        present = tubes.present.float()
        # A reported box counts at least a little, so that a score of 0 cannot lose it.
        weights = present * tubes.scores.clamp_min(1e-6)
        where = rows[:, None], columns[None]
        tracks.boxes.index_put_(where, tubes.boxes * weights[..., None], accumulate=True)
        tracks.weights.index_put_(where, weights, accumulate=True)
        tracks.scores.index_put_(where, tubes.scores * present, accumulate=True)
        tracks.counts.index_put_(where, present, accumulate=True)
        tracks.votes.index_put_((rows, tubes.labels), tubes.tube_scores, accumulate=True)
        tracks.windows[rows] += 1
        # The most confident of a window come first, so that they get the smallest ids.
        best = (tubes.scores * present).amax(1)
        tracks.best[rows] = torch.maximum(tracks.best[rows], best)
        confirmed = (tracks.ids[rows] < 0) & (best >= self.confirmed) & ~passing
        chosen = rows[confirmed][best[confirmed].argsort(descending=True, stable=True)]
        tracks.ids[chosen] = torch.arange(self._next_id, self._next_id + chosen.numel())
        self._next_id += chosen.numel()

    def _update_motion(self, rows: Tensor) -> None:
        tracks = self._tracks
        if not rows.numel():
            return
        seen, boxes = tracks.weights[rows] > 0, tracks.mean_boxes()[rows]
        order = torch.arange(1, seen.shape[1] + 1)
        last = (seen * order).argmax(1)
        tracks.last_frame[rows] = self._frames[last]
        tracks.last_box[rows] = boxes[torch.arange(rows.numel()), last]
        # The newest `motion_frames` reports of each track.
        recent = seen & (seen.flip(1).cumsum(1).flip(1) <= self.rules.motion_frames)
        tracks.velocity[rows] = fit_velocity(boxes, recent, self._frames)

    def _emit(self, last: int) -> Tubes:
        """Frames up to ``last`` that were not returned yet, with the tracks that report a box on any of them."""
        columns = ((self._frames > self._sent) & (self._frames <= last)).nonzero().flatten()
        if columns.numel():
            self._sent = last
        tracks = self._tracks.columns(columns)
        present = tracks.counts > 0
        tracks, present = tracks.rows(present.any(1)), present[present.any(1)]
        labels = tracks.votes.argmax(1) if tracks.votes.shape[1] else torch.zeros(len(tracks), dtype=torch.int64)
        best = tracks.votes[torch.arange(len(tracks)), labels] if len(tracks) else torch.zeros(0)
        return Tubes(
            boxes=tracks.mean_boxes(),
            scores=tracks.mean_scores(),
            labels=labels,
            track_ids=tracks.ids,
            frame_index=self._frames[columns],
            tube_scores=best / tracks.windows.clamp_min(1),
            present=present,
        )

    def _forget(self, window: Tensor) -> None:
        """Drop closed tracks, and returned frames that are no longer needed for matching or velocity."""
        kept = max(window.numel(), self.rules.motion_frames)
        needed = self._frames > self._sent
        needed[-kept:] = True
        self._frames, self._tracks = self._frames[needed], self._tracks.columns(needed)
        # The earliest frame on which a tube of the next window may begin.
        following = window[-min(self.overlap, window.numel())] if self.overlap else window[-1] + 1
        alive = following - self._tracks.last_frame <= self.rules.max_gap + 1
        held = (self._tracks.counts[:, self._frames > self._sent] > 0).any(1)
        self._tracks = self._tracks.rows(alive | held)


def trackable(pairs: Tubes, score_threshold: float) -> Tubes:
    """What is stitched of a window's (tube, class) pairs: those whose best frame reaches ``score_threshold``, each
    query once, under its most confident class, the most confident first.

    DETR's evaluation reports a query under several classes, which average precision rewards; as a track, a query is one
    object.
    """
    pairs = pairs.select(pairs.scores.amax(1) >= score_threshold)
    assert pairs.queries is not None, "pairs come from a window"
    kept, seen = [], set()
    queries = pairs.queries.tolist()
    for row in pairs.tube_scores.argsort(descending=True, stable=True).tolist():
        if queries[row] not in seen:
            seen.add(queries[row])
            kept.append(row)
    return pairs.select(torch.tensor(kept, dtype=torch.int64))


def visible_frames(tubes: Tubes, *, score_threshold: float) -> Tubes:
    """Keep as present only the frames whose score reaches ``score_threshold``; tubes without one are dropped."""
    there = (tubes.scores >= score_threshold) & tubes.present
    return replace(tubes, present=there).select(there.any(1))
