"""Weights from other systems."""

from __future__ import annotations

from stdetr.convert.huggingface import from_transformers

__all__ = ["from_transformers"]
