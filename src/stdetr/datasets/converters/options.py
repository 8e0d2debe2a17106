"""Keys that only some formats take; a key that a format would ignore is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Options:
    """Format-specific keys of ``action=convert``; each format's card says which it takes.

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
        values: dict[str, Any] = {}
        for item in fields(cls):
            value = keys.get(item.name, item.default)
            if item.name in ("classes", "split"):
                value = tuple(str(entry) for entry in _as_list(value))
            if item.name == "frame_size" and value is not None:
                value = _size(value)
            if value != item.default and item.name not in accepted:
                takes = ", ".join(sorted(accepted)) or "none of these keys"
                raise ValueError(
                    f"{item.name}={keys[item.name]}: format={format_name} does not take it; it takes {takes}"
                )
            values[item.name] = value
        if values["frames"] not in ("all", "listed"):
            raise ValueError(f"frames={values['frames']} must be all or listed")
        return cls(**values)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _size(value: Any) -> tuple[int, int]:
    sides = tuple(value) if not isinstance(value, (str, int)) else ()
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"frame_size={value} must be [width,height] in pixels")
    return sides[0], sides[1]
