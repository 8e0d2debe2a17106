"""Clip-level video object detection with spatio-temporal deformable attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stdetr.inference.detector import Detector

__version__ = "0.1.0"
__all__ = ["Detector", "__version__"]


def __getattr__(name: str) -> Any:
    # Importing the package must stay cheap: the console command answers mistakes before torch is loaded.
    if name == "Detector":
        from stdetr.inference.detector import Detector

        return Detector
    raise AttributeError(f"module 'stdetr' has no attribute {name!r}")
