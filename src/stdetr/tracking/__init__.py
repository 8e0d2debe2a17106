"""Experiment tracking: W&B and ``metrics.jsonl`` behind one small protocol."""

from __future__ import annotations

from stdetr.tracking.group import LoggerGroup
from stdetr.tracking.jsonl import JsonlLogger, read_metrics
from stdetr.tracking.logger import Logger, Scalar, Table
from stdetr.tracking.revision import git_revision
from stdetr.tracking.wandb import WandbLogger

__all__ = [
    "JsonlLogger",
    "Logger",
    "LoggerGroup",
    "Scalar",
    "Table",
    "WandbLogger",
    "git_revision",
    "read_metrics",
]
