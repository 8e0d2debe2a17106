"""Reports of an evaluation: JSON, Markdown, table rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluate import Evaluation


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` whole or not at all: a run that is killed leaves the former file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def write_reports(found: Evaluation, output_dir: Path) -> None:
    """``<output_dir>/eval/metrics.json``."""
    write_json(output_dir / "eval" / "metrics.json", found.flat())
