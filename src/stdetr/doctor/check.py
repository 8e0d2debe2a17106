"""One line of the doctor's report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "broken"]


@dataclass(frozen=True)
class Check:
    """What was checked, its status, and the fix where there is a problem.

    ``note`` is something optional that is missing; ``broken`` stops runs.
    """

    name: str
    status: Status
    text: str
    fix: str = ""

    def line(self, width: int = 0) -> str:
        fix = f"\n{'':<{width + 10}}fix: {self.fix}" if self.fix else ""
        return f"{self.status:<8}{self.name:<{width}}  {self.text}{fix}"


def run_checks(*checks: Callable[[], Check | Iterable[Check]]) -> Sequence[Check]:
    """Run every check; one that itself fails is reported as broken, so that the report is always complete."""
    results: list[Check] = []
    for check in checks:
        try:
            result = check()
            results += [result] if isinstance(result, Check) else list(result)
        except Exception as error:  # a broken installation can fail anywhere: the failure is the finding
            name = getattr(check, "__name__", "check").removeprefix("check_").replace("_", " ")
            results.append(Check(name, "broken", f"{type(error).__name__}: {' '.join(str(error).split())}"))
    return results
