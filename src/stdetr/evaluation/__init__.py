"""Evaluators: COCO, ImageNet VID (devkit and MEGA rules), motion splits, tube AP, tracking, streaming."""

from __future__ import annotations

from .detections import Detections
from .evaluate import EVALUATORS, evaluate
from .ground_truth import GroundTruth
from .tubes import TubeResults

__all__ = ["EVALUATORS", "Detections", "GroundTruth", "TubeResults", "evaluate"]
