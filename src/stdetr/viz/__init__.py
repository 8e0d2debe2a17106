"""What the detector saw: overlays on video, figures of the sampled points, contact sheets."""

from __future__ import annotations
