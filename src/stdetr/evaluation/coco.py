"""COCO AP per frame: pycocotools, faster-coco-eval, or the same rules on columns for what those cannot hold.

Shape legend
    A size ranges       C classes       T IoU thresholds        R recall points     K limits of detections
    M images            n detections    g ground truth
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from .boxes import paired_iou
from .coco_rules import LIMITS, THRESHOLDS, Candidates, mean_curve, score_class, size_ranges, twelve
from .curve import RECALL_POINTS, mean_defined
from .detections import BoundDetections
from .excuses import federation_note, not_exhaustive
from .ground_truth import GroundTruth
from .matching import ImageJoin, chunks
from .protocol import Inputs, MatchTable, Result

Backend = Literal["auto", "pycocotools", "faster-coco-eval", "columnar"]
BACKENDS = ("auto", "pycocotools", "faster-coco-eval", "columnar")
# pycocotools keeps a dict a detection and visits every image, class and size range in Python.
_MOST_DETECTIONS, _MOST_VISITS = 500_000, 400_000


class CocoEvaluator:
    """``coco/AP``, ``AP50``, ``AP75``, ``AP_small|medium|large``, ``AR1``, ``AR10``, ``AR100``, ``AR_*``; and, when
    images are marked as degraded, ``AP_degraded``, ``AP50_degraded``, ``AP_clean``, ``AP50_clean``.

    backend: ``pycocotools``; ``faster-coco-eval`` (its extra must be installed); ``columnar``, the same rules on
        numpy columns for very large inputs; ``auto`` takes pycocotools where it is practical, ``columnar`` beyond.
        The numbers are equal.  Federated annotation (LVIS's rule) is known to ``columnar`` alone.
    """

    name = "coco"
    rule = "COCO AP: IoU 0.50:0.95 of continuous boxes, 101 recall points, 100 detections a frame and class"

    def __init__(self, backend: Backend = "auto") -> None:
        if backend not in BACKENDS:
            raise ValueError(f"coco backend={backend!r}; choose one of {', '.join(BACKENDS)}")
        self.backend = backend

    def evaluate(self, inputs: Inputs) -> Result:
        gt, detections = inputs.gt, inputs.detections
        ap, recall, curve, backend = self._tables(gt, detections)
        metrics = twelve(ap, recall)
        per_class = {"AP": ap[0].mean(axis=1), "AP50": ap[0, :, 0]}
        details: dict[str, Any] = {"backend": backend, "frames": len(gt.image_ids)}
        if gt.degraded is not None:
            for name, images in (("degraded", gt.degraded), ("clean", ~gt.degraded)):
                part, _, _, _ = self._tables(gt.subset(images), detections.subset(images))
                metrics[f"AP_{name}"], metrics[f"AP50_{name}"] = mean_defined(part[0]), mean_defined(part[0, :, 0])
                details[f"frames_{name}"] = int(images.sum())
        curves = {"coco/AP50": curve} if len(curve[0]) else {}
        return Result(metrics, per_class, curves, details, note=federation_note(gt))

    def matches(self, inputs: Inputs) -> Mapping[str, MatchTable]:
        classes = [score_class(c, size_ranges(32, 96)[:1], len(inputs.gt.video_ids)) for c in _candidates(inputs)]
        by_threshold = [list(group) for group in zip(*(scores.matches for scores in classes), strict=True)]
        return {"coco/AP": MatchTable("101", by_threshold), "coco/AP50": MatchTable("101", by_threshold[:1])}

    def _tables(self, gt: GroundTruth, detections: BoundDetections) -> tuple[Any, Any, Any, str]:
        """AP (A,C,T), recall (A,C,T,K), the mean curve at IoU 0.5 and the backend that was used."""
        backend = self.backend
        if gt.federation is not None:
            if backend not in ("auto", "columnar"):
                raise ValueError(
                    f"coco_backend={backend} knows no federated annotation (neg_category_ids, "
                    "not_exhaustive_category_ids), and the annotations have it; use coco_backend=columnar"
                )
            backend = "columnar"
        if backend == "auto":
            visits = len(gt.image_ids) * max(len(gt.category_ids), 1)
            small = len(detections) <= _MOST_DETECTIONS and visits <= _MOST_VISITS
            backend = "pycocotools" if small else "columnar"
        if backend == "columnar":
            return *_columnar(Inputs(gt, detections)), backend
        return *_library(gt, detections, backend), backend


def _columnar(inputs: Inputs) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    ap, recall, curves = [], [], []
    for candidates in _candidates(inputs):
        scores = score_class(candidates, size_ranges(32, 96), len(inputs.gt.video_ids))
        ap.append(scores.ap)
        recall.append(scores.recall)
        curves.append(scores.matches[:1])
    if not ap:
        return np.full((4, 1, 10), np.nan), np.full((4, 1, 10, 3), np.nan), (np.zeros(0), np.zeros(0))
    return np.stack(ap, axis=1), np.stack(recall, axis=1), mean_curve(curves)


def _candidates(inputs: Inputs) -> Iterator[Candidates]:
    """``Candidates`` of each class in turn; detections by descending score, ties by ascending image id, then order."""
    gt, detections = inputs.gt, inputs.detections
    rank = np.empty(len(gt.image_ids), dtype=np.int64)
    rank[np.argsort(gt.image_ids, kind="stable")] = np.arange(len(gt.image_ids))
    for category in range(len(gt.category_ids)):
        rows = np.flatnonzero(detections.category == category)
        rows = rows[np.lexsort((rank[detections.image[rows]], -detections.scores[rows]))]
        mine = np.flatnonzero(gt.category == category)
        join = ImageJoin(gt.image[mine], len(gt.image_ids))
        image = detections.image[rows]
        boxes = detections.boxes[rows].astype(np.float64)
        det, truth, iou = [], [], []
        for start, stop in chunks(join.counts[image], 1 << 21):
            d, g = join.pairs(image[start:stop])
            d += start
            overlap = paired_iou(boxes[d], gt.boxes[mine[g]], over_a=gt.crowd[mine[g]])
            near = overlap >= THRESHOLDS[0]
            det.append(d[near])
            truth.append(g[near])
            iou.append(overlap[near])
        yield Candidates(
            det_group=image,
            det_area=boxes[:, 2] * boxes[:, 3],
            det_video=gt.image_video[image].astype(np.int32),
            gt_area=gt.area[mine],
            gt_crowd=gt.crowd[mine],
            gt_video=gt.video[mine],
            det=np.concatenate([*det, np.zeros(0, np.int64)]),
            gt=np.concatenate([*truth, np.zeros(0, np.int64)]),
            iou=np.concatenate([*iou, np.zeros(0)]),
            det_excused=not_exhaustive(gt, gt.image_video[image], category),
        )


def _classes_of(backend: str) -> tuple[Any, Any]:
    """The library's data set class and evaluator class, which have the same interface."""
    if backend == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    try:
        import faster_coco_eval
    except ImportError:
        raise ValueError("coco backend=faster-coco-eval needs the extra: pip install stdetr[fast-eval]") from None
    return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster


def _library(
    gt: GroundTruth, detections: BoundDetections, backend: str
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    data_set, evaluator = _classes_of(backend)
    classes = len(gt.category_ids)
    if not len(gt.boxes) or not classes:
        nothing = np.full((4, max(classes, 1), 10), np.nan)
        return nothing, np.full((4, max(classes, 1), 10, 3), np.nan), (np.zeros(0), np.zeros(0))
    # Ids are numbered anew from 1: pycocotools takes an annotation whose id is 0 for unmatched, and the order of the
    # image ids, which breaks ties, is kept.
    image_id = np.empty(len(gt.image_ids), dtype=np.int64)
    image_id[np.argsort(gt.image_ids, kind="stable")] = np.arange(1, len(gt.image_ids) + 1)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = data_set()
        truth.dataset = {
            "images": [{"id": int(i)} for i in image_id],
            "categories": [{"id": c + 1, "name": str(c)} for c in range(classes)],
            "annotations": _annotations(gt, image_id),
        }
        truth.createIndex()
        results = data_set()
        results.dataset = {
            "images": truth.dataset["images"],
            "categories": truth.dataset["categories"],
            "annotations": _results(detections, image_id),
        }
        results.createIndex()
        run = evaluator(truth, results, iouType="bbox")
        run.evaluate()
        run.accumulate()
    precision, recall = np.asarray(run.eval["precision"]), np.asarray(run.eval["recall"])  # T,R,C,A,K and T,C,A,K
    ap = precision[..., -1].mean(axis=1).transpose(2, 1, 0)
    undefined = precision[0, 0, :, :, -1].T == -1  # A,C: no ground truth of that class in that size range
    ap = np.where(undefined[..., None], np.nan, ap)
    recall = np.where(undefined[..., None, None], np.nan, recall.transpose(2, 1, 0, 3))
    assert recall.shape[-1] == len(LIMITS)
    defined = ~undefined[0]
    curve = np.zeros(0), np.zeros(0)
    if defined.any():
        curve = RECALL_POINTS, precision[0, :, :, 0, -1][:, defined].mean(axis=1)
    return ap, recall, curve


def _annotations(gt: GroundTruth, image_id: np.ndarray) -> list[dict[str, Any]]:
    columns = zip(
        image_id[gt.image].tolist(),
        (gt.category + 1).tolist(),
        gt.boxes.tolist(),
        gt.area.tolist(),
        gt.crowd.astype(int).tolist(),
        strict=True,
    )
    return [
        {"id": i, "image_id": m, "category_id": c, "bbox": box, "area": area, "iscrowd": crowd}
        for i, (m, c, box, area, crowd) in enumerate(columns, start=1)
    ]


def _results(detections: BoundDetections, image_id: np.ndarray) -> list[dict[str, Any]]:
    boxes = detections.boxes.astype(np.float64)
    columns = zip(
        image_id[detections.image].tolist(),
        (detections.category + 1).tolist(),
        boxes.tolist(),
        (boxes[:, 2] * boxes[:, 3]).tolist(),
        detections.scores.astype(np.float64).tolist(),
        strict=True,
    )
    return [
        {"id": i, "image_id": m, "category_id": c, "bbox": box, "area": area, "score": score, "iscrowd": 0}
        for i, (m, c, box, area, score) in enumerate(columns, start=1)
    ]
