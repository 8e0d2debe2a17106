"""Typed access to the fields of a JSON record; what is wrong raises MalformedField naming the field."""

from __future__ import annotations

import math
from typing import Any

from stdetr.datasets.converters.problems import MalformedField


def whole(record: dict[str, Any], key: str, default: int | None = None) -> int:
    """A whole number; ``12.0`` counts as one, and so does ``"0012"`` (BDD100K's ids)."""
    value = record.get(key, default)
    if value is None:
        raise MalformedField(f"{key} is missing")
    if isinstance(value, str) and value.strip().isdigit():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise MalformedField(f"{key} is {value!r}, not a whole number")
    return int(value)


def number(record: dict[str, Any], key: str) -> float:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise MalformedField(f"{key} is {value!r}, not a finite number")
    return value


def text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value:
        raise MalformedField(f"{key} is {value!r}, not text")
    return value


def array(record: dict[str, Any], key: str) -> list[Any]:
    value = record.get(key)
    if not isinstance(value, list):
        raise MalformedField(f"{key} is {type(value).__name__}, not a list")
    return value


def wholes(record: dict[str, Any], key: str) -> list[int]:
    """A list of whole numbers; empty when the key is absent."""
    values = array(record, key) if key in record else []
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise MalformedField(f"{key} must hold whole numbers only")
    return values


def box(value: Any, key: str = "bbox") -> list[float]:
    """[x, y, w, h], all finite."""
    good = isinstance(value, list) and len(value) == 4
    if not good or any(isinstance(side, bool) or not isinstance(side, (int, float)) for side in value):
        raise MalformedField(f"{key} is {value!r}, not [x, y, w, h]")
    if not all(math.isfinite(side) for side in value):
        raise MalformedField(f"{key} is {value!r}, not finite")
    return value
