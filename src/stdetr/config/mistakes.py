"""One line for each mistake in an override: the key, the offending value, the nearest valid name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from stdetr.config.folder import list_groups, list_options
from stdetr.config.names import did_you_mean, key_paths, nearest, nearest_path
from stdetr.config.raw import compose_raw
from stdetr.config.values import first_choice, is_plain_value

_PLUGINS = ("hydra/launcher/", "hydra/sweeper/")


def explain(error: Exception, verb: str, overrides: Sequence[str], folder: Path) -> str:
    """Why ``overrides`` do not compose, found by looking at them one at a time; else ``error`` on one line."""
    parsed: list[Override] = []
    for text in overrides:
        if ("=" not in text.lstrip("~") and not text.startswith("~")) or text.startswith("="):
            return f"'{text}' is not of the form key=value"
        try:
            parsed += OverridesParser.create().parse_overrides([text])
        except OverrideParseException:
            return _malformed(text)
    groups = list_groups(folder)
    for item in parsed:
        if item.key_or_group in groups and (line := wrong_option(item, folder)) is not None:
            return line
    wanted = getattr(error, "missing_cfg_file", None) or ""
    if isinstance(error, MissingConfigException) and wanted.startswith(_PLUGINS):
        return f"{wanted.replace('hydra/', '', 1)} is not installed; pip install 'stdetr[sweep]'"
    if (line := _unknown_key(verb, parsed, groups, folder)) is not None:
        return line
    for item in parsed:
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


def _malformed(text: str) -> str:
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or key != key.strip():
        return f"'{text}' is not of the form key=value"
    quote = value.replace("\\", "\\\\").replace('"', '\\"')
    return f"'{text}': the value has characters that need quotes: '{key}=\"{quote}\"'"


def wrong_option(item: Override, folder: Path) -> str | None:
    """What is wrong with the option, or with one option of a sweep, of a group override; None where all exist."""
    group = item.key_or_group
    options = list_options(folder, group)
    try:
        value = item.value()
    except (ValueError, HydraException):
        return None
    if value is None and not item.is_delete() and not item.is_add():
        return f"{group}=null: to leave the group out write ~{group}"
    choices = [str(choice) for choice in getattr(value, "list", [value])] if not item.is_delete() else []
    for choice in choices:
        known = (folder / group / f"{choice}.yaml").is_file() or choice in {"None", "null"} or "*" in choice
        if not known and not choice.startswith("["):
            return f"{group}={choice}: no such option{did_you_mean(choice, options)} (options: {', '.join(options)})"
    return None


def _unknown_key(verb: str, parsed: Sequence[Override], groups: Sequence[str], folder: Path) -> str | None:

    usable = [first_choice(item) for item in parsed if not is_plain_value(item, groups)]
    try:
        defaults = compose_raw(verb, usable, folder)
    except (HydraException, OmegaConfBaseException):
        # A group, an addition or a deletion is at fault: judge the keys against the verb's own defaults.
        try:
            defaults = compose_raw(verb, [], folder)
        except (HydraException, OmegaConfBaseException):
            return None
    known = key_paths(defaults)
    for item in parsed:
        key, value = item.key_or_group, str(item.input_line).partition("=")[2]
        if item.is_delete() and key not in known and key not in groups:
            return f"~{key}: no such key{_suggest(verb, key, known, groups)}"
        if key in groups and not item.is_add() and not item.is_delete() and key not in _chosen(verb, folder):
            return f"{key}={value}: 'stdetr {verb}' has no group '{key}'; +{key}={value} adds it"
        if is_plain_value(item, groups) and key not in known:
            return f"{key}={value}: no such key{_suggest(verb, key, known, groups)}"
    return None


def _suggest(verb: str, key: str, known: Sequence[str], groups: Sequence[str]) -> str:
    match = (nearest(key, groups, cutoff=0.75) if "." not in key else None) or nearest_path(key, known)
    if match:
        return f"; did you mean '{match}'?"
    section = key.rpartition(".")[0]
    keys = [path.rpartition(".")[2] for path in known if path.rpartition(".")[0] == section]
    keys = [name for name in keys if not name.startswith("_")]
    if section and keys:
        return f"; '{section}' has {', '.join(keys)}"
    return f"; 'stdetr {verb} --help' lists the keys, +key=value adds one"


def _chosen(verb: str, folder: Path) -> set[str]:
    """The groups in the defaults of ``verb`` (with ``null`` options, which a composed configuration does not show)."""

    return set(compose_raw(verb, [], folder, with_hydra=True).hydra.runtime.choices)
