"""Categories of COCO-like files; those of several files must agree."""

from __future__ import annotations

from typing import Any

from stdetr.datasets.converters import json_fields as fields
from stdetr.datasets.converters.problems import MalformedInputError
from stdetr.datasets.converters.record_store import RecordStore
from stdetr.datasets.converters.records import Category

_KEPT = ("supercategory", "synset", "frequency", "encode_name")


def keep_category(value: dict[str, Any]) -> tuple[int, int, int, dict[str, Any]]:
    """A category for a RecordStore, with the fields that say what the class is."""
    kept = {"name": fields.text(value, "name"), **{key: value[key] for key in _KEPT if key in value}}
    merged = [fields.whole(item, "id") for item in value.get("merged", []) if isinstance(item, dict)]
    if merged:
        kept["merged"] = merged
    return fields.whole(value, "id"), 0, 0, kept


class CategoryUnion:
    """The categories of all annotation files, by id."""

    def __init__(self) -> None:
        self._found: dict[int, Category] = {}

    def add(self, shown: str, store: RecordStore) -> None:
        """Take in the categories of one file.

        Raises:
            MalformedInputError: it has none, an id means another class than in the files before, or two classes share
                a name.
        """
        if not store.count("categories"):
            raise MalformedInputError(f"{shown}: no categories")
        names: set[str] = set()
        for stored in store.all("categories"):
            extra = {key: value for key, value in stored.value.items() if key not in ("name", "merged")}
            category = Category(stored.id, stored.value["name"], extra)
            if category.name in names:
                raise MalformedInputError(f"{shown}: {stored.where}: category name {category.name!r} was already used")
            names.add(category.name)
            known = self._found.setdefault(category.id, category)
            if known.name != category.name:
                raise MalformedInputError(
                    f"{shown}: {stored.where}: category {category.id} is {category.name!r} here, and {known.name!r} in "
                    "another split"
                )

    def categories(self) -> list[Category]:
        return [self._found[number] for number in sorted(self._found)]
