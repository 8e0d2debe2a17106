"""``stdetr doctor``: whether this installation works, and what is missing.

Nothing that a broken installation could break is imported at the top: each check imports what it examines.
"""

from __future__ import annotations

from omegaconf import DictConfig

from stdetr.doctor.check import Check, run_checks
from stdetr.doctor.machine import check_compiler, check_devices, check_disk, check_python
from stdetr.doctor.packages import check_dependencies, check_extras, check_torch
from stdetr.doctor.parts import check_configurations, check_ops, check_video, check_wandb

__all__ = ["Check", "run", "run_checks"]


def run(cfg: DictConfig) -> int:
    """Print every check and return 1 where something needed is broken, else 0."""
    folders = {"data": str(cfg.paths.data), "outputs": str(cfg.paths.outputs)}
    checks = run_checks(
        check_python,
        check_dependencies,
        check_torch,
        check_devices,
        check_ops,
        check_compiler,
        check_video,
        check_configurations,
        check_wandb,
        check_extras,
        lambda: check_disk(folders),
    )
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(check.line(width))
    broken = [check.name for check in checks if check.status == "broken"]
    print(f"\nbroken: {', '.join(broken)}" if broken else "\neverything needed works")
    return 1 if broken else 0
