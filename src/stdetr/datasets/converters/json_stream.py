"""Reads a JSON document record by record: annotation files reach gigabytes, memory does not.

Only the top level is walked: lists there are given element by element, anything else as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from stdetr.datasets.converters.problems import MalformedInputError

_CHUNK = 1 << 20
# An error this close to the end of what has been read may only mean that the rest has not been read yet.
_MARGIN = 16


class Record(NamedTuple):
    """One element of a top-level list, or (index None) one other top-level value.

    section: the top-level key, "" when the document itself is a list
    line:    where the record begins, from 1
    """

    section: str
    index: int | None
    line: int
    value: Any

    @property
    def where(self) -> str:
        """``annotations[3] (line 12)``, for messages."""
        position = "" if self.index is None else f"[{self.index}]"
        return f"{self.section or 'document'}{position} (line {self.line})"


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def iter_records(path: Path, shown: str) -> Iterator[Record]:
    """Stream the document at ``path``; ``shown`` names it in errors.

    Raises:
        MalformedInputError: not JSON, with line and reason; records before the fault have been given by then.
    """
    try:
        with path.open(encoding="utf-8-sig") as stream:
            yield from _Walker(stream, shown).walk()
    except UnicodeDecodeError as error:
        raise MalformedInputError(f"{shown}: not a text file ({error.reason})") from None


class _Walker:
    def __init__(self, stream: Any, shown: str) -> None:
        self.stream, self.shown = stream, shown
        self.buffer, self.position, self.finished = "", 0, False
        self.line, self.counted = 1, 0

    def walk(self) -> Iterator[Record]:
        opening = self._peek()
        if opening == "":
            raise MalformedInputError(f"{self.shown}: the file is empty")
        if opening == "[":
            yield from self._elements("")
        elif opening == "{":
            yield from self._members()
        else:
            self._fail("a JSON object or list was expected")
        if self._peek() != "":
            self._fail("text after the end of the document")

    def _members(self) -> Iterator[Record]:
        self._expect("{")
        if self._peek() == "}":
            self._expect("}")
            return
        while True:
            if self._peek() != '"':
                self._fail("a key in double quotes was expected")
            key = self._decode()
            self._expect(":")
            if self._peek() == "[":
                yield from self._elements(key)
            else:
                line = self._line()
                yield Record(key, None, line, self._decode())
            if self._expect(",}") == "}":
                return

    def _elements(self, section: str) -> Iterator[Record]:
        self._expect("[")
        if self._peek() == "]":
            self._expect("]")
            # An empty list is known by its section, too.
            yield Record(section, None, self._line(), [])
            return
        index = 0
        while True:
            self._peek()
            line = self._line()
            yield Record(section, index, line, self._decode())
            index += 1
            if self._expect(",]") == "]":
                return

    def _fill(self, amount: int = _CHUNK) -> None:
        self._line()
        chunk = self.stream.read(amount)
        self.finished = len(chunk) == 0
        self.buffer = self.buffer[self.position :] + chunk
        self.position = self.counted = 0

    def _peek(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            while self.position < len(self.buffer):
                if self.buffer[self.position] not in " \t\r\n":
                    return self.buffer[self.position]
                self.position += 1
            if self.finished:
                return ""
            self._fill()

    def _expect(self, characters: str) -> str:
        found = self._peek()
        if found == "" or found not in characters:
            wanted = " or ".join(repr(character) for character in characters)
            self._fail(f"{wanted} was expected, {found!r} found" if found else f"the file ends where {wanted} belongs")
        self.position += 1
        return found

    def _decode(self) -> Any:
        self._peek()
        amount = _CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self.buffer, self.position)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(self.buffer) - _MARGIN
                if self.finished or not unfinished:
                    self.position = min(error.pos, len(self.buffer))
                    self._fail(error.msg)
            except ValueError as error:
                self._fail(str(error))
            except RecursionError:
                self._fail("nested too deeply")
            else:
                # "12" at the end of the buffer may be the beginning of "123".
                if end < len(self.buffer) or self.finished or isinstance(value, (dict, list, str)):
                    self.position = end
                    return value
            self._fill(amount)
            amount *= 2

    def _line(self) -> int:
        self.line += self.buffer.count("\n", self.counted, self.position)
        self.counted = self.position
        return self.line

    def _fail(self, reason: str) -> NoReturn:
        raise MalformedInputError(f"{self.shown}:{self._line()}: {reason}")
