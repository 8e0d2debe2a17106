"""``stdetr bench suite=op|model|loader``: measure, print a table, write JSON with command, commit and machine."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from stdetr.bench.report import finish
from stdetr.names import nearest

if TYPE_CHECKING:  # the op is also measured where there is no omegaconf
    from omegaconf import DictConfig

SUITES = {"op": "stdetr_ops.bench.op", "model": "stdetr.bench.model", "loader": "stdetr.bench.loader"}


def run(cfg: DictConfig) -> None:
    """Run the suite that ``cfg.suite`` names; its module has ``run(cfg) -> dict``.

    Raises:
        ValueError: the suite is unknown, or a key of it does not fit.
    """
    suite = str(cfg.suite)
    if suite not in SUITES:
        near = nearest(suite, SUITES, cutoff=0.0)
        raise ValueError(f"suite must be one of {', '.join(SUITES)}, got {suite!r}; did you mean {near!r}?")
    name = SUITES[suite]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        build = "; build it with: make ops" if name.startswith("stdetr_ops") else ""
        raise ValueError(f"suite={suite} needs {name}, which is not installed{build}") from error
    result = module.run(cfg)
    table = getattr(module, "table", None)
    finish(result, table=None if table is None else table(result), output=cfg.output)
