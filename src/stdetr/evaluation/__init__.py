"""Evaluators: COCO, ImageNet VID (devkit and MEGA rules), motion splits, tube AP, tracking, streaming."""

from __future__ import annotations

from stdetr.evaluation.detections import Detections
from stdetr.evaluation.evaluate import EVALUATORS, Evaluation, evaluate
from stdetr.evaluation.ground_truth import GroundTruth
from stdetr.evaluation.report import summary, tables, write_reports
from stdetr.evaluation.tubes import TubeResults

__all__ = [
    "EVALUATORS",
    "Detections",
    "Evaluation",
    "GroundTruth",
    "TubeResults",
    "evaluate",
    "summary",
    "tables",
    "write_reports",
]
