"""HOTA, CLEAR and identity metrics through TrackEval, on columns instead of MOT files.

The metrics are TrackEval's own code (Luiten et al., "HOTA: A Higher Order Metric for Evaluating Multi-Object
Tracking", 2020; Bernardin and Stiefelhagen, 2008; Ristani et al., 2016).  This file does the preparation of its
MOTChallenge reader: crowd ground truth is a distractor, and a prediction that Hungarian matching at IoU 0.5 assigns to
one is removed together with it.

Shape legend
    f frames of a video     g ground truth of a frame       d predictions of a frame
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from stdetr.evaluation.boxes import paired_iou
from stdetr.evaluation.detections import BoundDetections
from stdetr.evaluation.ground_truth import GroundTruth
from stdetr.evaluation.ignored import federation_note
from stdetr.evaluation.protocol import Evaluator, Inputs, Result
from stdetr.evaluation.records import NO_TRACK
from stdetr.evaluation.tubes import check_one_box_per_frame

HOTA_FIELDS = ("HOTA", "DetA", "AssA", "LocA", "DetRe", "DetPr", "AssRe", "AssPr")
CLEAR_FIELDS = ("MOTA", "MOTP", "MODA", "IDSW", "MT", "PT", "ML", "Frag")
CLEAR_FIELDS += ("CLR_Re", "CLR_Pr", "CLR_TP", "CLR_FN", "CLR_FP")
IDENTITY_FIELDS = ("IDF1", "IDR", "IDP", "IDTP", "IDFN", "IDFP")
PER_CLASS = ("HOTA", "MOTA", "IDF1")
_EPSILON = np.finfo(np.float64).eps


class TrackEvaluator(Evaluator):
    """``track/HOTA``, ``DetA``, ``AssA``, ``LocA``, ``MOTA``, ``IDF1``, ``IDSW`` and the metrics they are made of.

    All classes are scored as one, as in MOTChallenge; ``HOTA``, ``MOTA`` and ``IDF1`` also per class.  Only predictions
    with a ``track_id`` count, whatever their score.  If none has one but there are tubes, as when a model is evaluated,
    the tubes that score at least ``tube_score`` are the tracks.
    """

    name = "track"
    rule = "TrackEval: HOTA over IoU 0.05:0.95, CLEAR and identity at IoU 0.5, all classes as one"

    def __init__(self, tube_score: float = 0.3) -> None:
        self.tube_score = tube_score

    def evaluate(self, inputs: Inputs) -> Result:
        gt, tracked = inputs.gt, self._tracked(inputs)
        reason = ""
        if not gt.has_tracks:
            reason = "the annotations have no instance_id"
        elif gt.crowd.all():
            reason = "no annotated box counts"
        elif tracked is None:
            reason = "no prediction has a track_id"
        elif importlib.util.find_spec("trackeval") is None:
            reason = "TrackEval is not installed: pip install stdetr[track]"
        if reason or tracked is None:
            fields = HOTA_FIELDS + CLEAR_FIELDS + IDENTITY_FIELDS
            return Result(dict.fromkeys(fields, float("nan")), undefined=reason)
        check_one_box_per_frame(tracked, gt)
        combined, per_video = score_videos(gt, tracked, np.ones(len(gt.boxes), dtype=bool))
        per_class = {name: np.full(len(gt.category_ids), np.nan) for name in PER_CLASS}
        for category in range(len(gt.category_ids)):
            gt_rows, det_rows = gt.category == category, tracked.category == category
            if gt_rows.any() or det_rows.any():
                alone, _ = score_videos(gt, tracked.take(det_rows), gt_rows)
                for name in PER_CLASS:
                    per_class[name][category] = alone[name]
        details = {"per_video": per_video, "tracked_detections": len(tracked)}
        notes = []
        if inputs.detections.tracks is None:
            notes.append(
                f"no prediction has a track_id: the tubes that score at least {self.tube_score:g} are the tracks"
            )
        notes.append(federation_note(gt, unmatched="count as false"))
        return Result(combined, per_class, details=details, note="; ".join(filter(None, notes)))

    def _tracked(self, inputs: Inputs) -> BoundDetections | None:
        detections, tubes = inputs.detections, inputs.tubes
        if detections.tracks is not None:
            return detections.take(detections.tracks != NO_TRACK)
        if tubes is None:
            return None
        sure = tubes.select(tubes.scores >= self.tube_score)
        category, scores = sure.category[sure.tube], sure.scores[sure.tube]
        return BoundDetections(sure.image, category, sure.boxes, scores, sure.tube)


def score_videos(
    gt: GroundTruth, tracked: BoundDetections, rows: np.ndarray
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Metrics over all videos and of each, for the annotations that ``rows`` (A bool) names."""
    from trackeval.metrics import CLEAR, HOTA, Identity

    quiet = {"THRESHOLD": 0.5, "PRINT_CONFIG": False}
    metrics = [(HOTA(), HOTA_FIELDS), (CLEAR(quiet), CLEAR_FIELDS), (Identity(quiet), IDENTITY_FIELDS)]
    gt_rows = np.flatnonzero(rows)
    det_rows = np.argsort(tracked.image, kind="stable")
    gt_edges = np.searchsorted(gt.image[gt_rows], np.arange(len(gt.image_ids) + 1))
    det_edges = np.searchsorted(tracked.image[det_rows], np.arange(len(gt.image_ids) + 1))
    parts: list[dict[str, Any]] = [{} for _ in metrics]
    per_video: dict[str, dict[str, float]] = {}
    for video, name in enumerate(gt.video_names):
        images = np.flatnonzero(gt.image_video == video)
        frames = []
        for image in images:
            here = gt_rows[gt_edges[image] : gt_edges[image + 1]]
            there = det_rows[det_edges[image] : det_edges[image + 1]]
            frames.append(_frame(gt, tracked, here, there))
        data = _sequence(frames)
        values: dict[str, float] = {}
        for (metric, fields), part in zip(metrics, parts, strict=True):
            part[str(video)] = metric.eval_sequence(data)
            values |= _mean_fields(part[str(video)], fields)
        per_video[name] = values
    combined: dict[str, float] = {}
    for (metric, fields), part in zip(metrics, parts, strict=True):
        combined |= _mean_fields(metric.combine_sequences(part), fields)
    return combined, per_video


def _mean_fields(values: dict[str, Any], fields: tuple[str, ...]) -> dict[str, float]:
    return {name: float(np.mean(values[name])) for name in fields}


def _frame(
    gt: GroundTruth, tracked: BoundDetections, gt_rows: np.ndarray, det_rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Track numbers of ground truth (g) and predictions (d) and their IoU (g,d), without the distractors."""
    assert tracked.tracks is not None
    g, d = len(gt_rows), len(det_rows)
    first, second = np.repeat(np.arange(g), d), np.tile(np.arange(d), g)
    boxes = tracked.boxes[det_rows].astype(np.float64)
    similarity = paired_iou(gt.boxes[gt_rows][first], boxes[second]).reshape(g, d)
    crowd = gt.crowd[gt_rows]
    stays = np.ones(d, dtype=bool)
    if crowd.any() and d:
        from scipy.optimize import linear_sum_assignment

        score = np.where(similarity < 0.5 - _EPSILON, 0.0, similarity)
        row, col = linear_sum_assignment(-score)
        matched = score[row, col] > _EPSILON
        stays[col[matched & crowd[row]]] = False
    return gt.track[gt_rows][~crowd], tracked.tracks[det_rows][stays], similarity[~crowd][:, stays]


def _sequence(frames: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """The input of TrackEval's metrics for one video; ids are renumbered from 0."""

    def renumber(which: int) -> tuple[list[np.ndarray], int]:
        sizes = [len(frame[which]) for frame in frames]
        ids, numbers = np.unique(np.concatenate([frame[which] for frame in frames]), return_inverse=True)
        return np.split(numbers.reshape(-1), np.cumsum(sizes)[:-1]), len(ids)

    gt_ids, gt_count = renumber(0)
    tracker_ids, tracker_count = renumber(1)
    return {
        "gt_ids": gt_ids,
        "tracker_ids": tracker_ids,
        "similarity_scores": [frame[2] for frame in frames],
        "num_gt_ids": gt_count,
        "num_tracker_ids": tracker_count,
        "num_gt_dets": sum(len(ids) for ids in gt_ids),
        "num_tracker_dets": sum(len(ids) for ids in tracker_ids),
        "num_timesteps": len(frames),
    }
