"""From the tubes of consecutive windows to tracks that last through a video, online and in bounded memory.

Shape legend
    M live tracks      N tubes of the pushed window      W frames kept (buffer)      F frames emitted

A window's tubes are assigned to the live tracks in two passes, the easy one first (as in ByteTrack, Zhang et al.,
arXiv 2110.06864).  First by overlap: the mean IoU over the frames where a track and a tube both report a box, weighted
by the lower of the two scores, since the box of a frame on which the object is not seen means little.  Then, for a
track and a tube that share no such frame (windows without overlap, an object that was hidden), by motion: the distance
between the tube's first box and the place where the track's own velocity would have carried it.  Each pass is one
Hungarian assignment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_area

from stdetr.inference.motion import extrapolate, fit_velocity
from stdetr.structures import Tubes


@dataclass(frozen=True)
class StitchRules:
    """When a tube continues a track.

    min_similarity: a pair below it is never joined; similarity = geometry * (1 - class_weight * (1 - class share))
    class_weight:   0: classes do not matter; 1: a track never changes its class
    max_gap:        a track that was not seen for more source frames than this is closed
    max_distance:   for joins across a gap, the centre distance, in box sizes, at which geometry falls to 0
    motion_frames:  how many of its last frames decide a track's velocity
    damping:        the part of the velocity that is left after each frame that the track is not seen
    birth_score:    a track gets its id from the first window in which a frame reaches this score; until then its boxes
                    come out with id -1, so that clutter uses up no ids (0: every track at once)
    """

    min_similarity: float = 0.3
    class_weight: float = 0.5
    max_gap: int = 15
    max_distance: float = 2.0
    motion_frames: int = 8
    damping: float = 0.95
    birth_score: float = 0.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("min_similarity", 0, 1),
            ("class_weight", 0, 1),
            ("damping", 0, 1),
            ("birth_score", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"stitch.{name}={value} must lie in [{low}, {high}]")
        if self.max_gap < 0 or self.max_distance <= 0 or self.motion_frames < 2:
            raise ValueError(
                f"stitch needs max_gap >= 0, max_distance > 0 and motion_frames >= 2, got {self.max_gap}, "
                f"{self.max_distance} and {self.motion_frames}"
            )


@dataclass
class _Tracks:
    """The live tracks, one row each, and what they reported on the frames still kept.

    ``boxes`` and ``scores`` are weighted sums until divided by ``weights`` and ``counts``; 0 there means no report.
    """

    ids: Tensor  # M int64, -1 until it is confirmed
    votes: Tensor  # M,classes float32, sum of tube scores by class
    windows: Tensor  # M float32, how many windows reported the track
    last_box: Tensor  # M,4 xyxy, at its last report
    last_frame: Tensor  # M int64
    velocity: Tensor  # M,4 change of cxcywh per source frame
    boxes: Tensor  # M,W,4
    weights: Tensor  # M,W
    scores: Tensor  # M,W
    counts: Tensor  # M,W

    @classmethod
    def none(cls) -> _Tracks:
        rows, frames = torch.zeros(0), torch.zeros(0, 0)
        whole = torch.zeros(0, dtype=torch.int64)
        return cls(whole, frames, rows, torch.zeros(0, 4), whole, torch.zeros(0, 4), torch.zeros(0, 0, 4), frames,
                   frames, frames)  # fmt: skip

    def __len__(self) -> int:
        return self.ids.shape[0]

    def rows(self, keep: Tensor) -> _Tracks:
        return _Tracks(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))

    def columns(self, keep: Tensor) -> _Tracks:
        names = ("boxes", "weights", "scores", "counts")
        return replace(self, **{name: getattr(self, name)[:, keep] for name in names})

    def mean_boxes(self) -> Tensor:
        return self.boxes / self.weights.clamp_min(1e-12)[..., None]

    def mean_scores(self) -> Tensor:
        return self.scores / self.counts.clamp_min(1)


class Stitcher:
    """Joins windows pushed in order of time; frames come out once no later window can add to them.

    overlap: how many of its last frames a window shares with the next one (0 for adjacent windows).  They are held
             back until the next ``push``.  A window may share more than that (the last one of a video, moved back to
             be of full length): frames already out are used for matching and not sent again.

    Box and score of a frame that several windows report are means, the box's weighted by the score.  Ids count from 1
    in order of birth and are never reused.  Memory depends on the window length, ``max_gap`` and the number of
    live tracks, not on the length of the video.
    """

    def __init__(self, overlap: int, rules: StitchRules | None = None) -> None:
        if overlap < 0:
            raise ValueError(f"overlap={overlap} must not be negative")
        self.overlap = overlap
        self.rules = rules if rules is not None else StitchRules()
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next push begins a new video."""
        self._tracks = _Tracks.none()
        self._frames = torch.zeros(0, dtype=torch.int64)
        self._sent = -1
        self._next_id = 1

    def push(self, tubes: Tubes) -> Tubes:
        """Add the next window; returns the frames that are now finished (maybe none: T = 0).

        Raises ValueError if the window does not advance in time or its frames are not in order.
        """
        tubes = _on_cpu(tubes)
        frames = tubes.frame_index
        if frames.numel() == 0 or bool((frames.diff() <= 0).any()):
            raise ValueError(f"the frames of a window must be in order and not empty, got {frames.tolist()}")
        if self._frames.numel() and frames[-1] <= self._frames[-1]:
            raise ValueError(f"windows must advance: frame {int(frames[-1])} after frame {int(self._frames[-1])}")
        self._add_frames(frames)
        tubes = tubes.select(tubes.present.any(1))
        columns = torch.searchsorted(self._frames, frames)
        rows = self._assign(tubes, columns)
        self._merge(tubes, rows, columns)
        self._update_motion(rows)
        held = min(self.overlap, frames.numel())
        last = int(frames[frames.numel() - held - 1]) if held < frames.numel() else int(frames[0]) - 1
        finished = self._emit(last)
        self._forget(frames)
        return finished

    def flush(self) -> Tubes:
        """The frames still held back; afterwards the stitcher is as new, except that ids go on counting."""
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
        tracks, size = self._tracks, (len(self._tracks), new.numel())
        self._tracks = replace(
            tracks,
            boxes=torch.cat([tracks.boxes, torch.zeros(*size, 4)], 1),
            **{
                name: torch.cat([getattr(tracks, name), torch.zeros(size)], 1)
                for name in ("weights", "scores", "counts")
            },
        )

    def _assign(self, tubes: Tubes, columns: Tensor) -> Tensor:
        """N int64: the row of the track that each tube continues; new tracks get the rows after the live ones."""
        rows = torch.full((len(tubes),), -1, dtype=torch.int64)
        tracks = self._tracks
        if len(tracks) and len(tubes):
            classes = self._class_factor(tubes.labels)
            both = (tracks.weights[:, None, columns] > 0) & tubes.present[None]  # M,N,T
            shared = both.sum(-1)
            iou = _iou_per_frame(tracks.mean_boxes()[:, columns], tubes.boxes)
            sure = torch.minimum(tracks.mean_scores()[:, None, columns], tubes.scores[None]).clamp_min(1e-6) * both
            overlap = (iou * sure).sum(-1) / sure.sum(-1).clamp_min(1e-12) * classes
            _match(torch.where(shared > 0, overlap, 0.0), self.rules.min_similarity, rows)
            distant = self._gap_similarity(tubes) * classes
            # Two that reported different boxes on one frame are two objects, whatever their motion says.
            _match(torch.where(shared > 0, 0.0, distant), self.rules.min_similarity, rows)
        born = (rows < 0).nonzero().flatten()
        rows[born] = torch.arange(born.numel()) + len(tracks)
        return rows

    def _class_factor(self, labels: Tensor) -> Tensor:
        """M,N in [0,1]: 1 where all of a track's votes are for the tube's class."""
        votes = torch.nn.functional.pad(
            self._tracks.votes, (0, max(0, int(labels.max()) + 1 - self._tracks.votes.shape[1]))
        )
        share = votes / votes.sum(1, keepdim=True).clamp_min(1e-12)
        return 1 - self.rules.class_weight * (1 - share[:, labels])

    def _gap_similarity(self, tubes: Tubes) -> Tensor:
        """M,N in [0,1]: how well each tube begins where each track would be by then; 0 where it begins too early."""
        first = tubes.present.int().argmax(1)
        start = tubes.frame_index[first]
        box = tubes.boxes[torch.arange(len(tubes)), first]
        gap = start[None] - self._tracks.last_frame[:, None]
        expected = extrapolate(self._tracks.last_box, self._tracks.velocity, gap, self.rules.damping)
        centre = (expected[..., :2] + expected[..., 2:] - box[None, :, :2] - box[None, :, 2:]) / 2
        sizes = box_area(self._tracks.last_box).clamp_min(1e-6)[:, None], box_area(box).clamp_min(1e-6)[None]
        distance = centre.norm(dim=-1) / (sizes[0] * sizes[1]) ** 0.25
        ratio = torch.minimum(*sizes) / torch.maximum(*sizes)
        near = (1 - distance / self.rules.max_distance).clamp_min(0) * ratio.sqrt()
        return torch.where((gap > 0) & (gap <= self.rules.max_gap + 1), near, 0.0)

    def _merge(self, tubes: Tubes, rows: Tensor, columns: Tensor) -> None:
        born = int((rows >= len(self._tracks)).sum())
        classes = int(tubes.labels.max()) + 1 if len(tubes) else 0
        tracks = self._tracks = self._grown(born, classes)
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
        # The surest of a window come first, so that ids stay small where it matters.
        best = (tubes.scores * present).amax(1)
        confirmed = (tracks.ids[rows] < 0) & (best >= self.rules.birth_score)
        chosen = rows[confirmed][best[confirmed].argsort(descending=True, stable=True)]
        tracks.ids[chosen] = torch.arange(self._next_id, self._next_id + chosen.numel())
        self._next_id += chosen.numel()

    def _grown(self, born: int, classes: int) -> _Tracks:
        tracks, kept = self._tracks, self._frames.numel()
        width = max(classes, tracks.votes.shape[1])

        def extended(rows: Tensor, *shape: int) -> Tensor:
            return torch.cat([rows, torch.zeros(born, *shape, dtype=rows.dtype)])

        return _Tracks(
            ids=torch.cat([tracks.ids, torch.full((born,), -1)]),
            votes=extended(torch.nn.functional.pad(tracks.votes, (0, width - tracks.votes.shape[1])), width),
            windows=extended(tracks.windows),
            last_box=extended(tracks.last_box, 4),
            last_frame=extended(tracks.last_frame),
            velocity=extended(tracks.velocity, 4),
            boxes=extended(tracks.boxes, kept, 4),
            weights=extended(tracks.weights, kept),
            scores=extended(tracks.scores, kept),
            counts=extended(tracks.counts, kept),
        )

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
        """Frames up to ``last`` that were not sent yet, with the tracks that report a box on any of them."""
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
        """Drop closed tracks, and frames that are out and no longer needed for matching or velocity."""
        kept = max(window.numel(), self.rules.motion_frames)
        needed = self._frames > self._sent
        needed[-kept:] = True
        self._frames, self._tracks = self._frames[needed], self._tracks.columns(needed)
        # The earliest frame on which a tube of the next window may begin.
        following = window[-min(self.overlap, window.numel())] if self.overlap else window[-1] + 1
        alive = following - self._tracks.last_frame <= self.rules.max_gap + 1
        held = (self._tracks.counts[:, self._frames > self._sent] > 0).any(1)
        self._tracks = self._tracks.rows(alive | held)


def _on_cpu(tubes: Tubes) -> Tubes:
    moved = {name: getattr(tubes, name).detach().cpu() for name in tubes.__dataclass_fields__}
    return Tubes(**{name: value.float() if value.is_floating_point() else value for name, value in moved.items()})


def _iou_per_frame(first: Tensor, second: Tensor) -> Tensor:
    """M,N,T IoU of M,T,4 and N,T,4 xyxy boxes, frame by frame."""
    first, second = first[:, None], second[None]
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    inter = (high - low).clamp_min(0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp_min(0).prod(-1) for box in (first, second)]
    return inter / (areas[0] + areas[1] - inter).clamp_min(1e-6)


def _match(similarity: Tensor, least: float, rows: Tensor) -> None:
    """Assign free tracks to free tubes so that the total of ``similarity`` (M,N) is largest; writes into ``rows``."""
    free_tubes = (rows < 0).nonzero().flatten()
    taken = torch.zeros(similarity.shape[0], dtype=torch.bool)
    taken[rows[rows >= 0]] = True
    free_tracks = (~taken).nonzero().flatten()
    candidates = similarity[free_tracks][:, free_tubes]
    # Forbidden pairs count 0 rather than their value, so that they cannot displace an allowed one.
    allowed = candidates >= max(least, 1e-9)
    gain = torch.where(allowed, candidates, 0.0).double().numpy()
    for track, tube in zip(*linear_sum_assignment(np.asarray(gain), maximize=True), strict=True):
        if allowed[track, tube]:
            rows[free_tubes[tube]] = free_tracks[track]
