"""Records of one large annotation file on disk, found again by parent.

COCO-like files list videos, images and annotations apart and in any order; bringing them together by video would
need all of them in memory.  SQLite (in the standard library) keeps them in the conversion's work folder instead.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from stdetr.datasets.converters.json_stream import Record, iter_records
from stdetr.datasets.converters.problems import MalformedField, MalformedInputError, Problems


class Stored(NamedTuple):
    """A record's number in its table, where it was in the file, and what was kept of it."""

    id: int
    where: str
    value: dict[str, Any]


class RecordStore:
    """Tables of records with an id, a parent and an order inside the parent."""

    def __init__(self, database: Path) -> None:
        self._connection = sqlite3.connect(database)
        # The file lives as long as the conversion: no crash safety is needed.
        self._connection.execute("PRAGMA journal_mode=OFF")
        self._connection.execute("PRAGMA synchronous=OFF")
        self._tables: set[str] = set()

    def add(self, table: str, number: int, parent: int, order: int, where: str, value: Mapping[str, Any]) -> None:
        """Raises MalformedField when the table has the number already."""
        if table not in self._tables:
            self._create(table)
        for value_of in (number, parent, order):
            if not -(2**63) <= value_of < 2**63:
                raise MalformedField(f"id {value_of} does not fit 64 bits")
        row = (number, parent, order, where, json.dumps(value, separators=(",", ":")))
        try:
            self._connection.execute(f"INSERT INTO {table} VALUES (?,?,?,?,?)", row)
        except sqlite3.IntegrityError:
            raise MalformedField(f"id {number} was already used") from None

    def _create(self, table: str) -> None:
        assert table.isidentifier(), table
        self._connection.execute(
            f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, parent INTEGER, place INTEGER, source TEXT, value TEXT)"
        )
        self._connection.execute(f"CREATE INDEX {table}_parent ON {table} (parent, place)")
        self._tables.add(table)

    def count(self, table: str) -> int:
        if table not in self._tables:
            return 0
        return self._connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]

    def has(self, table: str, number: int) -> bool:
        if table not in self._tables:
            return False
        found = self._connection.execute(f"SELECT 1 FROM {table} WHERE id=?", (number,)).fetchone()
        return found is not None

    def get(self, table: str, number: int) -> Stored | None:
        if table not in self._tables:
            return None
        row = self._connection.execute(f"SELECT id, source, value FROM {table} WHERE id=?", (number,)).fetchone()
        return None if row is None else Stored(row[0], row[1], json.loads(row[2]))

    def all(self, table: str) -> Iterator[Stored]:
        """Every record in the order of ids."""
        yield from self._select(table, f"SELECT id, source, value FROM {table} ORDER BY id", ())

    def children(self, table: str, parent: int) -> Iterator[Stored]:
        """Records of one parent in their order, then that of ids."""
        query = f"SELECT id, source, value FROM {table} WHERE parent=? ORDER BY place, id"
        yield from self._select(table, query, (parent,))

    def _select(self, table: str, query: str, values: tuple[Any, ...]) -> Iterator[Stored]:
        if table not in self._tables:
            return
        for number, where, text in self._connection.execute(query, values):
            yield Stored(number, where, json.loads(text))

    def orphans(self, table: str, parents: str) -> Iterator[Stored]:
        """Records of ``table`` whose parent is not in ``parents``."""
        if table not in self._tables:
            return
        condition = f"WHERE parent NOT IN (SELECT id FROM {parents})" if parents in self._tables else ""
        yield from self._select(table, f"SELECT id, source, value FROM {table} {condition} ORDER BY id", ())

    def close(self) -> None:
        self._connection.close()


Keep = Callable[[dict[str, Any]], tuple[int, int, int, dict[str, Any]]]
"""Takes a record to (id, parent, order, what to keep of it); raises MalformedField."""


def load_sections(
    path: Path,
    shown: str,
    store: RecordStore,
    sections: Mapping[str, Keep],
    problems: Problems,
    texts: Mapping[str, list[str]] | None = None,
) -> dict[str, Any]:
    """Stream a file into ``store``, one table a section; returns the other top-level values, lists left out.

    texts: sections that are lists of text, filled in order

    Raises:
        MalformedInputError: no JSON object, or a section that is no list; (strict) a malformed record.
    """
    others: dict[str, Any] = {}
    seen: set[str] = set()
    for record in tqdm(iter_records(path, shown), desc=f"read {path.name}", unit=" records", disable=None):
        if record.section == "":
            raise MalformedInputError(f"{shown}:{record.line}: a JSON object was expected, not a list")
        seen.add(record.section)
        keep = sections.get(record.section)
        if texts is not None and record.section in texts and record.index is not None:
            if not isinstance(record.value, str):
                raise MalformedInputError(f"{shown}: {record.where}: must be text, it is {record.value!r}")
            texts[record.section].append(record.value)
        elif keep is None:
            if record.index is None:
                others[record.section] = record.value
            else:
                others.setdefault(record.section, [])
        elif record.index is not None:
            _store(record, shown, store, keep, problems)
        elif record.value not in ([], None):
            raise MalformedInputError(f"{shown}:{record.line}: {record.section!r} must be a list")
    others["sections"] = seen
    return others


def _store(record: Record, shown: str, store: RecordStore, keep: Keep, problems: Problems) -> None:
    where = record.where
    if not isinstance(record.value, dict):
        problems.add(shown, where, f"must be an object, it is {type(record.value).__name__}")
        return
    try:
        number, parent, order, kept = keep(record.value)
        store.add(record.section, number, parent, order, where, kept)
    except MalformedField as error:
        problems.add(shown, where, str(error))
