"""Which track each tube of a window continues, and which tubes of a window are duplicates.

Shape legend
    M live tracks      N tubes of the window      T its frames      K first frames of a tube

Two similarities, both in [0,1].  By overlap: the mean IoU over the frames where a track and a tube both report a box,
weighted by the lower of the two scores, since the box on a frame where the object is not seen means little.  By motion,
for a pair without such a frame (windows without overlap, an object that was hidden): how close the tube's first boxes
are to the positions predicted by the track's velocity, and the track's last box to the position that the tube's
velocity implies backwards.

Constant velocity and assignment by overlap are those of SORT (Bewley et al., arXiv 1602.00763); velocity from observed
boxes only, and the direction of the new observations as further evidence, follow OC-SORT (Cao et al., arXiv
2203.14360); strong detections before weak ones is ByteTrack's rule (Zhang et al., arXiv 2110.06864).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from stdetr.stitch.tracks import Tracks, extrapolate, fit_velocity
from stdetr.structures import Tubes

_SHARES = (
    "min_similarity", "class_weight", "motion_weight", "gap_weight", "damping", "score_threshold",
    "track_threshold", "twin_iou", "duplicate_iou", "duplicate_iou_other_class",
)  # fmt: skip


@dataclass(frozen=True)
class StitchRules:
    """When a tube continues a track, when it is a duplicate, and when a track gets its id.

    min_similarity: a pair below it is not joined; similarity = geometry * (1 - class_weight * (1 - class share))
    class_weight:   0: classes do not matter; 1: a track never changes its class
    max_gap:        a track that was not seen for more source frames than this is closed
    max_distance:   for joins without a common frame, the centre distance, in box sizes, at which geometry falls to 0
    motion_weight:  for joins by common frames, how much the motion on the tube's new frames counts beside the IoU
    gap_weight:     how much of the geometry is lost over a gap of ``max_gap`` frames: of two tracks that fit equally,
                    the one that was seen more recently continues
    motion_frames:  number of last frames that determine a track's velocity
    match_frames:   number of frames after the track's end on which a tube is compared with the track's motion
    damping:        the part of the velocity that is left after each frame without the track
    score_threshold: tubes whose best frame has a lower score are left out
    track_threshold: tubes whose best frame reaches it are strong.  They are assigned before weaker ones, and to tracks
                    that have been strong before; a track that has been unseen for a while is resumed only by one; and a
                    track gets its id from its first one: until then its boxes have id -1, so that clutter uses up no
                    ids
    twin_iou:       of two tubes of one window that overlap this much, the weaker starts no track: its boxes have id -1,
                    unless it continues a track that no other tube continues (1: every tube may start one)
    duplicate_iou:  of two tubes of one window that overlap this much, the weaker is dropped (1: none is)
    duplicate_iou_other_class: both thresholds for tubes of different classes
    """

    min_similarity: float = 0.3
    class_weight: float = 0.5
    max_gap: int = 30
    max_distance: float = 1.5
    motion_weight: float = 1.0
    gap_weight: float = 0.5
    motion_frames: int = 12
    match_frames: int = 3
    damping: float = 0.95
    score_threshold: float = 0.05
    track_threshold: float = 0.4
    twin_iou: float = 0.6
    duplicate_iou: float = 0.7
    duplicate_iou_other_class: float = 0.9

    def __post_init__(self) -> None:
        for name in _SHARES:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"stitch.{name}={value} must lie in [0, 1]")
        for name, least in (("max_gap", 0), ("motion_frames", 2), ("match_frames", 1)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"stitch.{name}={value} must be at least {least}")
        if self.max_distance <= 0:
            raise ValueError(f"stitch.max_distance={self.max_distance} must be above 0")


def assign(tracks: Tracks, tubes: Tubes, columns: Tensor, since: int, duplicate: Tensor, rules: StitchRules) -> Tensor:
    """N int64: the row of the track that each tube continues, -1 for a tube that continues none.

    columns: T, positions of the tubes' frames among the frames that the tracks keep
    since: a track that was seen on this frame or later is in sight
    duplicate: N bool, tubes that a more confident one covers

    The most confident first, each step a Hungarian assignment of the remaining ones, by overlap and then by motion:
    strong tubes to tracks that have been strong, weak tubes to those of them that are in sight, and the rest to the
    rest.  A duplicate only continues a strong track that no other tube continues: crossing objects also overlap.
    """
    rows = torch.full((len(tubes),), -1, dtype=torch.int64)
    if not len(tracks) or not len(tubes):
        return rows
    classes = class_factor(tracks, tubes.labels, rules.class_weight)
    overlap, shared = overlap_similarity(tracks, tubes, columns)
    motion = motion_similarity(tracks, tubes, rules) * classes
    overlap = overlap * classes
    # Boxes on common frames decide whether a pair may be joined; motion helps to choose between such pairs.
    mixed = (1 - rules.motion_weight) * overlap + rules.motion_weight * motion
    joinable = (overlap >= rules.min_similarity) & (tracks.last_frame >= 0)[:, None]
    overlap = torch.where(joinable, mixed.clamp_min(rules.min_similarity), 0.0)
    # A pair that reported different boxes on one frame is two objects, whatever the motion.
    motion = torch.where(shared, 0.0, motion)

    strong_tube = ((tubes.scores * tubes.present).amax(1) >= rules.track_threshold)[None]
    strong_track = (tracks.best >= rules.track_threshold)[:, None]
    in_sight = (tracks.last_frame >= since)[:, None]
    first = ~duplicate[None]
    for allowed in (
        first & strong_track & strong_tube,
        first & strong_track & ~strong_tube & in_sight,
        first & ~strong_track & (strong_tube | in_sight),
        ~first & strong_track & strong_tube & in_sight,
    ):
        for similarity in (overlap, motion):
            match(torch.where(allowed, similarity, 0.0), rules.min_similarity, rows)
    return rows


def class_factor(tracks: Tracks, labels: Tensor, weight: float) -> Tensor:
    """M,N in [0,1]: 1 where all of a track's votes are for the tube's class, 1 - ``weight`` where none is."""
    votes = pad(tracks.votes, (0, max(0, int(labels.max()) + 1 - tracks.votes.shape[1])))
    share = votes / votes.sum(1, keepdim=True).clamp_min(1e-12)
    return 1 - weight * (1 - share[:, labels])


def overlap_similarity(tracks: Tracks, tubes: Tubes, columns: Tensor) -> tuple[Tensor, Tensor]:
    """M,N in [0,1], 0 where no frame is shared, and M,N bool: a frame is shared."""
    both = (tracks.weights[:, None, columns] > 0) & tubes.present[None]  # M,N,T
    iou = iou_per_frame(tracks.mean_boxes()[:, columns], tubes.boxes)
    sure = torch.minimum(tracks.mean_scores()[:, None, columns], tubes.scores[None]).clamp_min(1e-6) * both
    return (iou * sure).sum(-1) / sure.sum(-1).clamp_min(1e-12), both.any(-1)


def motion_similarity(tracks: Tracks, tubes: Tubes, rules: StitchRules) -> Tensor:
    """M,N in [0,1], on the first ``match_frames`` frames of each tube after the track's end; 0 where it has none, or
    none before ``max_gap`` is over.

    If the tube begins after the track's end and has more than one frame, its own motion is also compared, backwards,
    with the track's last box.
    """
    gaps = tubes.frame_index[None, None] - tracks.last_frame[:, None, None]  # M,1,T
    new = tubes.present[None] & (gaps > 0)  # M,N,T
    compared = new & (new.cumsum(-1) <= rules.match_frames)
    expected = extrapolate(tracks.last_box, tracks.velocity, gaps[:, 0], rules.damping)  # M,T,4
    near = closeness(expected[:, None], tubes.boxes[None], rules.max_distance) * compared
    forward = near.sum(-1) / compared.sum(-1).clamp_min(1)

    first = tubes.present.int().argmax(1)
    start = tubes.boxes[torch.arange(len(tubes)), first]
    gap = tubes.frame_index[first][None] - tracks.last_frame[:, None]  # M,N
    velocity = fit_velocity(tubes.boxes, tubes.present, tubes.frame_index)
    came_from = extrapolate(start, -velocity, gap.T, rules.damping).transpose(0, 1)
    backward = closeness(came_from, tracks.last_box[:, None], rules.max_distance)
    moving = (tubes.present.sum(1) > 1)[None] & (gap > 0)
    geometry = torch.where(moving, (forward + backward) / 2, forward)
    kept = 1 - rules.gap_weight * (gap - 1).clamp_min(0) / max(rules.max_gap, 1)
    return torch.where(new.any(-1) & (gap <= rules.max_gap + 1), geometry * kept, 0.0)


def closeness(first: Tensor, second: Tensor, max_distance: float) -> Tensor:
    """In [0,1] for boxes xyxy that broadcast: 1 for equal ones, falling linearly with the distance of the centres, in
    widths and heights, and with the root of the ratio of the areas."""
    sizes = [(box[..., 2:] - box[..., :2]).clamp_min(1e-3) for box in (first, second)]
    centres = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]) / 2
    distance = (centres / (sizes[0] * sizes[1]).sqrt()).norm(dim=-1)
    areas = [size.prod(-1) for size in sizes]
    ratio = torch.minimum(*areas) / torch.maximum(*areas)
    return (1 - distance / max_distance).clamp_min(0) * ratio.sqrt()


def match(similarity: Tensor, least: float, rows: Tensor) -> None:
    """Assign free tracks to free tubes so that the total of ``similarity`` (M,N) is largest; writes into ``rows``."""
    free_tubes = (rows < 0).nonzero().flatten()
    taken = torch.zeros(similarity.shape[0], dtype=torch.bool)
    taken[rows[rows >= 0]] = True
    free_tracks = (~taken).nonzero().flatten()
    candidates = similarity[free_tracks][:, free_tubes]
    # Forbidden pairs count 0 instead of their value, so that they cannot displace an allowed one.
    allowed = candidates >= max(least, 1e-9)
    if not bool(allowed.any()):
        return
    from scipy.optimize import linear_sum_assignment  # slow to import, and a detector is built without it

    gain = torch.where(allowed, candidates, 0.0).double().numpy()
    for track, tube in zip(*linear_sum_assignment(np.asarray(gain), maximize=True), strict=True):
        if allowed[track, tube]:
            rows[free_tubes[tube]] = free_tracks[track]


def iou_per_frame(first: Tensor, second: Tensor) -> Tensor:
    """M,N,T IoU of M,T,4 and N,T,4 xyxy boxes, frame by frame; 0 where both boxes are empty."""
    from torchvision.ops import box_iou  # slow to import, and a detector is built without it

    return box_iou(first.transpose(0, 1), second.transpose(0, 1)).nan_to_num(0.0).permute(1, 2, 0)


def duplicates(tubes: Tubes, *, iou: float, iou_other_class: float) -> Tensor:
    """N bool, by greedy non-maximum suppression of whole tubes, the largest sum of scores first.

    A tube is a duplicate when a more confident one covers it: the mean IoU over the weaker one's frames (0 where the
    other reports no box), weighted by the weaker one's scores, exceeds ``iou``, or ``iou_other_class`` where the
    classes differ.  With 1 there are no duplicates.
    """
    weight = tubes.scores.clamp_min(1e-6) * tubes.present
    covered = iou_per_frame(tubes.boxes, tubes.boxes) * tubes.present[:, None]  # by N (first), of N (second)
    share = (covered * weight[None]).sum(-1) / weight.sum(-1).clamp_min(1e-12)
    same = tubes.labels[:, None] == tubes.labels[None]
    covers = share > torch.where(same, iou, iou_other_class)
    kept: list[int] = []
    for row in weight.sum(1).argsort(descending=True, stable=True).tolist():
        if not covers[kept, row].any():
            kept.append(row)
    found = torch.ones(len(tubes), dtype=torch.bool)
    found[kept] = False
    return found
