"""Training: the same weights twice, the same weights after a stop, a clip learned by heart, files of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stdetr import checkpoint
from stdetr.data.loader import ClipLoader
from stdetr.engine import train
from stdetr.engine.evaluation_loop import SplitEvaluator
from stdetr.engine.meter import Meter


def _weights(folder: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / which / "model.safetensors")


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("save_every", "batches", "saved"), [(2, 3, 2), (3, 4, 3), (2, 5, 4)],
    ids=["among single frames", "between the phases", "among clips"],
)  # fmt: skip
def test_one_seed_gives_the_same_weights_twice_and_after_a_stop(
    tiny, tmp_path: Path, save_every: int, batches: int, saved: int
) -> None:
    phases = "trainer.single_frame=3"
    train.run(tiny("a", phases))
    whole = _weights(tmp_path / "a")
    if saved == 2:
        train.run(tiny("b", phases))
        assert _equal(whole, _weights(tmp_path / "b"))
        train.run(tiny("d", phases, "seed=1"))
        assert not _equal(whole, _weights(tmp_path / "d"))

    # The same run, killed after the step that wrote a checkpoint (here: in a later batch), then resumed.
    class StopHere(BaseException):
        """As a kill: nothing is saved on the way out."""

    drawn = 0
    original = ClipLoader.__iter__

    def interrupted(self: ClipLoader):
        nonlocal drawn
        for batch in original(self):
            if drawn == batches:
                raise StopHere
            drawn += 1
            yield batch

    stopped = (phases, f"trainer.save_every={save_every}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipLoader, "__iter__", interrupted)
        with pytest.raises(StopHere):
            train.run(tiny("c", *stopped))
    assert json.loads((tmp_path / "c" / "checkpoints" / "last" / "meta.json").read_text())["step"] == saved
    train.run(tiny("c", *stopped))
    assert _equal(whole, _weights(tmp_path / "c"))
    steps = [json.loads(line)["step"] for line in (tmp_path / "c" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps), "the lines of the lost step are gone"


def test_files_of_a_run(tiny, tmp_path: Path) -> None:
    value = train.run(tiny("run", "trainer.eval_every=3"))
    root = tmp_path / "run"
    assert 0 <= value <= 1
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in trained] == [2, 4, 6]
    for key in ("loss", "class", "box", "giou", "presence", "dense_class", "dn_class", "grad_norm", "lr_main"):
        assert key in trained[0], key
    assert all(0 < line["data_wait"] < 1 for line in trained)
    assert [line["step"] for line in lines if line["split"] == "val"] == [3, 6]
    metrics = json.loads((root / "eval" / "metrics.json").read_text())
    assert {"coco/AP", "coco/AP50", "tube/AP50", "coco/AP50_degraded", "coco/AP50_clean"} <= metrics.keys()
    meta = json.loads((root / "checkpoints" / "best" / "meta.json").read_text())
    assert len(meta["class_names"]) == 4
    predictions = json.loads((root / "predictions.json").read_text())
    assert {"image_id", "category_id", "bbox", "score"} <= predictions[0].keys()
    # A further run on the same folder is refused where the user asked for a fresh one.
    with pytest.raises(ValueError, match="already holds a run"):
        train.run(tiny("run", "resume=null"))


@pytest.mark.slow
def test_one_clip_is_learned_by_heart(tiny, tmp_path: Path) -> None:
    train.run(
        tiny(
            "overfit", "overfit=1", "trainer.max_steps=60", "trainer.log_every=10", "data.train_transforms=[]",
            "trainer.single_frame=0", "model.detector.denoising=null", "optim.lr=3e-3", "optim.schedule=constant",
        )
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "overfit" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["box"] + line["giou"] for line in lines if line["split"] == "train"]
    assert losses[-1] < 0.4 * losses[0]


def test_single_frame_phase_and_accumulation(tiny, tmp_path: Path) -> None:
    train.run(tiny("run", "trainer.single_frame=0.5", "trainer.accumulate=2", "trainer.max_steps=4"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [2, 4]


def test_the_share_of_time_that_data_takes(monkeypatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("stdetr.engine.meter.time.perf_counter", lambda: float(next(now)))
    meter = Meter()  # 0
    seen = [(batch, next(now)) for batch in meter.waiting("ab")]  # a: 1 to 2, its step 3; b: 4 to 5, 6; the end: 7 to 8
    assert [batch for batch, _ in seen] == ["a", "b"]
    assert meter.waited == 3
    assert meter.read()["data_wait"] == 3 / 9
    assert meter.waited == 0


def test_overfitting_takes_the_same_clips_frame_by_frame_first(tiny, tmp_path: Path) -> None:
    train.run(tiny("run", "overfit=1", "trainer.single_frame=1", "trainer.max_steps=2", "trainer.log_every=1"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2]


def test_init_from_takes_weights_over(tiny, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train.run(tiny("first", "trainer.max_steps=2"))
    start = ("seed=1", "trainer.max_steps=1", "optim.lr=1e-9", "optim.weight_decay=0", f"data.seed={tiny().seed}")
    train.run(tiny("second", f"init_from={tmp_path / 'first'}", *start))
    assert "tensors taken over" in capsys.readouterr().out
    train.run(tiny("other", *start))
    first, second, other = (_weights(tmp_path / name) for name in ("first", "second", "other"))
    trained = [name for name in first if first[name].dtype == torch.float32 and "running" not in name]
    # The learning rate is next to nothing, so the weights are still those that the run started from.
    for name in trained:
        torch.testing.assert_close(second[name], first[name], atol=1e-6, rtol=0)
    assert sum((other[name] - first[name]).abs().max() > 1e-3 for name in trained) > len(trained) / 2


def test_init_from_a_checkpoint_of_something_else_is_refused(tiny, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"head.weight": torch.zeros(3, 3)}, file)
    with pytest.raises(ValueError, match=r"init_from=.*no tensor of .* fits the model"):
        train.run(tiny("run", f"init_from={file}"))


def test_a_window_without_encoder_layers_is_refused(tiny) -> None:
    with pytest.raises(ValueError, match=r"model\.window=1 .*model\.encoder_layers=0.*model\.decoder_window"):
        train.run(tiny("run", "model.window=1"))


def test_wrong_monitor_is_refused_before_the_first_step(tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.monitor='coco/APP' is not a metric .*did you mean 'coco/AP'"):
        train.run(tiny("run", "trainer.monitor=coco/APP"))
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(ValueError, match=r"trainer\.keep=-1"):
        train.run(tiny("run", "trainer.keep=-1"))


def _records(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timing = ("frames_per_second", "clips_per_second", "data_wait")
    return [{key: value for key, value in line.items() if key not in timing} for line in lines]


def test_a_stop_after_saving_or_evaluating_and_a_damaged_state_change_nothing(tiny, tmp_path: Path) -> None:
    settings = ("trainer.max_steps=4", "trainer.eval_every=2", "trainer.log_every=1")
    train.run(tiny("a", *settings))
    whole, best, records = _weights(tmp_path / "a"), _weights(tmp_path / "a", "best"), _records(tmp_path / "a")
    assert [line["step"] for line in records if line["split"] == "val"] == [2, 4]

    def stops(*arguments: object, **named: object) -> None:
        raise RuntimeError("stopped")

    # Before the evaluation of step 2, after it was recorded, and again before it: the state of step 2 is there.
    last = tmp_path / "b" / "checkpoints" / "last"
    for where in ((SplitEvaluator, "__call__"), (checkpoint, "amend"), (SplitEvaluator, "__call__")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*where, stops)
            with pytest.raises(RuntimeError, match="stopped"):
                train.run(tiny("b", *settings))
        assert checkpoint.read_meta(last)["step"] == 2
        assert checkpoint.read_meta(last)["evaluated"] == 0
    train.run(tiny("c", *settings, f"resume={tmp_path / 'b'}"))
    train.run(tiny("b", *settings))
    assert _records(tmp_path / "b") == records
    for name in ("b", "c"):
        assert _equal(whole, _weights(tmp_path / name))
        assert _equal(best, _weights(tmp_path / name, "best"))
    after = [line for line in records if line["step"] > 2 or line["split"] != "train"]
    assert _records(tmp_path / "c") == after
    train.run(tiny("b", *settings))
    assert _records(tmp_path / "b") == records, "a finished run does nothing"

    state = last / "state" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged .*resume=\S*last\.2 goes on from step 2"):
        train.run(tiny("b", *settings))
    train.run(tiny("b", *settings, f"resume={last.with_name('last.2')}"))
    assert _equal(whole, _weights(tmp_path / "b"))
    assert _records(tmp_path / "b") == records
    assert sorted(path.name for path in last.parent.iterdir()) == ["best", "last", "last.2"]


def test_resume_from_nowhere_is_refused(tiny, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no state"):
        train.run(tiny("run", f"resume={tmp_path / 'nowhere'}"))


def test_runs_that_fork_from_a_stopped_one_share_everything_before(tiny, tmp_path: Path) -> None:
    phases = ("trainer.single_frame=3", "trainer.log_every=1")
    train.run(tiny("whole", *phases))
    train.run(tiny("base", *phases, "trainer.stop_at=3"))
    assert checkpoint.read_meta(tmp_path / "base/checkpoints/last")["step"] == 3
    assert [line["step"] for line in _records(tmp_path / "base")] == [1, 2, 3], "no evaluation where a run stops"
    train.run(tiny("clip", *phases, f"resume={tmp_path / 'base'}"))
    assert _equal(_weights(tmp_path / "whole"), _weights(tmp_path / "clip"))
    # The twin goes on with single frames, as many per step: the same schedule, other batches.
    train.run(tiny("twin", *phases, f"resume={tmp_path / 'base'}", "data.frames=1", "data.loader.batch_size=6",
                   "resume_with=[data.frames,data.loader.batch_size]"))  # fmt: skip
    assert not _equal(_weights(tmp_path / "whole"), _weights(tmp_path / "twin"))
    rates = [[line["lr_main"] for line in _records(tmp_path / name) if line["split"] == "train"] for name in
             ("whole", "clip", "twin")]  # fmt: skip
    assert rates[1] == rates[2] == rates[0][3:]
    train.run(tiny("base", *phases))
    assert _equal(_weights(tmp_path / "whole"), _weights(tmp_path / "base")), "the stopped run itself goes on, too"
    with pytest.raises(ValueError, match=r"trainer.stop_at=6 must lie between 1 and trainer.max_steps=6"):
        train.run(tiny("base", *phases, "trainer.stop_at=6"))


def test_evaluations_before_the_last_are_thinned(tiny, tmp_path: Path) -> None:
    train.run(tiny("run", "evaluation.thin=[1,3]", "trainer.eval_every=3", "trainer.thin_final=true"))
    scored = tmp_path / "run/eval/val-1x3.json"
    frames = [image["frame_id"] for image in json.loads(scored.read_text())["images"]]
    assert frames == [2, 3, 4] * 2  # the middle of 8 frames
    images = {image["id"] for image in json.loads(scored.read_text())["images"]}
    assert {found["image_id"] for found in json.loads((tmp_path / "run/predictions.json").read_text())} <= images
    report = json.loads((tmp_path / "run/eval/report.json").read_text())
    assert report["sources"]["annotations"] == str(scored)
    train.run(tiny("run", "evaluation.thin=[1,3]", "trainer.eval_every=3", "trainer.max_steps=9",
                   "resume_with=[trainer.max_steps,trainer.thin_final]"))  # fmt: skip
    assert len({found["image_id"] for found in json.loads((tmp_path / "run/predictions.json").read_text())}) == 16
    with pytest.raises(ValueError, match=r"thin=\[2, 4\]: windows of 4 frames cannot be cut into clips of 3"):
        train.run(tiny("other", "evaluation.thin=[2,4]"))
    with pytest.raises(ValueError, match=r"thin=\[2\] must be \[windows,frames\]"):
        train.run(tiny("other", "evaluation.thin=[2]"))
