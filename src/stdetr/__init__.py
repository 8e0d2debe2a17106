"""Clip-level video object detection with spatio-temporal deformable attention."""

__version__ = "0.1.0"
