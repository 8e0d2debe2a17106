"""The context of every suite's result (command, commit, machine), its JSON file and plain tables."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from stdetr.atomic import write_text

Row = Sequence[object]


def processor() -> str:
    """The processor's name as the system reports it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, GPU, versions, and how busy the machine was."""
    import torch

    facts: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
    return facts


def commit() -> str | None:
    """The source's commit, with ``+changes`` if files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str | None:
        folder = Path(__file__).resolve().parent
        try:
            done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    if head is None:
        return None
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/src", ":/cuda_ops")
    return f"{head}+changes" if changed else head


def command() -> str:
    """The command line as the user would repeat it."""
    program = Path(sys.argv[0]).name
    if program in {"__main__.py", "stdetr"}:
        program = "stdetr"
    return " ".join([program, *sys.argv[1:]])


def write(result: Mapping[str, Any], output: str | Path) -> None:
    """Write the result with its circumstances to ``output``, which at any moment holds one whole document."""
    document = {
        "command": command(),
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        **({} if "machine" in result else {"machine": machine()}),
        **result,
    }
    write_text(output, json.dumps(document, indent=2) + "\n")


def finish(result: Mapping[str, Any], *, table: str | None, output: str | None) -> None:
    """Print ``table`` (or every figure, one per line) and write the result with its circumstances to ``output``."""
    print("\n".join(flat_lines(result)) if table is None else table)
    if output is not None:
        write(result, output)
        print(f"written to {output}")


def flat_lines(node: object, name: str = "") -> Iterator[str]:
    """``a.b: value`` for every leaf of nested dictionaries and lists."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from flat_lines(value, f"{name}.{key}" if name else str(key))
    elif isinstance(node, (list, tuple)):
        for place, value in enumerate(node):
            yield from flat_lines(value, f"{name}[{place}]")
    else:
        yield f"{name}: {node:.4g}" if isinstance(node, float) else f"{name}: {node}"


def fit_exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log(cost) over log(size), by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    across = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return across / sum((a - mean_x) ** 2 for a in x)


def draw_table(header: Sequence[str], rows: Sequence[Row]) -> str:
    """A Markdown table, padded for the terminal; numbers to the right."""
    text = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(header, *text, strict=True)]
    right = [any(isinstance(row[place], (int, float)) for row in rows) for place in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (width - 1) + ":" if to_right else "-" * width for width, to_right in zip(widths, right, strict=True)]
    return "\n".join([line(header), line(rule), *(line(row) for row in text)])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
    return str(value)
