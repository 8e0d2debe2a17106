"""``stdetr --help`` and ``stdetr <verb> --help``."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from stdetr.cli.arguments import Parser
from stdetr.cli.verbs import VERBS, Verb
from stdetr.config import compose, config_dir
from stdetr.config.folder import list_options

COLLAPSE_BELOW = 2
"""Sections nested deeper than this many names are shown as one line."""


def overview() -> str:
    """What ``stdetr --help`` prints."""
    verbs = "\n".join(f"  {verb.name:<9}{verb.summary}" for verb in VERBS.values())
    examples = "\n".join(f"  stdetr {verb.name} {verb.example}".rstrip() for verb in VERBS.values())
    return (
        "stdetr: clip-level video object detection\n\n"
        "usage: stdetr <verb> [key=value ...] [-m] [--cfg]\n\n"
        f"verbs:\n{verbs}\n\n"
        f"examples:\n{examples}\n  stdetr train -m experiment=toy model.points=2,4,8\n\n"
        "'stdetr <verb> --help' lists the groups and keys of a verb; 'stdetr --version' tells the version.\n"
        "STDETR_TRACEBACK=1 shows the traceback of every error; STDETR_DATA and STDETR_OUTPUTS move the data and the\n"
        'runs; STDETR_CONF names another folder of configurations.  Completion: eval "$(stdetr -sc install=bash)"'
    )


def verb_help(verb: Verb, overrides: Sequence[str]) -> str:
    """What ``stdetr <verb> --help`` prints: usage, flags, groups with their options, keys with their values.

    ``overrides`` choose the options whose keys are listed, so ``stdetr train model=clip --help`` shows that model's.
    """
    folder = config_dir()
    cfg = compose(verb.name, overrides, with_hydra=True)
    choices = {
        str(group): option
        for group, option in reversed(cfg.hydra.runtime.choices.items())
        if not str(group).startswith("hydra")
    }
    sections = [
        f"stdetr {verb.name}: {verb.summary}\n\nusage: stdetr {verb.name} [group=option ...] [key=value ...]\n"
        f"example: stdetr {verb.name} {verb.example}".rstrip(),
        Parser().format_help().strip(),
    ]
    if choices:
        sections.append("groups (group=option, the chosen one first):\n" + "\n".join(_group_lines(folder, choices)))
    about = _comments(folder / f"{verb.name}.yaml")
    keys = "\n".join(_key_lines(cfg, about))
    sections.append(f"keys (key=value):\n{keys}" if keys else "keys: none")
    sections.append(f"Everything: stdetr {verb.name} --cfg.  New keys: +key=value.  Files: {folder}")
    return "\n\n".join(sections)


def _group_lines(folder: Path, choices: dict[str, str | None]) -> Iterator[str]:
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    margin = max(len(group) for group in choices) + 4
    for group, chosen in choices.items():
        name = group.split("@")[0]
        others = [option for option in list_options(folder, name) if option != chosen]
        text = "  ".join([f"[{chosen or 'none'}]", *others])
        yield textwrap.fill(text, width, initial_indent=f"  {group}".ljust(margin), subsequent_indent=" " * margin)


def _key_lines(cfg: DictConfig, about: dict[str, str]) -> Iterator[str]:
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    del plain["hydra"]
    lines = list(_flatten(plain))
    margin = min(max((len(path) for path, _ in lines), default=0), 40)
    for path, value in lines:
        note = f"  # {about[path]}" if path in about else ""
        yield f"  {path:<{margin}} = {value}{note}"


def _flatten(node: dict, prefix: str = "", depth: int = 1) -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        path = f"{prefix}{key}"
        if key in {"_target_", "_convert_", "_recursive_", "_partial_"}:
            continue
        if isinstance(value, dict) and value and depth < COLLAPSE_BELOW:
            yield from _flatten(value, f"{path}.", depth + 1)
        elif isinstance(value, dict) and value:
            names = [str(name) for name in value if not str(name).startswith("_")]
            yield path, textwrap.shorten(f"{{{', '.join(names)}}}", 76, placeholder=" ...}")
        else:
            text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
            yield path, textwrap.shorten(text, 76, placeholder=" ...")


def _comments(path: Path) -> dict[str, str]:
    """The comments behind the top keys of a YAML file, by key."""
    notes = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, colon, rest = line.partition(":")
        if colon and key.isidentifier() and " # " in rest:
            notes[key] = rest.partition(" # ")[2].strip()
    return notes
