"""Streams elements of an XML file.  Document types and entities are refused: they are how XML bombs are built.

``xml.etree`` gives neither line numbers nor a way to refuse entities, so this drives expat itself.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from stdetr.datasets.converters.problems import MalformedField, MalformedInputError

_CHUNK = 1 << 16
_DEPTH = 64


class Element:
    """One finished element with its line; children are inside ``node``."""

    __slots__ = ("line", "node")

    def __init__(self, node: ET.Element, line: int) -> None:
        self.node = node
        self.line = line


def iter_elements(path: Path, shown: str, tags: frozenset[str]) -> Iterator[Element]:
    """Elements with one of ``tags`` as they end, in document order; an element inside another one comes with it only.

    Raises:
        MalformedInputError: not well-formed, or it declares a document type or entities.
    """
    walker = _Walker(shown, tags)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield from walker.feed(chunk, last=False)
    yield from walker.feed(b"", last=True)


class _Walker:
    def __init__(self, shown: str, tags: frozenset[str]) -> None:
        self.shown, self.tags = shown, tags
        self.open: list[ET.Element] = []
        self.lines: list[int] = []
        self.done: list[Element] = []
        self.depth = 0
        self.last: ET.Element | None = None
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.EntityDeclHandler = self._refuse

    def feed(self, chunk: bytes, last: bool) -> Iterator[Element]:
        try:
            self.parser.Parse(chunk, last)
        except expat.ExpatError as error:
            raise MalformedInputError(f"{self.shown}:{error.lineno}: {expat.ErrorString(error.code)}") from None
        done, self.done = self.done, []
        yield from done

    def _refuse(self, *_: object) -> NoReturn:
        line = self.parser.CurrentLineNumber
        raise MalformedInputError(f"{self.shown}:{line}: declares a document type or entities; refused")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        if self.depth > _DEPTH:
            raise MalformedInputError(f"{self.shown}:{self.parser.CurrentLineNumber}: nested too deeply; refused")
        if self.open:
            node = ET.SubElement(self.open[-1], tag, attributes)
        elif tag in self.tags:
            node = ET.Element(tag, attributes)
        else:
            return
        self.open.append(node)
        self.lines.append(self.parser.CurrentLineNumber)
        self.last = None

    def _end(self, tag: str) -> None:
        self.depth -= 1
        if not self.open:
            return
        node = self.open.pop()
        line = self.lines.pop()
        self.last = node
        if not self.open:
            self.done.append(Element(node, line))

    def _text(self, text: str) -> None:
        # Text after a child belongs to nobody in these formats.
        if self.open and self.last is None:
            self.open[-1].text = (self.open[-1].text or "") + text


def attribute(node: ET.Element, name: str) -> float:
    """A number in an attribute; raises MalformedField."""
    return _number(node.get(name), f"{node.tag} {name}")


def child_number(node: ET.Element, name: str) -> float:
    """A number in a child's text; raises MalformedField."""
    return _number(node.findtext(name), f"{node.tag}/{name}")


def whole(value: float, name: str) -> int:
    """The value as int; raises MalformedField when it is none."""
    if value != int(value):
        raise MalformedField(f"{name} is {value}, not a whole number")
    return int(value)


def _number(text: str | None, name: str) -> float:
    if text is None:
        raise MalformedField(f"{name} is missing")
    try:
        value = float(text)
    except ValueError:
        raise MalformedField(f"{name} is {text.strip()!r}, not a number") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise MalformedField(f"{name} is {text.strip()!r}, not finite")
    return value
