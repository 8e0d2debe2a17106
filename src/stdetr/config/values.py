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
from omegaconf import DictConfig, OmegaConf

from stdetr.config.folder import list_groups
from stdetr.config.names import did_you_mean, key_paths
from stdetr.config.raw import compose_raw


def is_plain_value(override: Override, groups: Sequence[str]) -> bool:
    """True for ``key=value`` on an existing key; False for groups, additions, deletions and Hydra's own keys."""
    key = override.key_or_group
    prefixed = override.is_add() or override.is_force_add() or override.is_delete()
    return not prefixed and override.package is None and key not in groups and key.split(".")[0] != "hydra"


def check_values(verb: str, overrides: Sequence[str], folder: Path) -> None:
    """Compare each value of ``overrides``, sweeps included, with the default it replaces.

    Raises:
        ValueError: a value of another type; one line with the key, the value, and what the key takes.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    groups = list_groups(folder)
    values = [item for item in parsed if is_plain_value(item, groups)]
    if not values:
        return
    others = [first_choice(item) for item in parsed if not is_plain_value(item, groups)]
    defaults = compose_raw(verb, others, folder)
    for item in values:
        default = OmegaConf.select(defaults, item.key_or_group, throw_on_resolution_failure=False)
        for value in _values(item):
            reason = _mismatch(default, value)
            if reason is not None:
                raise ValueError(
                    f"{item.key_or_group}={_show(value)}: {_explain(item.key_or_group, default, value, reason, groups)}"
                )


def first_choice(override: Override) -> str:
    """The override with a sweep reduced to its first value, so that one configuration can be composed from it."""
    text = str(override.input_line)
    if not override.is_sweep_override():
        return text
    key = text.partition("=")[0]
    return f"{key}={next(iter(override.sweep_string_iterator()))}" if override.is_discrete_sweep() else f"{key}=null"


def _values(override: Override) -> list[Any]:
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return [_plain(item) for item in value.list]
    if isinstance(value, RangeSweep):
        return [value.start]
    return [_plain(value)] if not override.is_sweep_override() else []


def _plain(value: Any) -> Any:
    return value.text if isinstance(value, QuotedString) else value


def _mismatch(default: Any, value: Any) -> str | None:
    """What the key takes, where ``value`` is not that; None where it fits."""
    if default is None or value is None or (isinstance(value, str) and value.startswith("${")):
        return None
    if OmegaConf.is_dict(default):
        return None if isinstance(value, dict) else "a section"
    if OmegaConf.is_list(default):
        scalar = _is_number(value) and all(_is_number(item) for item in default)
        return None if isinstance(value, list) or scalar else "a list"
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if _is_number(default):
        # One number or several: a stride or a size may be a list to draw from.
        several = isinstance(value, list) and bool(value) and all(_is_number(_plain(item)) for item in value)
        return None if _is_number(value) or several else "a number"
    return "text" if isinstance(value, list | dict) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _explain(key: str, default: Any, value: Any, reason: str, groups: Sequence[str]) -> str:
    if isinstance(default, DictConfig):
        group = key.replace(".", "/")
        if group in groups:
            return f"{key} is a section; to choose an option of the group write {group}={_show(value)}"
        keys = [path for path in key_paths(default) if "." not in path and not path.startswith("_")]
        return f"{key} is a section with the keys {', '.join(keys)}{did_you_mean(str(value), keys)}"
    if reason == "a list":
        return f"takes a list, write '{key}=[{_show(value)}]'"
    return f"takes {reason} (now {_show(default)}); ++{key}=... sets it anyway"


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
