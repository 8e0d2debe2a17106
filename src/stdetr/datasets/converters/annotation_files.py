"""Finds a benchmark's annotation files, one per split, and the folder that its frame names start from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stdetr.datasets.converters.options import Options
from stdetr.datasets.converters.problems import MalformedField
from stdetr.datasets.converters.source_tree import SourceTree

# By name pattern, as the same folders hold category lists, captions and the like.
# Argoverse-HD's test-meta.json lists frames without annotations.
_SPLIT = r"((?:mini|sub)?(?:train|val|test|dev)(?!-meta\b)[A-Za-z0-9-]*)"
_SAME = {"valid": "val", "validation": "val"}


@dataclass(frozen=True)
class AnnotationFile:
    """split: the name it gets in the output; source_split: the name it has in the source ("valid")."""

    path: Path
    shown: str
    split: str
    source_split: str


def split_name(source_split: str) -> str:
    """``valid`` and ``validation`` are ``val``; other names stay."""
    return _SAME.get(source_split, source_split)


def find_files(tree: SourceTree, options: Options, patterns: tuple[str, ...], what: str) -> list[AnnotationFile]:
    """Annotation files by name pattern; ``{split}`` in a pattern stands for the split's name.

    ``annotations=FILE`` takes that file only; ``split`` then names it, or selects among the files found.

    Raises:
        FileNotFoundError: there is none, or not the named one.
        ValueError: an unknown split.
    """
    if options.annotations is not None:
        path = tree.require(options.annotations, "the annotation file")
        name = options.split[0] if options.split else _split_of(tree, path, patterns) or "all"
        return [AnnotationFile(path, tree.name(path), split_name(name), name)]
    files: dict[str, AnnotationFile] = {}
    for pattern in patterns:
        for path in sorted(tree.root.glob(pattern.replace("{split}", "*"))):
            name = _split_of(tree, path, (pattern,))
            if name is not None and path.is_file() and split_name(name) not in files:
                tree.check_inside(path)
                files[split_name(name)] = AnnotationFile(path, tree.name(path), split_name(name), name)
    if not files:
        expected = " or ".join(pattern.replace("{split}", "train") for pattern in patterns[:2])
        raise FileNotFoundError(f"source={tree.root} has no {what}: expected {expected}; or name it: annotations=FILE")
    return [files[name] for name in choose_splits(files, options)]


def choose_splits(available: Mapping[str, object], options: Options) -> list[str]:
    """The splits to convert, in the source's order.

    Raises ValueError for a split that the source does not have.
    """
    requested = {name if name in available else split_name(name) for name in options.split}
    for name in sorted(requested):
        if name not in available:
            raise ValueError(
                f"split={name} is not in the source; it has {', '.join(filter(None, sorted(available))) or 'none'}"
            )
    return [name for name in available if not requested or name in requested]


def _split_of(tree: SourceTree, path: Path, patterns: tuple[str, ...]) -> str | None:
    name = tree.name(path)
    for pattern in patterns:
        expression = re.escape(pattern).replace(r"\{split\}", _SPLIT).replace(r"\*", r"[^/]*")
        match = re.fullmatch(expression, name)
        if match:
            return match.group(1)
    return None


class FrameRoot:
    """Where a split's frame names start from: the first candidate below which the first frame exists."""

    def __init__(self, tree: SourceTree, candidates: tuple[str, ...], check_media: bool) -> None:
        self.tree, self.candidates, self.check_media = tree, candidates, check_media
        self._base: str | None = None

    def path(self, name: str, file: str, record: object) -> Path:
        """The frame file ``name`` of the annotation ``file``.

        Raises:
            MalformedInputError: it leads outside the source, which is always refused.
            MalformedField: (check_media) the file does not exist.
        """
        # The name itself is checked first: a folder in front would turn "/etc/passwd" into a name inside the source.
        self.tree.join(name, file, record)
        if self._base is None:
            self._base = self._find(name)
        path = self.tree.join(f"{self._base}{name}", file, record)
        if self.check_media and not path.is_file():
            raise MalformedField(f"frame {self.tree.name(path)} is missing")
        return path

    def _find(self, name: str) -> str:
        bases = [candidate + "/" if candidate else "" for candidate in self.candidates]
        for base in bases:
            if (self.tree.root / base / name).is_file():
                return base
        if not self.check_media:
            return next((base for base in bases if (self.tree.root / base).is_dir()), bases[0])
        raise MalformedField(f"frame is missing; looked for {', '.join(base + name for base in bases)}")
