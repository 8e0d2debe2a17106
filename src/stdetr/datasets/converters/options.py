"""The keys of ``action=convert`` that only some formats take, and the rules that choose the output file of a frame."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

EVERYTHING = "all"


@dataclass(frozen=True)
class Options:
    """Format-specific keys; each format's card says which it takes.

    classes:     class names to use or keep, in order
    video:       video file inside the source
    annotations: annotation file inside the source
    split:       the source's splits to convert; empty means all that are there
    frame_size:  (width, height) in pixels, where neither file nor image gives it
    check_media: check that each frame file exists (and read sizes from it)
    frames:      ImageNet VID training frames: ``all`` or only the ``listed`` ones
    det:         ImageNet VID: add the DET stills as one-frame videos
    """

    classes: tuple[str, ...] = ()
    video: str | None = None
    annotations: str | None = None
    split: tuple[str, ...] = ()
    frame_size: tuple[int, int] | None = None
    check_media: bool = True
    frames: str = "all"
    det: bool = True

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any], accepted: frozenset[str], format_name: str) -> Options:
        """Build from configuration keys.

        Raises:
            ValueError: a key that differs from its default although the format does not take it, or a bad value.
        """
        values = {item.name: keys.get(item.name, item.default) for item in fields(cls)}
        for name in ("classes", "split"):
            given = values[name] or ()
            values[name] = tuple(str(entry) for entry in ([given] if isinstance(given, str) else given))
        if values["frame_size"] is not None:
            values["frame_size"] = _size(values["frame_size"])
        for item in fields(cls):
            if values[item.name] != item.default and item.name not in accepted:
                takes = ", ".join(sorted(accepted)) or "none of these keys"
                told = f"{item.name}={keys[item.name]}: format={format_name} does not take it"
                raise ValueError(f"{told}; it takes {takes}")
        if values["frames"] not in ("all", "listed"):
            raise ValueError(f"frames={values['frames']} must be all or listed")
        return cls(**values)


def _size(value: Any) -> tuple[int, int]:
    sides = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if len(sides) != 2 or not all(_is_int(side) and side > 0 for side in sides):
        raise ValueError(f"frame_size={value} must be [width,height] in pixels")
    return sides[0], sides[1]


class SplitRules:
    """Maps (video name, source split, frame number) to split names.

    Without rules a frame goes to its source's split, or to ``all`` where the source has none.  With rules it goes to
    each split whose rule holds, and to ``all`` in any case.  A rule is ``[first, last]`` (frame numbers as in the
    annotation file, both included), a list of such pairs, or a list of patterns of video names
    (``[MOT17-02*, MOT17-04*]``) or of a further field of the videos (``[scene:27, scene:30]``).

    Raises:
        ValueError: a rule of another form, or a split name that is not a plain file name.
    """

    def __init__(self, rules: Mapping[str, Any] | None = None) -> None:
        self.rules = {name: self._parts(name, rule) for name, rule in (rules or {}).items() if rule is not None}
        self.used: set[str] = set()

    @staticmethod
    def _parts(name: str, rule: Any) -> list[str | tuple[int, int]]:
        """A rule as ranges and patterns, of which one must hold."""
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name == EVERYTHING:
            raise ValueError(f"splits.{name}: a split is named with letters, digits, - and _, and not {EVERYTHING!r}")
        items: list[Any] = list(rule) if isinstance(rule, Sequence) and not isinstance(rule, str) else [rule]
        if not items:
            raise ValueError(f"splits.{name} is empty: give [first,last] frame numbers or a list of video names")
        parts: list[Any] = [items] if all(map(_is_int, items)) else items
        for part in parts:
            pair = isinstance(part, Sequence) and len(part) == 2 and all(map(_is_int, part)) and part[0] <= part[1]
            if not (pair or isinstance(part, str)):
                raise ValueError(
                    f"splits.{name}={rule}: give [first,last] frame numbers with first <= last, a list of such pairs, "
                    "or a list of video names"
                )
        return [part if isinstance(part, str) else (part[0], part[1]) for part in parts]

    def __bool__(self) -> bool:
        return bool(self.rules)

    def of_frame(
        self, video: str, source_split: str, number: int, fields: Mapping[str, Any] | None = None
    ) -> list[str]:
        """The splits of this frame, including ``all``; ``fields`` are the further ones of its video."""
        if not self:
            return [source_split or EVERYTHING]

        def holds(part: str | tuple[int, int]) -> bool:
            if not isinstance(part, str):
                return part[0] <= number <= part[1]
            field, colon, value = part.partition(":")
            if colon and fields and field in fields:
                return fnmatch.fnmatchcase(str(fields[field]), value)
            return fnmatch.fnmatchcase(video, part)

        chosen = [name for name, parts in self.rules.items() if any(map(holds, parts))]
        self.used.update(chosen)
        return [*chosen, EVERYTHING]

    def check_used(self) -> None:
        """Raises ValueError when a rule matched no frame: most likely a typo."""
        for name, parts in self.rules.items():
            if name not in self.used:
                raise ValueError(f"splits.{name}={parts} matches no frame of the source")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
