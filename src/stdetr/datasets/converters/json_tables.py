"""COCO-like annotation files: sections of records that refer to each other by id.

The file stays on disk (see ``data.json_file``); memory holds each record's place and three numbers, 100 bytes, and
the record is decoded again when its video is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import msgspec
import numpy as np
from tqdm import tqdm

from stdetr.data.coco_vid_rules import repeated
from stdetr.data.json_file import JsonFile, Text, Whole, explain
from stdetr.datasets.converters.annotation_files import AnnotationFile, find_files
from stdetr.datasets.converters.problems import MalformedInputError, Problems
from stdetr.datasets.converters.records import NO_TRACK, Box, Category, Reader


class Place(NamedTuple):
    """Where a record is in its file; formatted only for messages."""

    json: JsonFile
    section: str
    number: int
    raw: msgspec.Raw

    def __str__(self) -> str:
        return self.json.where(self.section, self.number, self.raw)


class Stored(NamedTuple):
    """A decoded record and where it is."""

    where: Place
    value: Any


class Refers(NamedTuple):
    """How the records of a section are grouped: ``key`` names their parent in the section ``to`` (if it is one),
    ``order`` the field that sorts those of one parent."""

    key: str
    to: str = ""
    order: str = "id"


class Section:
    """The records of one section, by id and by parent.  Malformed records and repeated ids are problems."""

    def __init__(self, json: JsonFile, name: str, kind: type, refers: Refers | None, problems: Problems) -> None:
        self.json, self.name = json, name
        self.records = json.records(name)
        # Benchmarks write 12.0 where they mean 12.
        self._decoder = msgspec.json.Decoder(kind, strict=False)
        keys: list[tuple[int, int, int, int]] = []
        for number, raw in enumerate(tqdm(self.records, desc=f"read {name}", unit=" records", disable=None)):
            try:
                value: Any = self._decoder.decode(raw)
            except msgspec.ValidationError as error:
                problems.add(json.shown, self._place(number), explain(error, raw))
                continue
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

    def _at(self, row: int) -> Stored:
        place = self._place(int(self._numbers[row]))
        return Stored(place, self._decoder.decode(place.raw))

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Stored]:
        """Every record in the order of ids."""
        return (self._at(row) for row in range(len(self.ids)))

    def __contains__(self, number: int) -> bool:
        row = int(np.searchsorted(self.ids, number))
        return row < len(self.ids) and int(self.ids[row]) == number

    def __getitem__(self, number: int) -> Stored:
        assert number in self, number
        return self._at(int(np.searchsorted(self.ids, number)))

    def children(self, parent: int) -> Iterator[Stored]:
        """Records of one parent in their order, then that of ids."""
        start, stop = np.searchsorted(self.parents, [parent, parent + 1])
        return (self._at(int(row)) for row in self._order[start:stop])

    def orphans(self, parents: Section) -> Iterator[tuple[Stored, int]]:
        """Records whose parent is not in ``parents``, with its id."""
        lost = np.flatnonzero(~np.isin(self.parents, parents.ids))
        return ((self._at(int(self._order[place])), int(self.parents[place])) for place in lost)


class _Merged(msgspec.Struct):
    id: Whole


class JsonCategory(msgspec.Struct):
    """A category with the fields that describe the class."""

    id: Whole
    name: Text
    supercategory: Any = msgspec.UNSET
    synset: Any = msgspec.UNSET
    frequency: Any = msgspec.UNSET
    encode_name: Any = msgspec.UNSET
    merged: list[_Merged] = []

    @property
    def extra(self) -> dict[str, Any]:
        names = ("supercategory", "synset", "frequency", "encode_name")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not msgspec.UNSET}


@dataclass(frozen=True)
class Loaded:
    """One annotation file and its sections."""

    file: AnnotationFile
    json: JsonFile
    sections: dict[str, Section]

    def __getitem__(self, name: str) -> Section:
        return self.sections[name]


class CocoLikeReader(Reader):
    """Formats with one COCO-like JSON file per split.

    patterns, what: the names of the files, and their name in messages
    sections: the type of each section's records, and their grouping
    required: sections without which the file is another format
    counted: the section that has one record per video
    """

    patterns: ClassVar[tuple[str, ...]]
    what: ClassVar[str]
    sections: ClassVar[dict[str, tuple[type, Refers | None]]]
    required: ClassVar[tuple[str, ...]] = ()
    counted: ClassVar[str] = "videos"

    def prepare(self) -> None:
        self.files = find_files(self.tree, self.options, self.patterns, self.what)
        self.one_id_space = len(self.files) == 1
        self.loaded: list[Loaded] = []

    def categories(self) -> list[Category]:
        """The categories of all files, by id.

        Raises MalformedInputError when a file has none, two share a name, or an id means another class elsewhere.
        """
        categories: dict[int, Category] = {}
        for file in self.files:
            loaded = self._load(file)
            self.loaded.append(loaded)
            names: set[str] = set()
            for where, value in loaded["categories"]:
                if value.name in names:
                    raise MalformedInputError(f"{file.shown}: {where}: category name {value.name!r} was already used")
                names.add(value.name)
                known = categories.setdefault(value.id, Category(value.id, value.name, value.extra))
                if known.name != value.name:
                    told = f"category {value.id} is {value.name!r} here, and {known.name!r} in another split"
                    raise MalformedInputError(f"{file.shown}: {where}: {told}")
            if not names:
                raise MalformedInputError(f"{file.shown}: no categories")
        self.total = sum(len(loaded[self.counted]) for loaded in self.loaded)
        return [categories[number] for number in sorted(categories)]

    def _load(self, file: AnnotationFile) -> Loaded:
        json = JsonFile(file.path, file.shown)
        if isinstance(json.value, list):
            raise MalformedInputError(f"{file.shown}:1: a JSON object was expected, not a list")
        for name in self.required:
            if name not in json.value:
                raise MalformedInputError(f"{file.shown}: no section {name!r}; it has {', '.join(sorted(json.value))}")
        kinds = {"categories": (JsonCategory, None), **self.sections}
        held = {name: Section(json, name, kind, refers, self.problems) for name, (kind, refers) in kinds.items()}
        for name, (_, refers) in self.sections.items():
            if refers is not None and refers.to:
                for orphan, parent in held[name].orphans(held[refers.to]):
                    self.problems.add(file.shown, orphan.where, f"{refers.key} {parent} is not among the {refers.to}")
        return Loaded(file, json, held)

    def box(self, loaded: Loaded, stored: Stored, track: int = NO_TRACK) -> Iterator[Box]:
        """The box of a COCO annotation; none when its category is unknown."""
        value = stored.value
        if value.category_id not in loaded["categories"]:
            self.problems.add(
                loaded.file.shown, stored.where, f"category_id {value.category_id} is not among the categories"
            )
            return
        yield Box(value.category_id, value.bbox, track, value.crowd, stored.where, value.area, value.id)
