"""JSON and XML read record by record, and the records of one file found again by id and by parent."""

from __future__ import annotations

import json
import tracemalloc

import msgspec
import pytest

from stdetr.data.json_file import JsonFile, Number, Whole, explain
from stdetr.datasets.converters import text_files
from stdetr.datasets.converters.coco_like import Refers, Section
from stdetr.datasets.converters.problems import MalformedInputError, Problems
from stdetr.datasets.converters.text_files import iter_elements

DOCUMENT = (
    '{"info": {"a": [1, 2]},\n "images": [{"id": 1},\n  {"id": 22, "t": "\\"]}"}, 333],\n"empty": [], "n": null}\n'
)


def test_records_with_their_lines(tmp_path):
    path = tmp_path / "f.json"
    path.write_text(DOCUMENT, encoding="utf-8-sig")
    file = JsonFile(path, "f.json")
    assert [(file.line(raw), json.loads(bytes(raw))) for raw in file.records("images")] == [
        (2, {"id": 1}),
        (3, {"id": 22, "t": '"]}'}),
        (3, 333),
    ]
    assert file.where("images", 1, file.records("images")[1]) == "images[1] (line 3)"
    assert [file.records(name) for name in ("empty", "n", "nothing", "")] == [[], [], [], []]
    with pytest.raises(MalformedInputError, match=r"f\.json:1: section 'info' must be a list, it is dict"):
        file.records("info")
    path.write_text("[1,\n\n23, [4], 5.5e3]")
    file = JsonFile(path, "f.json")
    assert [(file.line(raw), bytes(raw)) for raw in file.records()] == [
        (1, b"1"),
        (3, b"23"),
        (3, b"[4]"),
        (3, b"5.5e3"),
    ]
    assert file.records("images") == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", r"f\.json: the file is empty"),
        ("  \n", r"f\.json: the file is empty"),
        ("3", r"f\.json:1: a JSON object or list was expected"),
        ('{"a": [1, 2', r"f\.json:1: not JSON: the file ends inside a value"),
        ('{"a": [1,\n 2,\n nope]}', r"f\.json:3: not JSON: invalid character near .* \(byte 16\)"),
        ('{"a": [1]} x', "trailing characters near"),
        ('{"a": [NaN]}', "invalid character near .*NaN"),
        ('{"a": [-Infinity]}', "not JSON: invalid"),
        ('{"a" 1}', "expected ':'"),
        ("{3: 1}", "object keys must be strings"),
        ('{"a": ["unfinished]}', "the file ends inside a value"),
        ("\n" + "[" * 100_000, r"f\.json:2: nested too deeply"),
        ('{"a":\n' * 1000 + "1" + "}" * 1000, r"f\.json:201: nested too deeply"),
        (b'{"a":\n "\xff\xfe"}', r"f\.json:2: not a text file in UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "not a text file in UTF-8"),
    ],
)
def test_malformed_json(tmp_path, text, reason):
    path = tmp_path / "f.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(MalformedInputError, match=reason) as caught:
        JsonFile(path, "f.json")
    assert "\n" not in str(caught.value)


def test_text_that_is_cut_between_two_pieces_is_text(tmp_path, monkeypatch):
    monkeypatch.setattr("stdetr.data.json_file._CHUNK", 7)
    path = tmp_path / "f.json"
    path.write_text('{"aäöü€": ["ß€\U0001f600"],\n"b": [1]}', encoding="utf-8")
    file = JsonFile(path)
    assert json.loads(bytes(file.records("aäöü€")[0])) == "ß€\U0001f600"
    assert file.line(file.records("b")[0]) == 2
    path.write_bytes(b'{"abcdefg":\n "\xc3"}')
    with pytest.raises(MalformedInputError, match=r":2: not a text file"):
        JsonFile(path)


def test_memory_does_not_grow_with_the_records(tmp_path):
    path = tmp_path / "f.json"

    def peak(length: int) -> int:
        record = json.dumps({"id": 1, "segmentation": list(range(length))})
        path.write_text('{"annotations": [' + ",".join([record] * 3000) + "]}")
        tracemalloc.start()
        assert len(JsonFile(path).records("annotations")) == 3000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(10)
    # 11 MB and 0.2 MB of text, of which 1 MB at a time is checked to be UTF-8.
    assert peak(800) < 3000 * 300 + (4 << 20)
    assert peak(10) < 3000 * 300


class Item(msgspec.Struct):
    id: Whole
    owner: Whole = 0
    place: Whole = 0
    box: tuple[Number, Number] = (0, 0)
    inner: list[tuple[Number, Number]] = []

    def __post_init__(self) -> None:
        if self.place == 99:
            raise ValueError("place 99 is taken")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"idd": 1}', "id is missing; there is 'idd'"),
        ('{"id": "x"}', "id must be a whole number, it is 'x'"),
        ('{"id": true}', "id must be a whole number, it is True"),
        ('{"id": 1.5}', "id must be a whole number, it is 1.5"),
        (
            '{"id": 18446744073709551616}',
            "id must be a whole number <= 9223372036854775807, it is 18446744073709551616",
        ),
        ('{"id": 1, "box": [1]}', "box must be a list of length 2, it is [1]"),
        ('{"id": 1, "box": [1, 1e999]}', "box[1] must be a number in range, it is inf"),
        ('{"id": 1, "inner": [[1, 2], [3, {}]]}', "inner[1][1] must be a number, it is {}"),
        ('{"id": 1, "place": 99}', "place 99 is taken"),
        ("[1]", "must be an object, it is list"),
    ],
)
def test_what_a_type_refuses_in_words(text, reason):
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(text, type=Item)
    assert explain(caught.value, msgspec.Raw(text.encode())) == reason


def test_sections_by_id_and_by_parent(tmp_path):
    path = tmp_path / "f.json"
    images = [(5, 1, 9), (3, 1, 2), (4, 7, 0), (3, 1, 1), (12.0, 1, 2), (1 << 70, 0, 0)]
    items = [{"id": number, "owner": owner, "place": place} for number, owner, place in images]
    path.write_text(json.dumps({"images": items, "videos": [{"id": 1}]}))
    problems, file = Problems(strict=False), JsonFile(path, "f.json")
    section = Section(file, "images", Item, Refers("owner", order="place"), problems)
    videos = Section(file, "videos", Item, None, problems)
    assert [value.id for _, value in section.children(1)] == [3, 12, 5]
    assert list(section.children(2)) == []
    assert [value.id for _, value in section] == [3, 4, 5, 12]
    assert len(section) == 4
    assert [(str(where), parent) for where, parent in section.orphans(videos)] == [("images[2] (line 1)", 7)]
    assert section.get(5).place == 9
    assert section.get(6) is None
    assert [line.partition(": ")[2] for line in problems.first] == [
        "images[5] (line 1): id must be a whole number <= 9223372036854775807, it is 1180591620717411303424",
        "images[3] (line 1): id 3 was already used",
    ]
    empty = Section(file, "nothing", Item, Refers("owner"), problems)
    assert (len(empty), list(empty), empty.get(1)) == (0, [], None)


XML = '<a>\n <b n="1"><c>x</c>tail</b>\n <d><b n="2"/></d>\n <b n="3"><b n="4"/></b></a>'


def test_elements_with_their_lines(tmp_path):
    path = tmp_path / "f.xml"
    path.write_text(XML)
    found = list(iter_elements(path, "f.xml", "b"))
    # <b n="4"> comes with the element around it only.
    assert [(node.get("n"), line) for line, node in found] == [("1", 2), ("2", 3), ("3", 4)]
    assert found[0][1].findtext("c") == "x"
    assert len(found[2][1]) == 1


def test_xml_in_small_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_CHUNK", 3)
    path = tmp_path / "f.xml"
    path.write_text(XML)
    found = iter_elements(path, "f.xml", "b")
    assert [(node.get("n"), line) for line, node in found] == [("1", 2), ("2", 3), ("3", 4)]
    path.write_text(BOMB)
    with pytest.raises(MalformedInputError, match=r"f\.xml:2: declares a document type or entities"):
        list(iter_elements(path, "f.xml", "b"))


BOMB = (
    '<?xml version="1.0"?>\n<!DOCTYPE lolz [\n<!ENTITY lol "lol">\n<!ENTITY lol2 "&lol;&lol;&lol;&lol;">\n]>\n'
    "<lolz>&lol2;</lolz>"
)


def test_a_document_type_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "f.xml"
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        path.write_text(BOMB.replace('<?xml version="1.0"?>\n', ""), encoding=encoding)
        with pytest.raises(MalformedInputError, match="declares a document type or entities; refused"):
            list(iter_elements(path, "f.xml", "b"))


def test_xml_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "f.xml"

    def peak(count: int) -> int:
        path.write_text("<a>" + "<b><c n='1'>text</c></b>\n<d>more</d>" * count + "</a>")
        tracemalloc.start()
        assert sum(1 for _ in iter_elements(path, "f.xml", "b")) == count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(10)  # what is allocated once
    assert peak(9000) < 1.2 * peak(3000)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "f.xml:2: declares a document type or entities; refused"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "declares a document type"),
        ("<a><b></a>", "f.xml:1: mismatched tag"),
        ("", "f.xml:1: no element found"),
        ("<a>&undefined;</a>", "undefined entity"),
        ("<a>" * 100, "nested too deeply; refused"),
    ],
)
def test_malformed_xml(tmp_path, text, reason):
    path = tmp_path / "f.xml"
    path.write_text(text)
    with pytest.raises(MalformedInputError, match=reason):
        list(iter_elements(path, "f.xml", "b"))
