"""The flags beside ``key=value``: few, and Hydra's names for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stdetr.config.names import did_you_mean

FLAGS = {
    "-m, --multirun": "sweep: one job for each combination of comma-separated values, with a summary table at the end",
    "--cfg": "print the configuration of the run and stop",
    "--resolve": "with --cfg: interpolations resolved",
    "--package KEY": "with --cfg: only this section",
    "--config-dir DIR": "look for groups and options in this folder as well",
    "-h, --help": "this text",
}

LISTS = ("compare",)
"""Keys whose value is a list even where it is written without brackets, ``compare=RUN_A,RUN_B``: Hydra alone would
read the comma as a sweep."""


@dataclass
class Arguments:
    """A verb's command line taken apart."""

    overrides: list[str] = field(default_factory=list)
    multirun: bool = False
    help: bool = False
    show: bool = False
    resolve: bool = False
    package: str | None = None

    @classmethod
    def parse(cls, words: Sequence[str]) -> Arguments:
        """Separate flags from overrides.

        Raises:
            ValueError: an unknown flag, or one whose value is missing or wrong.
        """
        parsed = cls()
        rest = iter(words)
        for word in rest:
            flag, _, value = word.partition("=")
            if word in {"-m", "--multirun"}:
                parsed.multirun = True
            elif word in {"-h", "--help"}:
                parsed.help = True
            elif word in {"--resolve"}:
                parsed.resolve = True
            elif flag in {"-c", "--cfg"}:
                parsed.show = True
            elif flag in {"-p", "--package"}:
                parsed.package = value or _value(flag, rest)
            elif flag in {"-cd", "--config-dir"}:
                parsed.overrides.append(_search_path(value or _value(flag, rest)))
            elif word.startswith("-"):
                raise ValueError(_unknown(word))
            elif parsed.show and word in {"job", "all"} and "=" not in word:
                continue  # `--cfg job`, as Hydra writes it
            else:
                parsed.overrides.append(_as_list(word))
        if (parsed.resolve or parsed.package) and not parsed.show:
            raise ValueError("--resolve and --package need --cfg")
        return parsed


def _as_list(word: str) -> str:
    """``key=a,b`` of a key of ``LISTS`` as ``key=["a","b"]``; every other word unchanged."""
    key, _, value = word.partition("=")
    if key not in LISTS or "," not in value or value.lstrip().startswith(("[", '"', "'", "$")):
        return word
    escaped = (item.strip().replace("\\", "\\\\").replace('"', '\\"') for item in value.split(","))
    return f"{key}=[" + ",".join(f'"{item}"' for item in escaped) + "]"


def _value(flag: str, rest: object) -> str:
    value = next(rest, None)  # pyright: ignore[reportCallIssue, reportArgumentType]
    if value is None:
        raise ValueError(f"{flag} needs a value")
    return value


def _search_path(folder: str) -> str:
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise ValueError(f"--config-dir {folder}: no such folder")
    return f'hydra.searchpath=["file://{path}"]'


def _unknown(word: str) -> str:
    name, equals, value = word.partition("=")
    flags = [part.split()[0] for names in FLAGS for part in names.split(", ")]
    hint = did_you_mean(name, flags)
    if hint:
        return f"{word}: no such flag{hint}"
    key = name.lstrip("-").replace("-", "_")
    return f"{word}: options are key=value without dashes: {key}={value if equals else '...'}"
