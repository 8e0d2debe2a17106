"""COCO-like annotation files: sections of records that refer to each other by id.

The file stays on disk (see ``data.json_file``); memory holds each record's place and three numbers, 100 bytes, and
the record is decoded again when its video is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import msgspec
import numpy as np
from tqdm import tqdm

from stdetr.data.coco_vid_rules import repeated
from stdetr.data.json_file import MISFITS, JsonFile, Text, Whole, explain
from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, Problems
from stdetr.datasets.converters.records import NO_TRACK, Box, Category, Image, Reader, split_name

# By name pattern, as the same folders hold category lists, captions and the like.
# Argoverse-HD's test-meta.json lists frames without annotations.
_SPLIT = r"((?:mini|sub)?(?:train|val|test|dev)(?!-meta\b)[A-Za-z0-9-]*)"


class Place(NamedTuple):
    """Where a record is in its file; formatted only for messages."""

    json: JsonFile
    section: str
    number: int
    raw: msgspec.Raw

    def __str__(self) -> str:
        return self.json.where(self.section, self.number, self.raw)


class Refers(NamedTuple):
    """How the records of a section are grouped: ``key`` names their parent in the section ``to`` (if it is one),
    ``order`` the field that sorts those of one parent."""

    key: str
    to: str = ""
    order: str = "id"


def decode(raw: msgspec.Raw, decoder: msgspec.json.Decoder[Any]) -> Any:
    """A record as its type; raises MalformedField that says why it is not one."""
    try:
        return decoder.decode(raw)
    except MISFITS as error:
        raise MalformedField(explain(error, raw)) from None


class Section:
    """The records of one section, by id and by parent; each comes as (place, value).

    Malformed records and repeated ids are problems.
    """

    def __init__(self, json: JsonFile, name: str, kind: type, refers: Refers | None, problems: Problems) -> None:
        self.json, self.name = json, name
        self.records = json.records(name)
        # Benchmarks write 12.0 where they mean 12.
        self._decoder = msgspec.json.Decoder(kind, strict=False)
        keys: list[tuple[int, int, int, int]] = []
        for number, raw in enumerate(tqdm(self.records, desc=f"read {name}", unit=" records", disable=None)):
            value = problems.attempt(json.shown, self._place(number), decode, raw, self._decoder)
            if value is not None:
                parent, order = (getattr(value, refers.key), getattr(value, refers.order)) if refers else (0, 0)
                keys.append((value.id, parent, order, number))
        table = np.array(keys, np.int64).reshape(-1, 4)
        used = repeated(table[:, 0])
        for row in used:
            problems.add(json.shown, self._place(int(table[row, 3])), f"id {table[row, 0]} was already used")
        table = np.delete(table, used, axis=0)
        table = table[np.argsort(table[:, 0])]
        self.ids, self._numbers = table[:, 0].copy(), table[:, 3].copy()
        self._order = np.lexsort((table[:, 0], table[:, 2], table[:, 1]))
        self.parents = table[self._order, 1]

    def _place(self, number: int) -> Place:
        return Place(self.json, self.name, number, self.records[number])

    def _at(self, row: int) -> tuple[Place, Any]:
        place = self._place(int(self._numbers[row]))
        return place, self._decoder.decode(place.raw)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[Place, Any]]:
        """Every record in the order of ids."""
        return map(self._at, range(len(self.ids)))

    def get(self, number: int) -> Any:
        """The record with this id, or None."""
        row = int(np.searchsorted(self.ids, number))
        return self._at(row)[1] if row < len(self.ids) and int(self.ids[row]) == number else None

    def children(self, parent: int) -> Iterator[tuple[Place, Any]]:
        """Records of one parent in their order, then that of ids."""
        start, stop = np.searchsorted(self.parents, [parent, parent + 1])
        return (self._at(int(row)) for row in self._order[start:stop])

    def orphans(self, parents: Section) -> Iterator[tuple[Place, int]]:
        """Records whose parent is not in ``parents``, with its id."""
        lost = np.flatnonzero(~np.isin(self.parents, parents.ids))
        return ((self._at(int(self._order[place]))[0], int(self.parents[place])) for place in lost)


class JsonCategory(msgspec.Struct):
    """A category with the fields that describe the class."""

    id: Whole
    name: Text
    supercategory: Any = msgspec.UNSET
    synset: Any = msgspec.UNSET
    frequency: Any = msgspec.UNSET
    encode_name: Any = msgspec.UNSET

    @property
    def extra(self) -> dict[str, Any]:
        names = ("supercategory", "synset", "frequency", "encode_name")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not msgspec.UNSET}


@dataclass(frozen=True)
class Loaded:
    """One annotation file and its sections.

    split: the name it gets in the output; source_split: the name it has in the source ("valid")
    """

    shown: str
    split: str
    source_split: str
    json: JsonFile
    sections: dict[str, Section]

    def __getitem__(self, name: str) -> Section:
        return self.sections[name]


class CocoLikeReader(Reader):
    """Formats with one COCO-like JSON file per split.

    patterns, what: the names of the files (``{split}`` stands for the split's name), and their name in messages
    sections: the type of each section's records, and their grouping
    required: sections without which the file is another format
    counted: the section that has one record per video
    """

    patterns: ClassVar[tuple[str, ...]]
    what: ClassVar[str]
    sections: ClassVar[dict[str, tuple[type, Refers | None]]]
    category_type: ClassVar[type] = JsonCategory
    required: ClassVar[tuple[str, ...]] = ()
    counted: ClassVar[str] = "videos"

    def prepare(self) -> None:
        self.files = self._find_files()
        self.one_id_space = len(self.files) == 1

    def _find_files(self) -> list[tuple[Path, str]]:
        """Annotation files and the names of their splits in the source.

        ``annotations=FILE`` takes that file only; ``split`` then names it, or selects among the files found.
        """
        tree, options = self.tree, self.options
        if options.annotations is not None:
            path = tree.require(options.annotations, "the annotation file")
            return [(path, options.split[0] if options.split else self._split_of(path, *self.patterns) or "all")]
        files: dict[str, tuple[Path, str]] = {}
        for pattern in self.patterns:
            for path in sorted(tree.root.glob(pattern.replace("{split}", "*"))):
                name = self._split_of(path, pattern)
                if name is not None and path.is_file() and split_name(name) not in files:
                    tree.check_inside(path)
                    files[split_name(name)] = path, name
        if not files:
            expected = " or ".join(pattern.replace("{split}", "train") for pattern in self.patterns[:2])
            told = f"expected {expected}; or name it: annotations=FILE"
            raise FileNotFoundError(f"source={tree.root} has no {self.what}: {told}")
        return [files[name] for name in self.choose_splits(files)]

    def _split_of(self, path: Path, *patterns: str) -> str | None:
        for pattern in patterns:
            expression = re.escape(pattern).replace(r"\{split\}", _SPLIT).replace(r"\*", r"[^/]*")
            if match := re.fullmatch(expression, self.tree.name(path)):
                return match.group(1)
        return None

    def categories(self) -> list[Category]:
        """The categories of all files, by id.

        Raises MalformedInputError when a file has none, two share a name, or an id means another class elsewhere.
        """
        categories: dict[int, Category] = {}
        self.loaded = [self._load(path, source_split) for path, source_split in self.files]
        for loaded in self.loaded:
            names: set[str] = set()
            for where, value in loaded["categories"]:
                known = categories.setdefault(value.id, Category(value.id, value.name, value.extra))
                told = f"category name {value.name!r} was already used" if value.name in names else ""
                if known.name != value.name:
                    told = f"category {value.id} is {value.name!r} here, and {known.name!r} in another split"
                if told:
                    raise MalformedInputError(f"{loaded.shown}: {where}: {told}")
                names.add(value.name)
            if not names:
                raise MalformedInputError(f"{loaded.shown}: no categories")
        self.total = sum(len(loaded[self.counted]) for loaded in self.loaded)
        return [categories[number] for number in sorted(categories)]

    def _load(self, path: Path, source_split: str) -> Loaded:
        shown = self.tree.name(path)
        json = JsonFile(path, shown)
        if isinstance(json.value, list):
            raise MalformedInputError(f"{shown}:1: a JSON object was expected, not a list")
        for name in self.required:
            if name not in json.value:
                raise MalformedInputError(f"{shown}: no section {name!r}; it has {', '.join(sorted(json.value))}")
        kinds = {"categories": (self.category_type, None), **self.sections}
        held = {name: Section(json, name, kind, refers, self.problems) for name, (kind, refers) in kinds.items()}
        for name, (_, refers) in self.sections.items():
            if refers is not None and refers.to:
                for orphan, parent in held[name].orphans(held[refers.to]):
                    self.problems.add(shown, orphan, f"{refers.key} {parent} is not among the {refers.to}")
        return Loaded(shown, split_name(source_split), source_split, json, held)

    def boxes(self, loaded: Loaded, image: Image) -> Iterator[Box]:
        """The boxes of one image's annotations, of the type :class:`stdetr.datasets.converters.coco.Annotation`."""
        assert image.id is not None
        for where, value in loaded["annotations"].children(image.id):
            if self.known_category(loaded, where, value.category_id):
                track = getattr(value, "track", NO_TRACK)
                yield Box(image.frame, value.category_id, value.bbox, track, value.crowd, where, value.area, value.id)

    def known_category(self, loaded: Loaded, where: Place, category: int) -> bool:
        """Whether the file has this category; it is a problem of the record when not."""
        known = loaded["categories"].get(category) is not None
        if not known:
            self.problems.add(loaded.shown, where, f"category_id {category} is not among the categories")
        return known
