"""Experiment logging: W&B and ``metrics.jsonl`` behind one small class."""

from __future__ import annotations

from stdetr.logger.jsonl import JsonlLogger, read_metrics
from stdetr.logger.logger import Logger, LoggerGroup, Scalar, Table
from stdetr.logger.wandb import WandbLogger, git_revision

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
