"""The nearest valid name for a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def nearest(name: str, candidates: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The candidate closest to ``name``, or None where none is close."""
    matches = difflib.get_close_matches(name, list(candidates), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or an empty string where no candidate is close."""
    match = nearest(name, candidates)
    return f"; did you mean '{match}'?" if match else ""


def nearest_file(path: Path) -> str:
    """What to say behind "does not exist": the closest name in the same folder, or that the folder is missing too."""
    folder = path.parent
    if not folder.is_dir():
        return f", nor does {folder}"
    match = nearest(path.name, (item.name for item in folder.iterdir()))
    return f"; did you mean {folder / match}?" if match else ""


def printable(text: str) -> str:
    """A name out of a file on one line: control characters, of terminals too, become spaces."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def key_paths(node: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Every key of nested mappings as a dotted path, sections included."""
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from key_paths(value, f"{prefix}{key}.")


def within(key: str, sections: Iterable[str]) -> bool:
    """Whether the dotted ``key`` is one of ``sections`` or lies in one of them."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def nearest_path(path: str, paths: Iterable[str]) -> str | None:
    """The key path a user most likely meant: by its whole spelling, else by its last part."""
    known = list(paths)
    section, _, leaf = path.rpartition(".")
    siblings = [item for item in known if item.rpartition(".")[0] == section]
    by_sibling = nearest(leaf, [item.rpartition(".")[2] for item in siblings], cutoff=0.75)
    if by_sibling is not None:
        return f"{section}.{by_sibling}" if section else by_sibling
    whole = nearest(path, [item for item in known if not path.startswith(f"{item}.")], cutoff=0.75)
    if whole is not None:
        return whole
    leaves: dict[str, str] = {}
    for item in sorted(known, key=lambda item: item.count("."), reverse=True):
        leaves[item.rpartition(".")[2]] = item
    by_leaf = nearest(leaf, leaves, cutoff=0.75)
    return leaves[by_leaf] if by_leaf is not None else None
