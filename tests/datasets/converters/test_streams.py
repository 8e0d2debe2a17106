"""JSON and XML read record by record, and records kept on disk."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from stdetr.datasets.converters import json_stream, xml_stream
from stdetr.datasets.converters.json_stream import iter_records
from stdetr.datasets.converters.problems import MalformedField, MalformedInputError
from stdetr.datasets.converters.record_store import RecordStore
from stdetr.datasets.converters.xml_stream import iter_elements


def records(path):
    return [(r.section, r.index, r.line, r.value) for r in iter_records(path, "f.json")]


DOCUMENT = (
    '{"info": {"a": [1, 2]},\n "images": [{"id": 1},\n  {"id": 22, "t": "\\"]}"}, 333],\n"empty": [], "n": null}\n'
)
EXPECTED = [
    ("info", None, 1, {"a": [1, 2]}),
    ("images", 0, 2, {"id": 1}),
    ("images", 1, 3, {"id": 22, "t": '"]}'}),
    ("images", 2, 3, 333),
    ("empty", None, 4, []),
    ("n", None, 4, None),
]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
def test_records_do_not_depend_on_how_much_is_read_at_once(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    path = tmp_path / "f.json"
    path.write_text(DOCUMENT, encoding="utf-8-sig")
    assert records(path) == EXPECTED
    path.write_text("[1, 23, [4], 5.5e3]")
    assert [r[3] for r in records(path)] == [1, 23, [4], 5500.0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "f.json: the file is empty"),
        ("  \n", "f.json: the file is empty"),
        ("3", "f.json:1: a JSON object or list was expected"),
        ('{"a": [1, 2', "f.json:1: the file ends where"),
        ('{"a": [1,\n 2,\n nope]}', "f.json:3: Expecting value"),
        ('{"a": [1]} x', "text after the end of the document"),
        ('{"a": [NaN]}', "NaN is not JSON"),
        ('{"a" 1}', "':' was expected, '1' found"),
        ("{3: 1}", "a key in double quotes was expected"),
        ('{"a": ["unfinished]}', "Unterminated string"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
@pytest.mark.parametrize("chunk", [5, 1 << 20])
def test_malformed_json(tmp_path, monkeypatch, text, reason, chunk):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(MalformedInputError, match=reason):
        records(path)


def test_a_binary_file_is_no_json(tmp_path):
    (tmp_path / "f.json").write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(MalformedInputError, match=r"f.json: not a text file"):
        records(tmp_path / "f.json")


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", 1 << 16)
    path = tmp_path / "f.json"
    record = {"id": 1, "segmentation": list(range(200))}

    def peak(count: int) -> int:
        with path.open("w") as stream:
            stream.write('{"annotations": [' + ",".join([json.dumps(record)] * count) + "]}")
        tracemalloc.start()
        assert sum(1 for _ in iter_records(path, "f.json")) == count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    # 1.8 MB and 5.5 MB of text.
    assert peak(6000) < 1.2 * peak(2000)


XML = '<a>\n <b n="1"><c>x</c>tail</b>\n <d><b n="2"/></d>\n <b n="3"><b n="4"/></b></a>'


def test_elements_with_their_lines(tmp_path):
    path = tmp_path / "f.xml"
    path.write_text(XML)
    found = list(iter_elements(path, "f.xml", frozenset({"b"})))
    # <b n="4"> comes with the element around it only.
    assert [(e.node.get("n"), e.line) for e in found] == [("1", 2), ("2", 3), ("3", 4)]
    assert found[0].node.findtext("c") == "x"
    assert len(found[2].node) == 1


def test_xml_in_small_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(xml_stream, "_CHUNK", 3)
    path = tmp_path / "f.xml"
    path.write_text(XML)
    assert [e.node.get("n") for e in iter_elements(path, "f.xml", frozenset({"b"}))] == ["1", "2", "3"]


BOMB = (
    '<?xml version="1.0"?>\n<!DOCTYPE lolz [\n<!ENTITY lol "lol">\n<!ENTITY lol2 "&lol;&lol;&lol;&lol;">\n]>\n'
    "<lolz>&lol2;</lolz>"
)


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
        list(iter_elements(path, "f.xml", frozenset({"b"})))


def test_record_store(tmp_path):
    store = RecordStore(tmp_path / "r.sqlite")
    store.add("images", 5, 1, 9, "images[0]", {"f": 9})
    store.add("images", 3, 1, 2, "images[1]", {"f": 2})
    store.add("images", 4, 7, 0, "images[2]", {})
    store.add("videos", 1, 0, 0, "videos[0]", {})
    assert [r.id for r in store.children("images", 1)] == [3, 5]
    assert [r.id for r in store.all("images")] == [3, 4, 5]
    assert [r.where for r in store.orphans("images", "videos")] == ["images[2]"]
    assert [r.id for r in store.orphans("videos", "nothing")] == [1]
    assert store.count("images") == 3
    assert store.count("nothing") == 0
    assert store.has("videos", 1)
    assert not store.has("videos", 2)
    assert store.get("images", 8) is None
    with pytest.raises(MalformedField, match="id 3 was already used"):
        store.add("images", 3, 1, 0, "images[3]", {})
    with pytest.raises(MalformedField, match="does not fit 64 bits"):
        store.add("images", 1 << 70, 1, 0, "images[3]", {})
