"""Pictures of detections: overlays on video, figures of the sampled points, contact sheets."""

from __future__ import annotations
