"""What every converter writes, byte for byte, against the record."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from test_trains import (  # noqa: F401 - fixtures are found by their names
    SOURCES,
    argoverse_source,
    bdd_source,
    coco_source,
    cvat_source,
    dancetrack_source,
    detrac_source,
    epic_source,
    ilsvrc,
    lvvis_source,
    mot_source,
    ovis_source,
    tao_source,
    videos_source,
    visdrone_source,
    ytvis_source,
)

from stdetr.cli import main


def test_outputs_on_record(tmp_path: Path, request: pytest.FixtureRequest, golden: Any) -> None:
    written: dict[str, dict[str, str]] = {}
    for format, (fixture, _) in SOURCES.items():
        source: Path = request.getfixturevalue(fixture)
        output = tmp_path / "out" / format
        assert main(["data", "action=convert", f"format={format}", f"source={source}", f"output={output}"]) == 0
        written[format] = {
            path.name: hashlib.sha256(path.read_bytes().replace(str(tmp_path).encode(), b"TMP")).hexdigest()[:16]
            for path in sorted(output.glob("*.json"))
        }
    assert written == golden("converters", written)
