"""A run is what its configuration says: what may differ when it resumes, forks of runs, classes in another order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from stdetr import checkpoint
from stdetr.class_names import ClassNames
from stdetr.config import instantiate
from stdetr.data.loader import ClipLoader
from stdetr.engine import resume, train
from stdetr.engine.average import WeightAverage
from stdetr.engine.meter import Meter
from stdetr.engine.optim import Optimisation
from stdetr.engine.state import RunState

SHORT = ("trainer.max_steps=3", "trainer.log_every=1", "trainer.threads=1")


def weights(folder: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / which / "model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def stop_after(batches: int, run: Any) -> None:
    """Run until that many batches were drawn, and no further."""

    class Stop(Exception):  # noqa: N818
        pass

    drawn, original = 0, ClipLoader.__iter__

    def interrupted(self: ClipLoader):
        nonlocal drawn
        for batch in original(self):
            if self.batch_sampler.__class__.__name__ == "EpochBatches":
                if drawn == batches:
                    raise Stop
                drawn += 1
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipLoader, "__iter__", interrupted)
        with pytest.raises(Stop):
            run()


@pytest.fixture(scope="module")
def stopped(compose_tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps that stopped after the second; nothing was evaluated."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    stop_after(2, lambda: train.run(compose_tiny(folder, *SHORT, "trainer.save_every=1")))
    assert checkpoint.read_meta(folder / "checkpoints" / "last")["step"] == 2
    return folder


@pytest.fixture
def own(stopped: Path, tmp_path: Path) -> Path:
    """A copy of the stopped run."""
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["optim.lr=0.001"], r"trained with optim\.lr=\S+ \(now 0\.001\); .*'resume_with=\[optim\.lr\]'"),
        (["seed=7"], r"trained with seed=0 \(now 7\); .*'resume_with=\[seed\]'"),  # data.seed: ${seed} follows
        (["data.frames=2"], r"trained with data\.frames=3 \(now 2\); "),
        (["optim.lr=0.001", "model.dropout=0.5", "resume_with=[optim]"], r"dropout=0\.0 \(now 0\.5\).*optim,model"),
        (["data.train_transforms=[]"], r"data\.train_transforms=\[\{.*\.\.\. \(now \[\]\)"),
        (["model.detector.denoising=null"], r"model\.detector\.denoising=.* \(now null\)"),
        (["+trainer.extra=1"], r"trainer\.extra=\(absent\) \(now 1\)"),
        (["resume_with=[optim.lrr]"], r"resume_with=optim\.lrr: no such key; did you mean 'optim\.lr'"),
    ],
)  # fmt: skip
def test_other_values_are_refused_in_one_line(tiny, own: Path, overrides: list[str], told: str) -> None:
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=told) as raised:
        train.run(tiny("run", *SHORT, "trainer.save_every=1", *overrides))
    assert "\n" not in str(raised.value)
    assert before == {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}


def test_free_keys_exist_and_change_nothing_learned(tiny, own: Path, stopped: Path, tmp_path: Path) -> None:
    cfg = tiny("run", *SHORT)
    later = ("trust", "trainer.max_skips")  # keys that the configuration may not have
    assert [key for key in resume.FREE if key not in later and OmegaConf.select(cfg, key, default="?") == "?"] == []
    moved = shutil.copytree(stopped, tmp_path / "moved")
    train.run(tiny("run", *SHORT, "trainer.save_every=1"))
    train.run(
        tiny(
            "moved", *SHORT, "trainer.eval_every=1", "trainer.keep=4", "trainer.save_every=2", "logger=none",
            "data.cache=none", "data.loader.prefetch=3", "data.loader.eval_batch_size=1",
        )
    )  # fmt: skip
    assert equal(weights(own), weights(moved))
    assert OmegaConf.load(moved / "config.yaml").trainer.keep == 4


def test_a_named_value_is_taken_from_that_step_on(tiny, own: Path, capsys: pytest.CaptureFixture) -> None:
    before = (own / "config.yaml").read_text()
    old_rate = OmegaConf.load(own / "config.yaml").optim.lr
    changed = (*SHORT, "trainer.save_every=1", "optim.lr=1e-9", "optim.weight_decay=0", "resume_with=[optim]")
    start = load_file(own / "checkpoints" / "last" / "state" / "state.safetensors")
    train.run(tiny("run", *changed))
    out = capsys.readouterr().out
    assert "resuming" in out
    assert f"from here on: optim.lr={old_rate} (now 1e-09), optim.weight_decay=0.0001 (now 0)" in out
    now = load_file(own / "checkpoints" / "last" / "state" / "state.safetensors")
    statistics = ("running", "num_batches")
    for name in (n for n in now if n.startswith("model.") and not any(part in n for part in statistics)):
        torch.testing.assert_close(now[name].float(), start[name].float(), atol=1e-7, rtol=0)
    # The configuration before is kept, the change is in the log and in the checkpoint, the same command goes on.
    assert (own / "config.2.yaml").read_text() == before
    assert OmegaConf.load(own / "config.yaml").optim.lr == 1e-9
    assert OmegaConf.load(own / "checkpoints" / "last" / "config.yaml").optim.lr == 1e-9
    records = [json.loads(line) for line in (own / "metrics.jsonl").read_text().splitlines()]
    (table,) = [line["config_changes"] for line in records if "config_changes" in line]
    assert table["rows"][0] == ["optim.lr", str(old_rate), "1e-09"]
    (entry,) = checkpoint.read_meta(own / "checkpoints" / "last")["history"]
    assert entry["step"] == 2
    assert entry["changes"]["optim.lr"] == [old_rate, 1e-9]
    train.run(tiny("run", *changed))
    # A finished run cannot be turned into one of another configuration.
    files = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"is at step 3 of trainer\.max_steps=3: no step is left with optim\.lr=1e-09"):
        train.run(tiny("run", *changed, "optim.lr=0.5"))
    assert files == {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}


def test_the_exact_state_is_forked(tiny, own: Path, tmp_path: Path) -> None:
    """Clips of other length from step 2 on: step, moments, averages and schedule are those of the parent."""
    last = own / "checkpoints" / "last"
    fork = (
        *SHORT, "trainer.max_steps=5", "data.frames=2", "data.loader.batch_size=3", f"resume={own}",
        "resume_with=[data.frames,data.loader.batch_size,trainer.max_steps]",
    )  # fmt: skip
    cfg = tiny("fork", *fork)
    start = resume.find(cfg, train.RunPaths(tmp_path / "fork"))
    assert start is not None
    assert (start.folder, start.step) == (last, 2)
    assert start.changes == {
        "data.frames": (3, 2), "data.loader.batch_size": (2, 3), "trainer.max_steps": (3, 5)
    }  # fmt: skip

    cfg.model.classes = 4
    torch.manual_seed(5)  # other weights, which are all replaced
    model, optim = instantiate(cfg.model.detector), instantiate(cfg.optim)
    state = RunState(model, optim.optimizer(model), WeightAverage(model, 0.9), Meter())
    state.read(last)
    stored, averaged = load_file(last / "state" / "state.safetensors"), load_file(last / "model.safetensors")
    assert equal({f"model.{name}": x for name, x in model.state_dict().items()},
                 {name: x for name, x in stored.items() if name.startswith("model.")})  # fmt: skip
    assert equal(dict(state.shown.state_dict()), averaged)
    moments = 0
    for name, parameter in model.named_parameters():
        for key, value in state.optimizer.state[parameter].items():
            assert torch.equal(value, stored[f"optimizer.{name}.{key}"])
            moments += 1
    assert moments == 3 * len([name for name in stored if name.endswith(".exp_avg")]) > 300
    assert (state.progress.step, state.average.step if state.average else None) == (2, 2)

    rates = []
    with pytest.MonkeyPatch.context() as patch:
        original = Optimisation.set_rates

        def recorded(self: Optimisation, optimizer: Any, step: int, max_steps: int) -> None:
            original(self, optimizer, step, max_steps)
            rate = next(group["lr"] for group in optimizer.param_groups if group["name"] == "main")
            rates.append((step, max_steps, rate))

        patch.setattr(Optimisation, "set_rates", recorded)
        stop_after(1, lambda: train.run(tiny("fork", *fork, "trainer.save_every=1")))
        lr = float(cfg.optim.lr)
        assert rates == [(step, 5, lr * optim.factor(step, 5)) for step in (2, 3)]
        # The same command again, as after a requeue, goes on with the fork.
        train.run(tiny("fork", *fork, "trainer.save_every=1"))
    assert [step for step, _, _ in rates] == [2, 3, 3, 4, 5]
    meta = checkpoint.read_meta(tmp_path / "fork" / "checkpoints" / "last")
    assert [(entry["checkpoint"], entry["step"]) for entry in meta["history"]] == [(str(last), 2)]
    assert not equal(weights(own), weights(tmp_path / "fork"))
    assert checkpoint.read_meta(last)["step"] == 2, "the parent is untouched"

    other = shutil.copytree(own, tmp_path / "other")
    with pytest.raises(ValueError, match=r"fork already holds a run, which does not come from resume=.*other.*last"):
        train.run(tiny("fork", *SHORT, f"resume={other}"))
    with pytest.raises(ValueError, match=r"is at step 2 of trainer\.max_steps=2: no step is left"):
        train.run(tiny("new", *SHORT, "trainer.max_steps=2", f"resume={own}", "resume_with=[trainer.max_steps]"))
    with pytest.raises(ValueError, match=r"state does not fit this run: .*other shape .*init_from"):
        train.run(tiny("wide", *SHORT, "model.feed_forward=64", f"resume={own}", "resume_with=[model]"))


def test_other_annotations_are_refused(own: Path, tiny) -> None:
    start = resume.find(tiny("run", *SHORT), train.RunPaths(own))
    assert start is not None
    known = start.meta["annotations"]
    assert start.with_annotations(known) is start
    with pytest.raises(ValueError, match=r"other annotations than data\.train has now .*'resume_with=\[data\.train\]'"):
        start.with_annotations("0" * 64)
    named = resume.find(tiny("run", *SHORT, "resume_with=[data]"), train.RunPaths(own))
    assert named is not None
    assert named.with_annotations("0" * 64).changed("data")


def reordered(source: Path, target: Path, order: list[int]) -> Path:
    """A copy of the benchmark whose categories have other ids, so that they come in another order."""
    shutil.copytree(source, target)
    for file in target.glob("*.json"):
        content = json.loads(file.read_text())
        if "categories" not in content:
            continue
        ids = {category["id"]: 10 + order.index(i) for i, category in enumerate(content["categories"])}
        for category in content["categories"]:
            category["id"] = ids[category["id"]]
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[annotation["category_id"]]
        file.write_text(json.dumps(content))
    return target


def test_classes_in_another_order_are_matched_by_name(tiny, own: Path, toy_root: Path, tmp_path: Path) -> None:
    source = next(path.parent for path in toy_root.rglob("train.json"))
    order = [2, 0, 3, 1]
    roots = {"run": Path(shutil.copytree(source, tmp_path / "same")), "other": tmp_path / "reordered"}
    reordered(source, roots["other"], order)
    shutil.copytree(own, tmp_path / "other")
    losses, names = {}, {}
    for name, root in roots.items():
        words = ("data.benchmark=null", f"data.root={root}", "resume_with=[data.train,data.benchmark]")
        train.run(tiny(name, *SHORT, *words))
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = next(line for line in lines if line["split"] == "train" and line["step"] == 3)
        names[name] = checkpoint.read_meta(tmp_path / name / "checkpoints" / "last")["class_names"]
    assert names["other"] == [names["run"][i] for i in order]
    # The loss of the next step, on the same clips.  Denoising draws wrong labels by number.
    for term in ("class", "frame_class", "dense_class", "box", "giou", "presence"):
        assert losses["other"][term] == pytest.approx(losses["run"][term], rel=1e-5), term


def test_moments_and_averages_are_sorted_with_their_classes(tiny, own: Path) -> None:
    cfg = tiny("run", *SHORT)
    cfg.model.classes = 4
    states = []
    for order in (None, [2, 0, 3, 1]):
        model, optim = instantiate(cfg.model.detector), instantiate(cfg.optim)
        states.append(RunState(model, optim.optimizer(model), WeightAverage(model, 0.9), Meter()))
        states[-1].read(own / "checkpoints" / "last")
        if order is not None:
            states[-1].permute_classes(order)
    before, after = states
    heads = checkpoint.class_tensors(before.model)
    for a, b in ((before.model, after.model), (before.shown, after.shown)):
        for name, x in a.state_dict().items():
            assert torch.equal(b.state_dict()[name], x[[2, 0, 3, 1]] if name in heads else x), name
    pairs = zip(before.model.named_parameters(), after.model.parameters(), strict=True)
    for (name, a), b in pairs:
        for key, x in before.optimizer.state[a].items():
            expected = x[[2, 0, 3, 1]] if name in heads and key != "step" else x
            assert torch.equal(after.optimizer.state[b][key], expected), (name, key)


def test_another_set_of_classes_is_refused(own: Path, tiny) -> None:
    start = resume.find(tiny("run", *SHORT), train.RunPaths(own))
    assert start is not None
    names = tuple(start.meta["class_names"])
    assert start.class_order(ClassNames((1, 2, 3, 4), names)) == [0, 1, 2, 3]
    assert start.class_order(ClassNames((1, 2, 3, 4), names[::-1])) == [3, 2, 1, 0]
    for other in (names[:3], (*names, "zebra"), (*names[:3], "zebra")):
        classes = ClassNames(tuple(range(len(other))), other)
        with pytest.raises(
            ValueError, match=f"for the classes {', '.join(names)}, but the data set has {', '.join(other)}"
        ):
            start.class_order(classes)


def test_init_from_matches_the_class_heads_by_name(own: Path, tiny) -> None:
    cfg = tiny("run", *SHORT)
    cfg.model.classes = 3
    model = instantiate(cfg.model.detector)
    names = checkpoint.read_meta(own / "checkpoints" / "last")["class_names"]
    heads = checkpoint.class_tensors(model)
    assert {"denoising.labels.weight", "class_heads.0.linear.bias", "queries.class_head.linear.weight"} <= heads
    fresh = {name: x.clone() for name, x in model.state_dict().items() if name in heads}
    classes = ClassNames((1, 2, 3), (names[3], "zebra", names[0]))
    line = checkpoint.load_weights(model, own, classes=classes)
    assert (
        f"classes: 2 by name ({names[3]}, {names[0]}); 1 new (zebra); 2 not taken over ({names[1]}, {names[2]})" in line
    )
    stored = weights(own)
    for name in heads:
        now = model.state_dict()[name]
        assert torch.equal(now[[0, 2]], stored[name][[3, 0]])
        assert torch.equal(now[1], fresh[name][1])


def test_the_state_of_earlier_versions_is_read(own: Path, tiny) -> None:
    """As accelerate wrote it, with pickles of tensors and numbers."""
    last = own / "checkpoints" / "last"
    cfg = tiny("run", *SHORT)
    cfg.model.classes = 4
    states = []
    for _ in range(2):
        model, optim = instantiate(cfg.model.detector), instantiate(cfg.optim)
        states.append(RunState(model, optim.optimizer(model), WeightAverage(model, 0.9), Meter()))
    new, old = states
    new.read(last)
    folder = last / "state"
    for file in folder.iterdir():
        file.unlink()
    checkpoint.save(last.with_name("m"), new.model, ClassNames((1,), ("a",)), step=1, metrics={})
    shutil.move(last.with_name("m") / "model.safetensors", folder)
    torch.save(new.optimizer.state_dict(), folder / "optimizer.bin")
    torch.save({"step": 2, "epoch": 0, "batch": 2, "evaluated": 0, "best": None, "metrics": {}},
               folder / "custom_checkpoint_1.pkl")  # fmt: skip
    torch.save({"model": new.shown.state_dict(), "step": 2}, folder / "custom_checkpoint_2.pkl")
    old.read(last)
    assert equal(dict(old.model.state_dict()), dict(new.model.state_dict()))
    assert equal(dict(old.shown.state_dict()), dict(new.shown.state_dict()))
    assert (old.progress.step, old.progress.batch, old.average.step if old.average else None) == (2, 2, 2)
    for a, b in zip(new.model.parameters(), old.model.parameters(), strict=True):
        assert equal(new.optimizer.state[a], old.optimizer.state[b])
