"""Evaluators: COCO, ImageNet VID (devkit and MEGA rules), motion splits, tube AP, tracking, streaming."""

from __future__ import annotations

from .detections import Detections
from .evaluate import EVALUATORS, Evaluation, evaluate
from .ground_truth import GroundTruth
from .report import summary, tables, write_reports
from .tubes import TubeResults

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
