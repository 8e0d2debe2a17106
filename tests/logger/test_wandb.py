"""W&B without an account: the offline run is written and read back from its own file."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from stdetr.logger import JsonlLogger, LoggerGroup, Table, WandbLogger, git_revision
from stdetr.logger.wandb import has_account, resolve_mode, sweep_of


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def records(folder: Path) -> Iterator[Any]:
    """The records of an offline run's ``.wandb`` file.

    The file is LevelDB's log format behind a 7-byte header: blocks of 32 KiB, each fragment with a checksum (4 bytes),
    a length (2) and a kind (full 1, first 2, middle 3, last 4); a record is one serialised protobuf message.
    """
    from wandb.proto import wandb_internal_pb2

    data = _finished_file(folder)
    assert data[:4] == b":W&B"
    position, parts = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:  # a header never crosses a block
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def _finished_file(folder: Path) -> bytes:
    """W&B's own process writes the file, and on a busy machine still does when ``finish`` has returned."""
    size, until = -1, time.monotonic() + 60
    while time.monotonic() < until:
        found = next(folder.glob("*.wandb"), None)
        now = -1 if found is None else found.stat().st_size
        if found is not None and now == size > 7:
            return found.read_bytes()
        size = now
        time.sleep(0.5)
    raise AssertionError(f"{folder} holds no finished .wandb file: {[path.name for path in folder.iterdir()]}")


def write_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for value in (0, 80, 160):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), value, np.uint8))))
        container.mux(stream.encode())


def test_offline_run_is_read_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # W&B writes another sequence of records where it finds CI; what matters here is the run of a user.
    monkeypatch.delenv("CI", raising=False)
    run_dir = tmp_path / "sweep" / "0"
    run_dir.mkdir(parents=True)
    (tmp_path / "sweep" / "multirun.yaml").write_text("{}")
    image, video, weights = run_dir / "sampling.png", run_dir / "overlay.mp4", run_dir / "model.safetensors"
    Image.new("RGB", (32, 24), (200, 30, 30)).save(image)
    write_video(video)
    weights.write_bytes(b"weights")
    config = OmegaConf.create({"optim": {"lr": 1e-4}, "twice": "${optim.lr}", "seed": 7})

    logger = WandbLogger(run_dir, mode="auto", tags=("toy",))
    logger.start(config)
    logger.log(10, "train", {"loss": 1.25, "skipped": float("nan")})
    logger.log(5, "val", {"coco/AP50": 0.75})  # a late record is kept: the x axis is trainer/step
    logger.log_media(10, "sampling", image)
    logger.log_media(10, "overlay", video)
    logger.log_table(10, "per_class", Table(("class", "AP"), (("cat", 0.5),)))
    logger.log_artifact("checkpoint", weights, aliases=("best",))
    run_id, place = logger.run_id, json.loads(logger.run_file.read_text())
    logger.finish(exit_code=1)

    assert (place["mode"], place["url"]) == ("offline", None)
    folder = logger.root / place["folder"]
    assert folder.name.startswith("offline-run-")
    everything = list(records(folder))
    run = next(record.run for record in everything if record.HasField("run"))
    kept = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (run.run_id, run.project, run.run_group, list(run.tags)) == (run_id, "stdetr", "sweep", ["toy"])
    assert kept["optim"] == {"lr": 1e-4}
    assert (kept["twice"], kept["seed"]) == (1e-4, 7)
    assert "commit" in kept

    history = []
    for record in everything:
        if record.HasField("history"):
            item = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
            history.append(item)
    scalars = [{k: v for k, v in item.items() if k.startswith(("train", "val"))} for item in history]
    assert {"train/loss": 1.25, "trainer/step": 10} in scalars
    assert {"val/coco/AP50": 0.75, "trainer/step": 5} in scalars
    kinds = [
        (key.rsplit("/", 1)[0], value) for item in history for key, value in item.items() if key.endswith("/_type")
    ]
    assert dict(kinds) == {
        "media/sampling": "image-file",
        "media/overlay": "video-file",
        "table/per_class": "table-file",
    }
    copied = [path for path in (folder / "files" / "media").rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in copied) == [".json", ".mp4", ".png"]

    globs = {r.metric.glob_name: r.metric.step_metric for r in everything if r.HasField("metric")}
    assert globs["train/*"] == globs["val/*"] == "trainer/step"
    artifacts = [r.request.log_artifact.artifact for r in everything if r.HasField("request")]
    artifacts += [record.artifact for record in everything if record.HasField("artifact")]
    assert {a.name: set(a.aliases) for a in artifacts}[f"checkpoint-{run_id}"] == {"best", "latest"}
    assert [record.exit.exit_code for record in everything if record.HasField("exit")] == [1]

    quiet = capfd.readouterr()
    assert (quiet.out, quiet.err) == ("", "")

    again = WandbLogger(run_dir, mode="offline")
    again.start(config, step=10)
    resumed_id = again.run_id
    again.finish()
    assert resumed_id == run_id


def test_disabled_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = WandbLogger(tmp_path / "run")
    logger.start({"a": 1})
    logger.log(1, "train", {"loss": 1.0})
    logger.log_media(1, "x", tmp_path / "missing.png")
    logger.finish()
    assert not (tmp_path / "run").exists()
    assert logger.run_id is None


def test_missing_config_value_is_an_error(tmp_path: Path):
    with pytest.raises(Exception, match="Missing mandatory value: seed"):
        WandbLogger(tmp_path, mode="offline").start(OmegaConf.create({"seed": "???"}))


def test_mode_auto_depends_on_the_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert not has_account()
    assert resolve_mode("auto") == "offline"
    with pytest.raises(ValueError, match="needs a W&B account"):
        resolve_mode("online")
    (tmp_path / "netrc").write_text("machine example.org login user password x\n")
    assert resolve_mode("auto") == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert resolve_mode("auto") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert resolve_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolve_mode("auto") == "disabled"
    assert resolve_mode("offline") == "offline"  # an explicit mode beats the environment


def test_unknown_mode_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"logger.wandb.mode='of' is not one of auto, online, offline, disabled"):
        WandbLogger(tmp_path, mode="of")  # pyright: ignore[reportArgumentType]


def test_group_is_the_sweep_folder(tmp_path: Path):
    assert sweep_of(tmp_path / "runs" / "a") is None
    (tmp_path / "2026-01-01").mkdir()
    (tmp_path / "2026-01-01" / "multirun.yaml").write_text("{}")
    assert sweep_of(tmp_path / "2026-01-01" / "3") == "2026-01-01"
    assert WandbLogger(tmp_path / "2026-01-01" / "3", group="mine").group == "mine"


def test_the_revision_is_the_commit_of_files_under_version_control(tmp_path: Path):
    def git(*words: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    assert git_revision(tmp_path) is None
    git("init", "-q")
    (tmp_path / "env").mkdir()
    for name in (".gitignore", "code.py", "env/installed.py"):
        (tmp_path / name).write_text("env\n")
    git("add", ".")
    git("commit", "-qm", "first")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD")
    assert git_revision(tmp_path) == commit
    assert git_revision(tmp_path / "env") is None  # ignored: the commit says nothing about it
    (tmp_path / "code.py").write_text("changed\n")
    assert git_revision(tmp_path) == f"{commit}-dirty"


UNUSABLE = """
import http.server, json, os, sys, threading
from pathlib import Path

class Unauthorised(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b'{"errors":[{"message":"user is not logged in"}]}')
    do_GET = do_POST
    def log_message(self, *arguments):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Unauthorised)
if sys.argv[1] == "wrong key":
    threading.Thread(target=server.serve_forever, daemon=True).start()
else:
    server.server_close()
os.environ.update(WANDB_BASE_URL=f"http://127.0.0.1:{server.server_port}", WANDB_API_KEY="a" * 40)
import wandb
from stdetr.logger import WandbLogger
settings = wandb.Settings
wandb.Settings = lambda **named: settings(**named, init_timeout=4)
wandb.Settings.model_fields = settings.model_fields
root = Path(sys.argv[2])
try:
    WandbLogger(root / "online", mode="online").start({})
except ValueError as error:
    print("refused:", str(error).count("\\n"), error)
logger = WandbLogger(root / "auto")
logger.start({})
logger.log(1, "train", {"loss": 2.0})
logger.finish()
"""


@pytest.mark.parametrize("why", ["wrong key", "no network"])
def test_a_server_that_cannot_be_used(why: str, tmp_path: Path) -> None:
    """In a process of its own, since W&B reads its environment once."""
    command = [sys.executable, "-c", UNUSABLE, why, str(tmp_path)]
    # Not the service of the tests before.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "refused: 0 logger.wandb.mode=online: W&B does not start (" in done.stdout
    assert "); use mode=offline or logger=jsonl" in done.stdout
    assert "W&B cannot be used (" in done.stderr
    assert "recorded offline" in done.stderr
    folder = tmp_path / "auto" / json.loads((tmp_path / "auto" / "wandb_run.json").read_text())["folder"]
    assert folder.name.startswith("offline-run-")
    assert {"train/loss": 2.0, "trainer/step": 1} in history(folder)


def history(folder: Path) -> list[dict[str, Any]]:
    items = [record.history.item for record in records(folder) if record.HasField("history")]
    rows = [{(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in item} for item in items]
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def test_wandb_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"logger=wandb needs W&B .*pip install wandb, or logger=jsonl"):
        WandbLogger(tmp_path).start({})


def test_a_failure_of_wandb_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = WandbLogger(tmp_path, mode="offline")
    logger.start({})
    run = logger._run

    def fails(values: object) -> None:
        raise BrokenPipeError("the service is gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "log", fails)
        for step in (1, 2):
            logger.log(step, "train", {"loss": 1.0})
    logger.finish()
    run.finish()
    assert capsys.readouterr().err.count("W&B failed (the service is gone): the run goes on with metrics.jsonl") == 1


def test_every_record_is_in_wandb_once_however_often_the_run_is_killed(tmp_path: Path) -> None:
    """Killed after step 4 and its evaluation, resumed from the checkpoint of step 2, then of step 4."""
    losses = [(step, "train", {"loss": step / 10}) for step in range(1, 6)]
    value, table = (4, "val", {"AP": 0.5}), Table(("class", "AP"), (("cat", 0.5),))

    def part(step: int | None, sends: list[tuple[int, str, dict[str, float]]], config: dict) -> Path:
        group = LoggerGroup(jsonl=JsonlLogger(tmp_path), wandb=WandbLogger(tmp_path, mode="offline"))
        group.start(config, step=step, evaluated=False)
        for record in sends:
            group.log(*record)
            if record == value:
                group.log_table(4, "val/per_class", table)
        folder = tmp_path / json.loads((tmp_path / "wandb_run.json").read_text())["folder"]
        group.finish()
        _finished_file(folder)
        time.sleep(1.1)  # the names of folders count seconds
        return folder

    first = part(None, [*losses[:4], value], {"lr": 1})
    assert len(history(first)) == 6
    again = part(2, [*losses[2:4], value], {"lr": 1})
    assert [row for row in history(again) if row] == []
    # The kill kept W&B from writing the first part.
    (file,) = first.glob("*.wandb")
    whole = file.read_bytes()
    file.write_bytes(whole[:7])
    third = part(4, [value, losses[4]], {"lr": 1})
    assert [row["trainer/step"] for row in history(third) if row] == [1, 2, 3, 4, 4, 4, 5]
    # Another configuration computes other values: only what came before is known.
    file.write_bytes(whole)
    other = part(2, [*losses[2:4], value], {"lr": 2})
    assert [row["trainer/step"] for row in history(other) if row] == [3, 4, 4, 4]
    file.write_bytes(whole[:-5])  # cut short
    part(2, [], {"lr": 2})
    (tmp_path / "wandb_run.json").write_text("{")
    with pytest.raises(ValueError, match=r"wandb_run\.json is damaged"):
        WandbLogger(tmp_path, mode="offline").start({}, step=4)
