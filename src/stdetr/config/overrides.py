"""The user's overrides against the configuration: options, keys and types; each mistake is one line.

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
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stdetr.config.folder import list_options
from stdetr.names import did_you_mean, key_paths, nearest, nearest_path


class Overrides:
    """Overrides taken apart by Hydra's grammar.

    folder, groups: the folder of configurations and its groups
    named: plain values and deletions of keys: what they name must exist

    Raises:
        ValueError: one is malformed.
    """

    def __init__(self, texts: Sequence[str], folder: Path, groups: Sequence[str]) -> None:
        self.folder, self.groups = folder, groups
        self.items = [_parse(text) for text in texts]
        deleted = [item for item in self.items if item.is_delete() and item.key_or_group not in groups]
        self.named = [item for item in self.items if item in deleted or self._is_plain(item)]

    def _is_plain(self, item: Override) -> bool:
        """True for ``key=value`` on an existing key; False for groups, additions, deletions and Hydra's own keys."""
        key = item.key_or_group
        prefixed = item.is_add() or item.is_force_add() or item.is_delete()
        return not prefixed and item.package is None and key not in self.groups and key.split(".")[0] != "hydra"

    def single(self, item: Override) -> list[str]:
        """An override as jobs of a sweep see it: each option of a group, else the first value; else itself."""
        text = str(item.input_line)
        if not item.is_sweep_override():
            return [text]
        key = text.partition("=")[0]
        if not item.is_discrete_sweep():
            return [f"{key}=null"] if key not in self.groups else []
        texts = [f"{key}={value}" for value in item.sweep_string_iterator()]
        return texts if key in self.groups else texts[:1]

    def others(self) -> list[str]:
        """All but the ``named`` ones, for one job."""
        return [text for item in self.items if item not in self.named for text in self.single(item)[:1]]

    def check_options(self) -> None:
        """Raises ValueError for a group's option that does not exist; to be asked where the composition has failed, as
        ``--config-dir`` may add options."""
        for item in self.items:
            group = item.key_or_group
            if group not in self.groups or item.is_delete() or item.is_sweep_override():
                continue
            option, options = item.value(), list_options(self.folder, group)
            if option is None and not item.is_add():
                raise ValueError(f"{group}=null: to leave the group out write ~{group}")
            if isinstance(option, str | int | float) and not (self.folder / group / f"{option}.yaml").is_file():
                told = f"{did_you_mean(str(option), options)} (options: {', '.join(options)})"
                raise ValueError(f"{group}={option}: no such option{told}")

    def check_keys(self, verb: str, defaults: DictConfig) -> None:
        """Raises ValueError for a key that ``defaults``, with its ``hydra`` node, does not have."""
        # Without the package that a group may be placed in (model/backbone@model.detector.backbone).
        chosen = {str(name).partition("@")[0] for name in defaults.hydra.runtime.choices}
        plain = OmegaConf.to_container(defaults)
        assert isinstance(plain, dict)
        known = list(key_paths({key: value for key, value in plain.items() if key != "hydra"}))
        for item in self.items:
            key, value = item.key_or_group, str(item.input_line).partition("=")[2]
            if key in self.groups and not (item.is_add() or item.is_delete()) and key not in chosen:
                raise ValueError(f"{key}={value}: 'stdetr {verb}' has no group '{key}'; +{key}={value} adds it")
            # An item of a list is named by its place: data.train_transforms.2.sizes.
            place = OmegaConf.select(defaults, key, throw_on_resolution_failure=False) if "." in key else None
            if item in self.named and key not in (*known, *self.groups) and place is None:
                shown = f"~{key}" if item.is_delete() else f"{key}={value}"
                raise ValueError(f"{shown}: no such key{self._suggest(verb, key, known)}")

    def _suggest(self, verb: str, key: str, known: Sequence[str]) -> str:
        match = (nearest(key, self.groups, cutoff=0.75) if "." not in key else None) or nearest_path(key, known)
        if match:
            return f"; did you mean '{match}'?"
        section = key.rpartition(".")[0]
        leaves = [path.rpartition(".")[2] for path in known if path.rpartition(".")[0] == section]
        keys = [name for name in leaves if not name.startswith("_")]
        if section and keys:
            return f"; '{section}' has {', '.join(keys)}"
        return f"; 'stdetr {verb} --help' lists the keys, +key=value adds one"

    def check_values(self, defaults: DictConfig) -> None:
        """Raises ValueError for a value, of a sweep too, whose type is not that of the default that it replaces."""
        for item in filter(self._is_plain, self.items):
            key = item.key_or_group
            default = OmegaConf.select(defaults, key, throw_on_resolution_failure=False)
            for value in _values(item):
                if (takes := _mismatch(default, value)) is not None:
                    shown = str(value).lower() if isinstance(value, bool) else str(value)
                    raise ValueError(f"{key}={shown}: {self._takes(key, default, shown, takes)}")

    def _takes(self, key: str, default: Any, shown: str, takes: str) -> str:
        group = key.replace(".", "/")
        if takes == "a section" and group in self.groups:
            return f"{key} is a section; to choose an option of the group write {group}={shown}"
        if takes == "a section":
            keys = [str(name) for name in default if not str(name).startswith("_")]
            return f"{key} is a section with the keys {', '.join(keys)}{did_you_mean(shown, keys)}"
        if takes == "a list":
            return f"takes a list, write '{key}=[{shown}]'"
        now = str(default).lower() if isinstance(default, bool) else default
        return f"takes {takes} (now {now}); ++{key}=... sets it anyway"


def _parse(text: str) -> Override:
    key, equals, value = text.partition("=")
    if not key.strip() or key != key.strip() or (not equals and not key.startswith("~")):
        raise ValueError(f"'{text}' is not of the form key=value")
    try:
        return OverridesParser.create().parse_overrides([text])[0]
    except OverrideParseException as error:
        quote = value.replace("\\", "\\\\").replace('"', '\\"')
        raise ValueError(f"'{text}': the value has characters that need quotes: '{key}=\"{quote}\"'") from error


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


def one_line(error: BaseException) -> str:
    """The message of ``error`` without line breaks, search paths and stack hints, and with a cause Hydra hides."""
    text = str(error).partition("\nConfig search path:")[0]
    cause = error.__cause__
    if isinstance(error, HydraException) and isinstance(cause, OmegaConfBaseException):
        text = f"{text}: {cause}"
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type="))]
    return " ".join(kept) or type(error).__name__
