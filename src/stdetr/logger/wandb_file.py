"""What the file of a W&B run holds, which W&B has no reader for: after a kill, that is all that it knows of the run."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7


def read_history(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of the history in ``run-<id>.wandb``, the name of each value with its JSON; media are descriptions.

    The file is LevelDB's log format behind a 7-byte header: blocks of 32 KiB, each fragment with a checksum (4 bytes),
    a length (2) and a kind (full 1, first 2, middle 3, last 4); a record is one serialised protobuf message.  What a
    kill cut off is left out.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    data, position, parts = file.read_bytes(), HEADER, b""
    while position + HEADER <= len(data):
        if (left := BLOCK - position % BLOCK) < HEADER:  # a fragment's header never crosses a block
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        if kind == 0 or position + HEADER + length > len(data):
            return
        parts += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind not in (1, 4):
            continue
        record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        try:
            record.ParseFromString(parts)
        except DecodeError:
            return
        parts = b""
        if record.HasField("history"):
            yield {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
