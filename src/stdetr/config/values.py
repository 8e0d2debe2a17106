"""Whether the value an override gives has the type of the value it replaces.

YAML declares no types, so the default in the configuration is the declaration: ``max_steps: 2000`` takes a number,
``ema: true`` a boolean.  ``null`` and text defaults take any scalar (``resume: auto``, ``frames: null``), any key takes
``null``, and ``++key=value`` takes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, RangeSweep
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf

from stdetr.config.folder import compose_raw, list_groups
from stdetr.names import did_you_mean


def parse(overrides: Sequence[str]) -> list[Override]:
    """The overrides taken apart by Hydra's grammar.

    Raises:
        ValueError: one is malformed.
    """
    parsed: list[Override] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not key.strip() or key != key.strip() or (not equals and not key.startswith("~")):
            raise ValueError(f"'{text}' is not of the form key=value")
        try:
            parsed += OverridesParser.create().parse_overrides([text])
        except OverrideParseException as error:
            quote = value.replace("\\", "\\\\").replace('"', '\\"')
            raise ValueError(f"'{text}': the value has characters that need quotes: '{key}=\"{quote}\"'") from error
    return parsed


def is_plain_value(item: Override, groups: Sequence[str]) -> bool:
    """True for ``key=value`` on an existing key; False for groups, additions, deletions and Hydra's own keys."""
    key = item.key_or_group
    prefixed = item.is_add() or item.is_force_add() or item.is_delete()
    return not prefixed and item.package is None and key not in groups and key.split(".")[0] != "hydra"


def single_values(item: Override, groups: Sequence[str]) -> list[str]:
    """The override as jobs of a sweep see it: each option of a group, else the first value; itself without a sweep."""
    text = str(item.input_line)
    if not item.is_sweep_override():
        return [text]
    key = text.partition("=")[0]
    if not item.is_discrete_sweep():
        return [f"{key}=null"] if key not in groups else []
    texts = [f"{key}={value}" for value in item.sweep_string_iterator()]
    return texts if key in groups else texts[:1]


def check_values(verb: str, overrides: Sequence[str], folder: Path) -> None:
    """Compare each value of ``overrides``, sweeps included, with the default it replaces.

    Raises:
        ValueError: a value of another type; one line with the key, the value, and what the key takes.
    """
    parsed, groups = parse(overrides), list_groups(folder)
    values = [item for item in parsed if is_plain_value(item, groups)]
    if not values:
        return
    others = [text for item in parsed if item not in values for text in single_values(item, groups)[:1]]
    defaults = compose_raw(verb, others, folder)
    for item in values:
        key = item.key_or_group
        default = OmegaConf.select(defaults, key, throw_on_resolution_failure=False)
        for value in _values(item):
            if (takes := _mismatch(default, value)) is None:
                continue
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            raise ValueError(f"{key}={shown}: {_explain(key, default, shown, takes, groups)}")


def _values(item: Override) -> list[Any]:
    value = item.value()
    if isinstance(value, RangeSweep):
        return [value.start]
    values = value.list if isinstance(value, ChoiceSweep) else [] if item.is_sweep_override() else [value]
    return [one.text if isinstance(one, QuotedString) else one for one in values]


def _mismatch(default: Any, value: Any) -> str | None:
    """What the key takes, if ``value`` does not fit; else None."""
    if default is None or value is None or (isinstance(value, str) and value.startswith("${")):
        return None
    if isinstance(default, DictConfig):
        return None if isinstance(value, dict) else "a section"
    if isinstance(default, ListConfig):
        return None if isinstance(value, list) or (_is_number(value) and all(map(_is_number, default))) else "a list"
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if _is_number(default):
        # One number or several: a stride or a size may be a list to draw from.
        numbers = value if isinstance(value, list) and value else [value]
        return None if all(map(_is_number, numbers)) else "a number"
    return "text" if isinstance(value, list | dict) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _explain(key: str, default: Any, shown: str, takes: str, groups: Sequence[str]) -> str:
    group = key.replace(".", "/")
    if takes == "a section" and group in groups:
        return f"{key} is a section; to choose an option of the group write {group}={shown}"
    if takes == "a section":
        keys = [str(name) for name in default if not str(name).startswith("_")]
        return f"{key} is a section with the keys {', '.join(keys)}{did_you_mean(shown, keys)}"
    if takes == "a list":
        return f"takes a list, write '{key}=[{shown}]'"
    now = str(default).lower() if isinstance(default, bool) else default
    return f"takes {takes} (now {now}); ++{key}=... sets it anyway"
