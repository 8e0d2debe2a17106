"""The console command: ``stdetr <verb> key=value ...``."""

from __future__ import annotations

from stdetr.cli.main import main

__all__ = ["main"]
