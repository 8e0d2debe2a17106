"""Running a trained detector on video: streaming, stitching, result files."""

from __future__ import annotations

from stdetr.inference.detector import Detector
from stdetr.inference.predictions import VideoPredictions
from stdetr.stitch.association import StitchRules
from stdetr.stitch.stitching import Stitcher

__all__ = ["Detector", "StitchRules", "Stitcher", "VideoPredictions"]
