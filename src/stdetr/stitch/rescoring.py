"""Scores averaged along tracks: what detections of single frames gain when they are joined afterwards.

The honest rival of a video detector, in the manner of Seq-NMS (Han et al., arXiv 1602.08465), which averages a score
along a chain of boxes, and REPP (Sabater et al., arXiv 2009.11050), which averages the scores of all classes along a
track; here the stitcher joins the boxes.  It looks at the whole video, so it is not causal.

Shape legend
    n detections of all videos     O objects of a frame
"""

from __future__ import annotations

import numpy as np
import torch

from stdetr.stitch.association import StitchRules
from stdetr.stitch.stitching import Stitcher
from stdetr.structures import Tubes


def rescore_tracks(
    *,
    video: np.ndarray,
    frame: np.ndarray,
    label: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    rules: StitchRules | None = None,
) -> np.ndarray:
    """New scores (n float64): the mean over the detection's track of the track's scores for its class.

    video, frame, label: n int    boxes: n,4 xywh px    scores: n, at least 0

    Detections of a frame with equal boxes are one object with a score for each class, 0 where it was not reported; an
    object joins tracks by its best class.  A box that no track continues keeps its scores, like one that the stitcher
    drops as a duplicate of a better one.
    """
    out = np.array(scores, np.float64)
    order = np.lexsort((frame, video))
    for rows in np.split(order, np.flatnonzero(np.diff(video[order])) + 1) if len(order) else []:
        tracks = _tracks(frame[rows], label[rows], boxes[rows], scores[rows], rules)
        out[rows] = _means(tracks, frame[rows], label[rows], out[rows])
    return out


def _tracks(
    frame: np.ndarray, label: np.ndarray, boxes: np.ndarray, scores: np.ndarray, rules: StitchRules | None
) -> np.ndarray:
    """The track of each detection of one video in order of frames; a negative number of its own where it has none."""
    stitcher = Stitcher(0, rules, every_track=True)  # a weak object may raise its other boxes, too
    found = -1 - np.arange(len(frame))
    for rows in np.split(np.arange(len(frame)), np.flatnonzero(np.diff(frame)) + 1):
        places, which = np.unique(boxes[rows], axis=0, return_inverse=True)
        which = which.reshape(-1)
        # The best class of each object: the last one to be written, in order of score.
        best, top = np.zeros((2, len(places)))
        for row in rows[np.argsort(scores[rows], kind="stable")]:
            best[which[row - rows[0]]], top[which[row - rows[0]]] = label[row], scores[row]
        corners = torch.from_numpy(np.concatenate([places[:, :2], places[:, :2] + places[:, 2:]], 1)).float()
        score = torch.from_numpy(top).float()
        joined = stitcher.push(
            Tubes(
                boxes=corners[:, None],
                scores=score[:, None],
                labels=torch.from_numpy(best).long(),
                track_ids=torch.full((len(places),), -1),
                frame_index=torch.tensor([int(frame[rows[0]])]),
                tube_scores=score,
                present=torch.ones(len(places), 1, dtype=torch.bool),
            )
        )
        if not len(joined):
            continue
        # Windows of one frame are returned as they were pushed, in the order of the tracks.
        objects = torch.cdist(joined.boxes[:, 0].double(), corners.double()).argmin(1).numpy()
        of_object = np.full(len(places), -1)
        of_object[objects] = joined.track_ids.numpy()
        tracked = of_object[which] >= 0
        found[rows[tracked]] = of_object[which][tracked]
    return found


def _means(track: np.ndarray, frame: np.ndarray, label: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Mean score by track and class over the frames of the track."""
    _, track = np.unique(track, return_inverse=True)
    lengths = np.bincount(np.unique(np.stack([track, frame]), axis=1)[0])
    _, pair = np.unique(np.stack([track, label]), axis=1, return_inverse=True)
    pair = pair.reshape(-1)
    return np.bincount(pair, weights=scores)[pair] / lengths[track]
