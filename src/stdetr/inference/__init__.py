"""Running a trained detector on video: streaming, stitching, result files."""

from __future__ import annotations

from stdetr.inference.detector import Detector
from stdetr.inference.predictions import VideoPredictions
from stdetr.inference.rules import StitchRules
from stdetr.inference.stitching import Stitcher

__all__ = ["Detector", "StitchRules", "Stitcher", "VideoPredictions"]
