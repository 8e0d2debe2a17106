"""The numbers that decide when the tube of a window continues a track."""

from __future__ import annotations

from dataclasses import dataclass

_SHARES = (
    "min_similarity", "class_weight", "motion_weight", "gap_weight", "damping", "high_score", "birth_score",
    "twin_iou", "duplicate_iou", "duplicate_iou_other_class",
)  # fmt: skip


@dataclass(frozen=True)
class StitchRules:
    """When a tube continues a track, when it is a duplicate, and when a track gets its id.

    min_similarity: a pair below it is never joined; similarity = geometry * (1 - class_weight * (1 - class share))
    class_weight:   0: classes do not matter; 1: a track never changes its class
    max_gap:        a track that was not seen for more source frames than this is closed
    max_distance:   for joins without a common frame, the centre distance, in box sizes, at which geometry falls to 0
    motion_weight:  for joins by common frames, how much the motion on the tube's new frames counts beside the IoU
    gap_weight:     how much of the geometry is lost over a gap of ``max_gap`` frames: of two tracks that fit alike, the
                    one that was seen more recently goes on
    motion_frames:  how many of its last frames decide a track's velocity
    match_frames:   on how many frames after the track's end a tube is compared with the track's motion
    damping:        the part of the velocity that is left after each frame that the track is not seen
    high_score:     tubes whose best frame reaches it are assigned before the weaker ones, and to tracks that have
                    reached it before; a track that has not been seen for a while comes back with such a tube only
    birth_score:    a track gets its id from the first window in which a frame reaches this score; until then its boxes
                    come out with id -1, so that clutter uses up no ids (0: every track at once)
    twin_iou:       of two tubes of one window that overlap this much, the weaker starts no track: its boxes come out
                    with id -1, unless it continues a track that nothing else does (1: every tube may)
    duplicate_iou:  of two tubes of one window that overlap this much, the weaker is left out altogether (1: none is)
    duplicate_iou_other_class: both for tubes of different classes
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
    high_score: float = 0.4
    birth_score: float = 0.0
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
