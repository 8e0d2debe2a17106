"""Experiment tracking: W&B and ``metrics.jsonl`` behind one small protocol."""

from __future__ import annotations

from stdetr.logger.group import LoggerGroup
from stdetr.logger.jsonl import JsonlLogger, read_metrics
from stdetr.logger.logger import Logger, Scalar, Table
from stdetr.logger.revision import git_revision
from stdetr.logger.wandb import WandbLogger

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
