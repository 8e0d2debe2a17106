"""Boxes for the frames on which a track was not seen, from those before and after: for results that are complete, not
for a stream, which cannot wait for the end of a gap.

Shape legend
    k reported boxes of one track      n boxes filled in
"""

from __future__ import annotations

import numpy as np


def fill_gaps(
    positions: np.ndarray, boxes: np.ndarray, scores: np.ndarray, max_gap: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What lies in a track's gaps of at most ``max_gap`` positions, on the straight line between the gap's ends (as
    ByteTrack and OC-SORT complete their tracks: arXiv 2110.06864, 2203.14360).

    positions: k int, increasing     boxes: k,4     scores: k
    Returns positions (n), boxes (n,4) and scores (n), the score being the lower one of the two ends.
    """
    gaps = np.diff(positions) - 1
    ends = np.flatnonzero((gaps > 0) & (gaps <= max_gap))
    steps = np.concatenate([np.arange(1, gaps[end] + 1) for end in ends] or [np.zeros(0, np.int64)])
    end = np.repeat(ends, gaps[ends])
    share = (steps / (gaps[end] + 1))[:, None]
    return (
        positions[end] + steps,
        ((1 - share) * boxes[end] + share * boxes[end + 1]).astype(boxes.dtype),
        np.minimum(scores[end], scores[end + 1]),
    )
