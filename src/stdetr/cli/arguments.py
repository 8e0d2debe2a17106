"""The flags beside ``key=value``: Hydra's own, read by argparse so that a wrong one gets one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from stdetr.names import did_you_mean

LISTS = ("compare", "resume_with", "trust")
"""Keys whose value is a list even where it is written without brackets, ``compare=RUN_A,RUN_B``: Hydra alone would
read the comma as a sweep."""
PATHS = (
    *("output", "output_dir", "source", "path", "root", "checkpoint", "annotations", "predictions", "tubes"),
    *("timestamps", "video", "resume", "init_from", "cache_dir"),
)
"""Last parts of keys that name files, which stay what was typed: Hydra alone reads ``output=2024_11_05`` as a number.
"""
_LOOKS_TYPED = re.compile(r"[-+]?[\d_.]+(?:e[-+]?\d+)?|[-+]?(?:inf|nan)|true|false", re.IGNORECASE)
CFG = ("job", "hydra", "all")
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def _or(choices: Sequence[str]) -> str:
    return f"{choices[0]} (default), {', '.join(choices[1:])}"


class Parser(argparse.ArgumentParser):
    """Flags and overrides of one verb; mistakes are ValueErrors."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
        add = self.add_argument_group("flags").add_argument
        sweep = "one job for each combination of comma-separated values, with a summary table at the end"
        add("-m", "--multirun", action="store_true", help=sweep)
        add("-c", "--cfg", nargs="?", const="job", choices=CFG, metavar="PART", help=f"print it and stop: {_or(CFG)}")
        add("-p", "--package", metavar="KEY", help="with --cfg: only this section")
        add("--resolve", action="store_true", help="with --cfg: interpolations resolved")
        add("-i", "--info", nargs="?", const="all", choices=INFO, metavar="WHAT", help=f"Hydra's account: {_or(INFO)}")
        add("-cd", "--config-dir", metavar="DIR", help="look for groups and options in this folder as well")
        add("-h", "--help", action="store_true", help="this text")
        self.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)

    def error(self, message: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise ValueError(message.removeprefix("argument "))

    def read(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The flags, and the overrides with ``--config-dir`` as one of them.

        Raises:
            ValueError: an unknown flag, or one whose value is missing or wrong.
        """
        flags, unknown = self.parse_known_intermixed_args(words)
        for word in unknown:
            name, equals, value = word.partition("=")
            hint = did_you_mean(name, self._option_string_actions)
            key = name.lstrip("-").replace("-", "_")
            dashes = f"options are key=value without dashes: {key}={value if equals else '...'}"
            raise ValueError(f"{word}: no such flag{hint}" if hint else f"{word}: {dashes}")
        if (flags.resolve or flags.package) and not flags.cfg:
            raise ValueError("--resolve and --package need --cfg")
        overrides = [_as_meant(word) for word in flags.overrides]
        if flags.config_dir is not None:
            path = Path(flags.config_dir).expanduser().resolve()
            if not path.is_dir():
                raise ValueError(f"--config-dir {flags.config_dir}: no such folder")
            overrides.append(f"hydra.searchpath=[{quote(f'file://{path}')}]")
        return flags, overrides


def _as_meant(word: str) -> str:
    """``key=a,b`` of a key of ``LISTS`` as ``key=["a","b"]``, what looks like a number in quotes for ``PATHS``."""
    key, _, value = word.partition("=")
    if key.rpartition(".")[2] in PATHS and _LOOKS_TYPED.fullmatch(value):
        return f"{key}={quote(value)}"
    if key == "compare" and "," not in value:
        return word  # one run: the verb says that two are needed
    if key not in LISTS or value in ("", "null") or value.lstrip().startswith(("[", '"', "'", "$")):
        return word
    return f"{key}=[" + ",".join(quote(item.strip()) for item in value.split(",")) + "]"


def quote(text: str) -> str:
    """``text`` as a quoted string of Hydra's grammar."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
