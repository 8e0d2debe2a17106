"""``stdetr eval`` of a checkpoint: what a kill leaves is not predicted again; old configurations; shared windows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from stdetr.config import compose, instantiate, load_config
from stdetr.engine import evaluate, evaluation_loop, train
from stdetr.engine.predictions import predict_videos, video_tubes
from stdetr.inference.detector import Detector
from stdetr.stitch.association import StitchRules


@pytest.fixture(scope="module")
def trained(compose_tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    train.run(
        compose_tiny(
            folder, "data.benchmark.splits.val.videos=3", "data.loader.eval_batch_size=1", "trainer.max_steps=2"
        )
    )
    return folder


def run(trained: Path, out: Path, *more: str) -> dict[str, bytes]:
    keys = [f"checkpoint={trained}", f"output_dir={out}", "device=cpu", "evaluation.stitch.score_threshold=0.0", *more]
    evaluate.run(compose("eval", keys))
    return {name: (out / name).read_bytes() for name in ("predictions.json", "tubes.json", "eval/metrics.json")}


def test_an_interrupted_evaluation_goes_on(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    whole = run(trained, tmp_path / "whole")
    assert len(json.loads(whole["tubes.json"])) > 3
    seen: list[int] = []

    def killed(*args, **keys):
        for video in predict_videos(*args, **keys):
            if len(seen) == 2:
                raise KeyboardInterrupt
            seen.append(video.video)
            yield video

    monkeypatch.setattr(evaluation_loop, "predict_videos", killed)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(trained, out)
    # What another process of the interrupted run has left counts, too.
    (out / "eval/.progress.0.jsonl").rename(out / "eval/.progress.3.jsonl")
    seen.clear()
    assert run(trained, out) == whole
    assert len(seen) == 1
    assert "goes on after 2 videos" in capsys.readouterr().out
    assert not list(out.glob("eval/.progress*"))
    # Nothing is left unfinished: the next run begins anew; and other settings are another run.
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        run(trained, out)
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        run(trained, out, "evaluation.top_k=7")


def test_predict_gives_the_tubes_of_eval(trained: Path, tmp_path: Path):
    # With a threshold of 0 every track has an id in predict, too; it also says which tubes are assigned first.
    run(trained, tmp_path / "out", "evaluation.stitch.track_threshold=0.0")
    data = instantiate(load_config(trained).data)
    index = data.index("val")
    detector = Detector.from_checkpoint(
        trained, clip_length=3, overlap=0, score_threshold=0.0, batch_size=1,
        rules=StitchRules(score_threshold=0.0, track_threshold=0.0),
    )  # fmt: skip
    found = []
    for video in range(index.videos):
        predictions = detector.predict(data.root / index.video_files[video])
        found += video_tubes(predictions, int(index.video_ids[video]), 8, fill_gap=2, prior_frames=5)
    assert found == json.loads((tmp_path / "out/tubes.json").read_text())


def test_windows_may_overlap_and_old_keys_are_read(trained: Path, tmp_path: Path):
    cfg = OmegaConf.load(trained / "config.yaml")
    cfg.data.eval_sampler.stride, cfg.data.eval_sampler.last = 1, "shift"
    OmegaConf.save(cfg, trained / "config.yaml")
    plain, shared = run(trained, tmp_path / "a"), run(trained, tmp_path / "b", "evaluation.overlap=1")
    images = [sorted({box["image_id"] for box in json.loads(each["predictions.json"])}) for each in (plain, shared)]
    assert images[0] == images[1]
    assert plain["tubes.json"] != shared["tubes.json"]
    with pytest.raises(ValueError, match=r"overlap=3 must lie in \[0, clip_length - 1\] = \[0, 2\]"):
        run(trained, tmp_path / "c", "evaluation.overlap=3")
