"""``metrics.jsonl``: the record of a run, which needs no account or service and only ``json`` to read.

One JSON object per line, ``{"step": 40, "split": "train", "loss": 1.25, ...}``.  Images, videos and tables are lines as
well, with split ``media`` and ``table``, and paths relative to the run's folder, so the file stays valid when the run
is moved.  Artifacts are not recorded: the files of a run already lie in its folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stdetr.atomic import write_text
from stdetr.logger.logger import Logger, Scalar, Table, to_scalar

if TYPE_CHECKING:
    from torch import Tensor


def read_metrics(path: str | Path, split: str | None = None) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``, oldest first, of one split or of all.

    A last line that a crash cut short is left out.  Raises FileNotFoundError, and ValueError with file and line for
    any other line that is not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no metrics file at {path}")
    lines = path.read_text(encoding="utf-8").split("\n")
    # A complete file ends with a newline, so whatever follows the last newline is an unfinished record.
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number} is not JSON: {error.msg}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}:{number} must be a JSON object, got {type(record).__name__}")  # noqa: TRY004
        if split is None or record.get("split") == split:
            records.append(record)
    return records


class JsonlLogger(Logger):
    """Appends records to ``<output_dir>/metrics.jsonl``; each line is on disk before the call returns.

    A fresh run keeps an earlier file of the same folder as ``metrics.<n>.jsonl``.  A resumed run drops the records
    after the resume step, which it is about to write again, and any line that a crash cut short.
    """

    def __init__(self, output_dir: str | Path, filename: str = "metrics.jsonl") -> None:
        self.root = Path(output_dir)
        self.path = self.root / filename

    def start(self, config: Mapping[str, Any], *, step: int | None = None, evaluated: bool = True) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return
        if step is None:
            if self.path.stat().st_size:
                self._keep_earlier()
            return
        again = () if evaluated else (step,)  # only the losses of that step stay
        kept = [
            record for record in read_metrics(self.path)
            if (at := record.get("step", 0)) <= step and (at not in again or record.get("split") == "train")
        ]  # fmt: skip
        write_text(self.path, "".join(_line(record) for record in kept))

    def log(self, step: int, split: str, values: Mapping[str, Tensor | Scalar]) -> None:
        self._append(step, split, {name: to_scalar(name, value) for name, value in values.items()})

    def log_media(self, step: int, key: str, path: Path) -> None:
        # os.path.relpath, not Path.relative_to: media may lie outside the run's folder.
        self._append(step, "media", {key: Path(os.path.relpath(path, self.root)).as_posix()})

    def log_table(self, step: int, key: str, table: Table) -> None:
        rows = [[value if isinstance(value, str) else to_scalar(key, value) for value in row] for row in table.rows]
        self._append(step, "table", {key: {"columns": list(table.columns), "rows": rows}})

    def _append(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        reserved = {"step", "split"} & values.keys()
        if reserved:
            raise ValueError(f"metric name {sorted(reserved)[0]!r} is reserved; rename it")
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(_line({"step": int(step), "split": split, **values}))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def _keep_earlier(self) -> None:
        number = 1
        while (earlier := self.path.with_name(f"{self.path.stem}.{number}{self.path.suffix}")).exists():
            number += 1
        self.path.rename(earlier)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
