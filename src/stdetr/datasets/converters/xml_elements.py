"""Elements of an XML file, one at a time; document types and entities, which XML bombs use, are refused."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stdetr.datasets.converters.problems import MalformedInputError

_CHUNK = 1 << 16
_DEPTH = 64
# The prolog is the only place for a document type, and its key words are ASCII in every encoding but these.
_WIDE = (b"\xff\xfe", b"\xfe\xff", b"<\0", b"\0<")


class Element(NamedTuple):
    """One finished element with its children, and the line of its start tag."""

    node: ET.Element
    line: int


def iter_elements(path: Path, shown: str, tags: frozenset[str]) -> Iterator[Element]:
    """Elements with one of ``tags`` as they end, in document order; nested ones come only with the outer one.

    The file is parsed line by line, so that each element has its line number; yielded elements are freed.

    Raises:
        MalformedInputError: not well-formed, nested too deeply, or it declares a document type or entities.
    """
    parser = ET.XMLPullParser(("start", "end"))
    parents: list[ET.Element] = []
    element: Element | None = None
    line, tail = 1, b""
    try:
        with path.open("rb") as stream:
            while True:
                text = stream.readline(_CHUNK)
                # A keyword may be split across two pieces of a very long line.
                if b"<!DOCTYPE" in tail + text or b"<!ENTITY" in tail + text or (line == 1 and text[:2] in _WIDE):
                    raise MalformedInputError(f"{shown}:{line}: declares a document type or entities; refused")
                tail = (tail + text)[-9:]
                if text:
                    parser.feed(text)
                else:
                    parser.close()
                events: Any = parser.read_events()
                for event, node in events:
                    if event == "start":
                        parents.append(node)
                        if element is None and node.tag in tags:
                            element = Element(node, line)
                        if len(parents) > _DEPTH:
                            raise MalformedInputError(f"{shown}:{line}: nested too deeply; refused")
                        continue
                    parents.pop()
                    if element is not None and node is element.node:
                        yield element
                        element = None
                    if element is None and parents:
                        parents[-1].remove(node)
                if not text:
                    return
                line += text.endswith(b"\n")
    except ET.ParseError as error:
        reason = str(error).partition(": line")[0]
        raise MalformedInputError(f"{shown}:{error.position[0]}: {reason}") from None
