"""A memory-mapped JSON file of records; msgspec decodes each record when it is needed.

The file is mapped, not loaded, and one pass over it finds where each record lies.  What stays in memory is 72 bytes per
record of the section at hand (66 MB for 900,000 annotations in 126 MB of text), however long the records are.
"""

from __future__ import annotations

import codecs
import functools
import json
import mmap
import re
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np

from stdetr.names import nearest

_CHUNK = 1 << 20
_DEPTH = 200
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[][{}]', re.DOTALL)

# Every number is checked against the range of its column, where the smallest value means "absent".
ABSENT = -(2**63)
Whole = Annotated[int, msgspec.Meta(ge=ABSENT + 1, le=2**63 - 1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Flag = Annotated[int, msgspec.Meta(ge=0, le=1)] | bool
Text = Annotated[str, msgspec.Meta(min_length=1)]
Number = Whole | float


class MalformedInputError(ValueError):
    """A file violates its format; the message names the file, the record and the reason."""


MISFITS = (msgspec.DecodeError, RecursionError)
"""What decoding a record raises where it is not of its type; :func:`explain` says why."""

_encode = msgspec.json.Encoder(enc_hook=lambda value: value.tolist()).encode  # numpy's numbers and arrays


class JsonFile:
    """One document: an object whose lists are its sections, or a list (section ``""``).

    source: a file, or the same document in memory
    shown: what messages call it

    Raises:
        FileNotFoundError: no such file; with the nearest name.
        MalformedInputError: it is a folder, empty, not UTF-8 or not JSON (NaN is not), with the line.
    """

    def __init__(self, source: Path | dict[str, Any] | list[Any], shown: str | None = None) -> None:
        self.shown = shown or str(source)
        self._bytes = self._map(source) if isinstance(source, Path) else memoryview(_encode(source))
        if self._bytes[:3] == codecs.BOM_UTF8:
            self._bytes = self._bytes[3:]
        self._check_text()
        self.value: Any
        try:
            self.value = msgspec.json.decode(self._bytes, type=dict[str, msgspec.Raw] | list[msgspec.Raw])
        except RecursionError:
            self._fail("nested too deeply", self._deepest())
        except msgspec.ValidationError:
            self._fail("a JSON object or list was expected", 0)
        except msgspec.DecodeError as error:
            place = re.search(r" \(byte (\d+)\)", str(error))
            if place is None:
                self._fail("not JSON: the file ends inside a value", len(self._bytes))
            offset = int(place[1])
            near = bytes(self._bytes[max(0, offset - 8) : offset + 8]).decode(errors="replace")
            reason = str(error).removeprefix("JSON is malformed: ").replace(place[0], "")
            self._fail(f"not JSON: {reason} near {near!r} (byte {offset})", offset)

    def _map(self, path: Path) -> memoryview:
        if path.is_dir():
            raise MalformedInputError(f"{self.shown} is a folder; name the JSON file inside it")
        if not path.exists():
            names = [item.name for item in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
            near = nearest(path.name, names)
            raise FileNotFoundError(f"{self.shown} does not exist" + (f"; did you mean {near}?" if near else ""))
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if size else b"")

    def _fail(self, reason: str, offset: int) -> NoReturn:
        raise MalformedInputError(f"{self.shown}:{self._line_at(offset)}: {reason}") from None

    def _check_text(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        empty = True
        for start in range(0, len(self._bytes), _CHUNK):
            part = self._bytes[start : start + _CHUNK]
            try:
                text = decoder.decode(part, final=start + _CHUNK >= len(self._bytes))
            except UnicodeDecodeError as error:
                self._fail(f"not a text file in UTF-8 ({error.reason})", start + error.start)
            empty = empty and not text.strip()
        if empty:
            raise MalformedInputError(f"{self.shown}: the file is empty")

    def _deepest(self) -> int:
        """Where the nesting is deeper than any record needs."""
        depth = 0
        for token in _BRACKETS.finditer(self._bytes):
            depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(token[0], 0)
            if depth > _DEPTH:
                return token.start()
        return 0

    @functools.cached_property
    def _breaks(self) -> np.ndarray:
        data = np.frombuffer(self._bytes, np.uint8)
        parts = [start + np.flatnonzero(data[start : start + _CHUNK] == 10) for start in range(0, len(data), _CHUNK)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def _line_at(self, offset: int) -> int:
        return int(np.searchsorted(self._breaks, offset)) + 1

    def line(self, raw: msgspec.Raw) -> int:
        """The line on which a value of this document begins, from 1."""
        return self._line_at(_address(raw) - _address(self._bytes))

    def records(self, section: str = "") -> list[msgspec.Raw]:
        """The records of one section; none when it is absent or null.

        Raises MalformedInputError when it is not a list.
        """
        if isinstance(self.value, list):
            return self.value if section == "" else []
        raw = self.value.get(section)
        if raw is None or memoryview(raw)[:4] == b"null":
            return []
        if memoryview(raw)[:1] != b"[":
            kind = {b"{": "dict", b'"': "str", b"t": "bool", b"f": "bool"}.get(bytes(memoryview(raw)[:1]), "a number")
            raise MalformedInputError(
                f"{self.shown}:{self.line(raw)}: section {section!r} must be a list, it is {kind}"
            )
        return msgspec.json.decode(raw, type=list[msgspec.Raw])

    def where(self, section: str, number: int, raw: msgspec.Raw) -> str:
        """``annotations[3] (line 12)``, for messages."""
        return f"{section or 'document'}[{number}] (line {self.line(raw)})"


def _address(buffer: Any) -> int:
    return np.frombuffer(memoryview(buffer), np.uint8).__array_interface__["data"][0]


_PHRASES = {"str of length >= 1": "text", "int | float": "number", "int <= 1": "0 or 1", "int | bool": "0 or 1"}
_WORDS = {
    "number": "a number",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "array": "a list",
    "object": "an object",
    "|": "or",
}


def explain(error: Exception, raw: msgspec.Raw) -> str:
    """Why msgspec refused a record, in words: ``bbox[1] must be a number, it is 'a'``."""
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    # Python reads no number of more than 4300 digits.
    value = json.loads(bytes(raw), parse_int=lambda text: int(text) if len(text) < 100 else text)
    message, _, path = str(error).partition(" - at `$")
    if not isinstance(value, dict):
        return f"must be an object, it is {type(value).__name__}"
    path = path.strip(".`")
    for name, index in re.findall(r"(\w+)|\[(\d+)\]", path):
        value = value[int(index) if index else name]
    missing = re.search(r"missing required field `(\w+)`", message)
    if missing is not None:
        near = nearest(missing[1], value)
        return f"{path}{'.' if path else ''}{missing[1]} is missing" + (f"; there is {near!r}" if near else "")
    expected = re.search(r"Expected (.*?)(?:, got .*)?$", message)
    if expected is None and message != "Number out of range":
        return message  # of a type's own check
    words = expected[1].replace("`", "") if expected else "number in range"
    for old, new in _PHRASES.items():
        words = words.replace(old, new)
    words = " ".join(_WORDS.get(word, word) for word in words.split())
    text = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
    return f"{path} must be {words}, it is {text}"
