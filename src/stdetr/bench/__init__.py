"""``stdetr bench suite=op|model|loader``: measure, print a table, write JSON with command, commit and machine."""

from __future__ import annotations

import difflib
import importlib

from omegaconf import DictConfig

from stdetr.bench.report import finish

SUITES = ("op", "model", "loader")


def run(cfg: DictConfig) -> None:
    """Run the suite that ``cfg.suite`` names; its module ``stdetr.bench.<suite>`` has ``run(cfg) -> dict``.

    Raises:
        ValueError: the suite is unknown, or a key of it does not fit.
    """
    suite = str(cfg.suite)
    if suite not in SUITES:
        near = difflib.get_close_matches(suite, SUITES, n=1, cutoff=0.0)[0]
        raise ValueError(f"suite must be one of {', '.join(SUITES)}, got {suite!r}; did you mean {near!r}?")
    name = f"stdetr.bench.{suite}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ValueError(f"suite={suite} is not part of this installation ({name} is missing)") from error
    result = module.run(cfg)
    table = getattr(module, "table", None)
    finish(result, table=None if table is None else table(result), output=cfg.output)
