"""One line for each mistake in an override: the key, the offending value, the nearest valid name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stdetr.config.folder import compose_raw, list_groups, list_options
from stdetr.config.values import is_plain_value, parse, single_values
from stdetr.names import did_you_mean, key_paths, nearest, nearest_path


def explain(error: Exception, verb: str, overrides: Sequence[str], folder: Path) -> str:
    """Why ``overrides`` do not compose, where one of them is at fault; else ``error`` on one line.

    Raises:
        ValueError: an override is malformed, which is the reason.
    """
    items, groups = parse(overrides), list_groups(folder)
    for item in items:
        if item.key_or_group in groups and (line := _wrong_option(item, folder)) is not None:
            return line
    missing = getattr(error, "missing_cfg_file", None) or ""
    if isinstance(error, MissingConfigException) and missing.startswith(("hydra/launcher/", "hydra/sweeper/")):
        return f"{missing.replace('hydra/', '', 1)} is not installed; pip install 'stdetr[sweep]'"
    if (line := _unknown_key(verb, items, groups, folder)) is not None:
        return line
    for item in items:
        if item.is_sweep_override() and "multirun" in str(error):
            key, _, value = str(item.input_line).partition("=")
            return f"{key}={value} has several values; add -m to run each, or write '{key}=[{value}]' for a list"
    return one_line(error)


def one_line(error: BaseException) -> str:
    """The message of ``error`` without line breaks, search paths and stack hints, and with a cause Hydra hides."""
    text = str(error).partition("\nConfig search path:")[0]
    cause = error.__cause__
    if isinstance(error, HydraException) and isinstance(cause, OmegaConfBaseException):
        text = f"{text}: {cause}"
    lines = [line.strip() for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type="))]
    return " ".join(kept) or type(error).__name__


def _wrong_option(item: Override, folder: Path) -> str | None:
    """What is wrong with the option of a group override, or None."""
    group = item.key_or_group
    if item.is_delete() or item.is_sweep_override():
        return None
    option, options = item.value(), list_options(folder, group)
    if option is None:
        return None if item.is_add() else f"{group}=null: to leave the group out write ~{group}"
    if isinstance(option, list) or (folder / group / f"{option}.yaml").is_file():
        return None
    return f"{group}={option}: no such option{did_you_mean(str(option), options)} (options: {', '.join(options)})"


def _unknown_key(verb: str, items: Sequence[Override], groups: Sequence[str], folder: Path) -> str | None:
    """The first key that the configuration, composed without the plain values, does not have."""
    others = [text for item in items if not is_plain_value(item, groups) for text in single_values(item, groups)[:1]]
    try:
        defaults = compose_raw(verb, others, folder, with_hydra=True)
    except (HydraException, OmegaConfBaseException):
        # A group, an addition or a deletion is at fault: judge the keys against the verb's own defaults.
        defaults = compose_raw(verb, [], folder, with_hydra=True)
    chosen = set(defaults.hydra.runtime.choices)
    plain = OmegaConf.to_container(defaults)
    assert isinstance(plain, dict)
    known = list(key_paths({key: value for key, value in plain.items() if key != "hydra"}))
    for item in items:
        key, value = item.key_or_group, str(item.input_line).partition("=")[2]
        if key in groups and not (item.is_add() or item.is_delete()) and key not in chosen:
            return f"{key}={value}: 'stdetr {verb}' has no group '{key}'; +{key}={value} adds it"
        if key not in known and key not in groups and (item.is_delete() or is_plain_value(item, groups)):
            shown = f"~{key}" if item.is_delete() else f"{key}={value}"
            return f"{shown}: no such key{_suggest(verb, key, known, groups)}"
    return None


def _suggest(verb: str, key: str, known: Sequence[str], groups: Sequence[str]) -> str:
    match = (nearest(key, groups, cutoff=0.75) if "." not in key else None) or nearest_path(key, known)
    if match:
        return f"; did you mean '{match}'?"
    section = key.rpartition(".")[0]
    leaves = [path.rpartition(".")[2] for path in known if path.rpartition(".")[0] == section]
    keys = [name for name in leaves if not name.startswith("_")]
    if section and keys:
        return f"; '{section}' has {', '.join(keys)}"
    return f"; 'stdetr {verb} --help' lists the keys, +key=value adds one"
