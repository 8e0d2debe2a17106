"""``stdetr eval`` of a checkpoint: thinned, rescored, on data it never saw."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from stdetr.config import compose, instantiate
from stdetr.engine import evaluate, train


@pytest.fixture(scope="module")
def trained(compose_tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    train.run(compose_tiny(folder, "trainer.max_steps=2", "trainer.eval_start=0"))
    return folder


def _eval(run: Path, out: Path, *words: str) -> dict[str, Any]:
    evaluate.run(compose("eval", [f"checkpoint={run}", f"output_dir={out}", "device=cpu", *words]))
    return json.loads((out / "eval" / "metrics.json").read_text())


def _other(run: Path, folder: Path, names: list[str]) -> Path:
    """The run's validation data with these class names, ids 11, 12, ..., in reverse order; no other split."""
    from omegaconf import OmegaConf

    root = instantiate(OmegaConf.load(run / "config.yaml").data).root
    document = json.loads((root / "val.json").read_text())
    old = [record["id"] for record in document["categories"]]
    new = dict(zip(old, range(11, 11 + len(old)), strict=True))
    document["categories"] = [{"id": new[i], "name": name} for i, name in zip(old, names, strict=True)][::-1]
    for record in document["annotations"]:
        record["category_id"] = new[record["category_id"]]
    folder.mkdir()
    (folder / "val.json").write_text(json.dumps(document))
    for item in root.iterdir():
        if item.is_dir():
            (folder / item.name).symlink_to(item)
    return folder


def test_thinned_and_rescored(trained: Path, tmp_path: Path) -> None:
    _eval(trained, tmp_path / "thin", "evaluation.thin=[2,3]")
    found = json.loads((tmp_path / "thin/predictions.json").read_text())
    assert len({record["image_id"] for record in found}) == 2 * 2 * 3
    _eval(trained, tmp_path / "joined", "evaluation.thin=[2,3]", "rescore=tracks")
    joined = json.loads((tmp_path / "joined/predictions.json").read_text())
    assert [record["bbox"] for record in joined] == [record["bbox"] for record in found]
    assert [record["score"] for record in joined] != [record["score"] for record in found]
    report = json.loads((tmp_path / "joined/eval/report.json").read_text())
    assert report["sources"]["rescored"] == "tracks"
    assert report["mode"] == "offline"


def test_data_it_never_saw(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["striped disc", "checkered square", "dotted triangle", "ringed star"]

    def predictions(out: str, ids: dict[int, int]) -> list[tuple[Any, ...]]:
        found = json.loads((tmp_path / out / "predictions.json").read_text())
        return [(r["image_id"], ids[r["category_id"]], r["bbox"], r["score"]) for r in found]

    plain = _eval(trained, tmp_path / "plain")
    ids = {number: number for number in range(1, 5)}
    assert {label for _, label, _, _ in predictions("plain", ids)} == set(ids), "the untrained model finds every class"
    # Equal names in another order, with other ids and letters: the same detections of the same classes.
    same = _eval(trained, tmp_path / "same", f"data.root={_other(trained, tmp_path / 'a', [n.title() for n in names])}")
    assert predictions("same", {number + 10: number for number in ids}) == predictions("plain", ids)
    assert same["coco/AP50/Ringed Star"] == plain["coco/AP50/ringed star"]
    # One class is called otherwise: it is left out on both sides.
    names[1] = "cube"
    part = _eval(trained, tmp_path / "part", f"data.root={_other(trained, tmp_path / 'b', names)}")
    assert not any("cube" in key or "square" in key for key in part)
    assert predictions("part", {11: 1, 13: 3, 14: 4}) == [row for row in predictions("plain", ids) if row[1] != 2]
    assert "left out of the data set: cube; of the checkpoint: checkered square" in capsys.readouterr().out
    with pytest.raises(ValueError, match="none has the same name"):
        _eval(trained, tmp_path / "none", f"data.root={_other(trained, tmp_path / 'c', ['p', 'q', 'r', 's'])}")


FILES, COMPARE, RUN = ["annotations=a.json", "predictions=b.json"], ["compare='a,b'"], ["checkpoint=run"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([*FILES, "evaluation.thin=[2,5]"], "evaluation.thin=[2, 5]: eval with predictions=b.json does not use it"),
        ([*FILES, "evaluation.group=scene"], "it belongs to compare=..."),
        ([*FILES, "evaluation.score_threshold=0.9"], "it belongs to checkpoint=..."),
        ([*FILES, "evaluation.stitch.max_gap=3"], "without rescore=tracks"),
        ([*FILES, *RUN], "checkpoint=run: eval with predictions=b.json does not use it"),
        ([*FILES, "data=toy"], "it belongs to checkpoint=..."),
        ([*COMPARE, "seeds=3"], "seeds=3: eval with compare=a,b does not use it; it belongs to predictions=..."),
        ([*COMPARE, "logger=jsonl"], "it belongs to predictions=... and checkpoint=..."),
        ([*RUN, "evaluators=[coco]"], "give evaluation.evaluators"),
        ([*RUN, "evaluation.group=scene"], "it belongs to compare=..."),
        ([*RUN, "bootstrap_draws=5"], "it belongs to compare=..."),
    ],
)
def test_a_key_that_this_way_of_evaluating_does_not_read_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        evaluate.run(compose("eval", words))


@pytest.mark.parametrize("words", [["evaluation.by=[scene]"], ["rescore=tracks", "evaluation.stitch.max_gap=3"]])
def test_keys_that_are_read_reach_the_files(words: list[str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.json"):
        evaluate.run(compose("eval", [*FILES, *words]))
