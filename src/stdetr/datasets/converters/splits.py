"""The output files of a frame: by the source's own splits, or by the user's rules."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

EVERYTHING = "all"


class SplitRules:
    """Maps (video name, source split, frame number) to split names.

    Without rules a frame goes to its source's split, or to ``all`` where the source has none.  With rules it goes to
    each split whose rule holds, and to ``all`` in any case.  A rule is ``[first, last]`` (frame numbers as in the
    annotation file, both included), a list of such pairs, or a list of video name patterns
    (``[MOT17-02*, MOT17-04*]``).

    Raises:
        ValueError: a rule of another form, or a split name that is not a plain file name.
    """

    def __init__(self, rules: Mapping[str, Any] | None = None) -> None:
        self.ranges: dict[str, list[tuple[int, int]]] = {}
        self.patterns: dict[str, list[str]] = {}
        self.used: set[str] = set()
        for name, rule in (rules or {}).items():
            if rule is None:
                continue
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name == EVERYTHING:
                raise ValueError(
                    f"splits.{name}: a split is named with letters, digits, - and _, and not {EVERYTHING!r}"
                )
            self._add(name, rule)

    def _add(self, name: str, rule: Any) -> None:
        items: list[Any] = list(rule) if isinstance(rule, Sequence) and not isinstance(rule, str) else [rule]
        if items and all(isinstance(item, str) for item in items):
            self.patterns[name] = items
            return
        pairs = [items] if items and all(_is_int(item) for item in items) else items
        for pair in pairs:
            well_formed = isinstance(pair, Sequence) and len(pair) == 2 and all(_is_int(item) for item in pair)
            if not well_formed or pair[0] > pair[1]:
                raise ValueError(
                    f"splits.{name}={rule}: give [first,last] frame numbers with first <= last, a list of such pairs, "
                    "or a list of video names"
                )
            self.ranges.setdefault(name, []).append((pair[0], pair[1]))
        if not pairs:
            raise ValueError(f"splits.{name} is empty: give [first,last] frame numbers or a list of video names")

    def __bool__(self) -> bool:
        return bool(self.ranges or self.patterns)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.ranges, *self.patterns)

    def of_frame(self, video: str, source_split: str, number: int) -> list[str]:
        """The splits of this frame, including ``all``."""
        if not self:
            return [source_split or EVERYTHING]
        chosen = [name for name, pairs in self.ranges.items() if any(low <= number <= high for low, high in pairs)]
        chosen += [name for name, globs in self.patterns.items() if any(fnmatch.fnmatchcase(video, g) for g in globs)]
        self.used.update(chosen)
        return [*chosen, EVERYTHING]

    def check_used(self) -> None:
        """Raises ValueError when a rule matched no frame: most likely a typo."""
        for name in self.names:
            if name not in self.used:
                rule = self.patterns.get(name) or self.ranges[name]
                raise ValueError(f"splits.{name}={rule} matches no frame of the source")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
