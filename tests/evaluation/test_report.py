"""The entry point, the reports, scoring anybody's files, comparing runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stdetr.cli import main
from stdetr.evaluation import evaluate
from stdetr.evaluation.compare import bootstrap, collect
from stdetr.evaluation.curve import ScoredMatches
from stdetr.evaluation.evaluate import make_evaluators, prepare
from stdetr.evaluation.offline import run
from stdetr.evaluation.report import markdown, summary, tables, write_reports

KEYS = {
    "coco": "AP AP50 AP75 AP_small AP_medium AP_large AR1 AR10 AR100",
    "vid": "AP50 AP50_fast AP50_medium AP50_slow",
    "vid_mega": "AP50 AP50_fast AP50_medium AP50_slow",
    "tube": "AP AP50 AP75 AR1 AR10",
    "track": "HOTA DetA AssA LocA MOTA IDF1 IDSW",
    "streaming": "sAP sAP50 sAP75",
}


@pytest.fixture
def files(make_random_scene, tmp_path: Path) -> Path:
    scene = make_random_scene(4)
    (tmp_path / "annotations.json").write_text(json.dumps(scene.document))
    (tmp_path / "predictions.json").write_text(json.dumps(scene.predictions))
    return tmp_path


def test_flat_keys_and_files(files: Path) -> None:
    cfg = {"annotations": files / "annotations.json", "predictions": files / "predictions.json"}
    values = run(cfg | {"output_dir": files / "run", "causal": True, "seeds": 3})
    for prefix, names in KEYS.items():
        for name in names.split():
            assert f"{prefix}/{name}" in values
    assert values["streaming/sAP"] is None
    folder = files / "run" / "eval"
    assert json.loads((folder / "metrics.json").read_text()) == values
    report = json.loads((folder / "report.json").read_text())
    assert (report["mode"], report["seeds"]) == ("causal", 3)
    assert report["tables"]["variants"]["rows"][0][:2] == ["vid/AP50", values["vid/AP50"]]
    for name in ("precision_recall.png", "per_class.png"):
        pixels = np.asarray(Image.open(folder / name).convert("L"))
        assert min(pixels.shape) > 300
        assert pixels.std() > 10  # something is drawn


def test_names_are_no_markup(new_scene, tmp_path: Path) -> None:
    scene = new_scene([2], classes=2)
    scene.categories[0]["name"] = "a|b\n<script>[x](y)"
    scene.categories[1]["name"] = "$\\frac{$ \x1b[31m"
    scene.truth(1, [10, 10, 20, 20])
    scene.truth(2, [10, 10, 20, 20], category=2, instance=2)
    scene.found(1, [10, 10, 20, 20], 0.9)
    evaluation = evaluate(scene.document, scene.predictions, evaluators=("coco",), causal=False, seeds=1)
    assert [path.name for path in write_reports(evaluation, tmp_path)] == ["precision_recall.png", "per_class.png"]
    page = (tmp_path / "eval/report.md").read_text()
    assert "| a\\|b \\<script\\>\\[x\\](y) | 1 | 1 |" in page
    assert "\x1b" not in page


def test_nothing_left_to_score(new_scene, tmp_path: Path) -> None:
    scene = new_scene([4])
    for image in (1, 2, 3, 4):
        scene.truth(image, [50, 60, 60, 60], iscrowd=1, ignore=1)
        scene.found(image, [50, 60, 60, 60], 0.9, track=1)
    evaluation = evaluate(scene.document, scene.predictions, causal=False, seeds=1)
    write_reports(evaluation, tmp_path)
    metrics = json.loads((tmp_path / "eval/metrics.json").read_text())
    assert {metrics[name] for name in ("coco/AP", "tube/AP50", "vid/AP50", "vid_mega/AP50", "track/HOTA")} == {None}


def test_report_states_evaluator_frames_mode_and_seeds(make_random_scene) -> None:
    scene = make_random_scene(4)
    names = ("coco", "vid", "vid_mega", "motion")
    found = evaluate(scene.document, scene.predictions, evaluators=names, causal=False, seeds=2)
    rows = tables(found)["variants"].rows
    assert [row[0] for row in rows] == ["vid/AP50", "vid_mega/AP50", "coco/AP50", "coco/AP"]
    for row in rows:
        assert row[3:] == [len(scene.images), "offline", 2]
    assert [table.title for table in tables(found).values()] == [
        "Variants side by side",
        "Per class",
        "Per motion",
        "Per size",
        "Class of the most confident detection on each annotated box (IoU 0.5 or more), shares of the boxes",
    ]
    text = markdown(found)
    assert f"{len(scene.images)} frames of {len(scene.videos)} videos" in text
    for row in rows:
        assert str(row[0]) in summary(found)
        assert f"{row[1]:.4f}" in summary(found)


def test_not_stated_is_said(make_random_scene) -> None:
    scene = make_random_scene(4)
    found = evaluate(scene.document, scene.predictions, evaluators=("coco",), causal=None, seeds=None)
    assert tables(found)["variants"].rows[0][4:] == ["not stated", "not stated"]


def test_undefined_evaluator_is_null_and_explained(make_random_scene, tmp_path: Path) -> None:
    scene = make_random_scene(1, crowd=True)
    scene.annotations[0]["iscrowd"] = 1
    found = evaluate(scene.document, scene.predictions, causal=False, seeds=1)
    write_reports(found, tmp_path)
    values = found.flat()
    assert values["vid/AP50"] is None
    assert values["vid_mega/AP50_slow"] is None
    assert values["coco/AP"] is not None
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["vid/AP50"] is None
    assert "have no crowd boxes" in (tmp_path / "eval" / "report.md").read_text()


def test_per_class_keys(new_scene) -> None:
    scene = new_scene([1], classes=2)
    scene.truth(1, [20, 20, 40, 40], category=2)
    scene.found(1, [20, 20, 40, 40], 0.9, category=2)
    values = evaluate(scene.document, scene.predictions, evaluators=("coco", "vid"), causal=False, seeds=1).flat()
    assert values["coco/AP50/class2"] == pytest.approx(1)
    assert values["vid/AP50/class2"] == 1
    assert values["coco/AP/class1"] is None


def test_motion_alone_brings_both_vid_evaluators() -> None:
    assert [e.name for e in make_evaluators(("motion",))] == ["vid", "vid_mega"]
    assert [e.name for e in make_evaluators(("motion", "vid"))] == ["vid"]


def test_offline_needs_both_files(files: Path) -> None:
    with pytest.raises(ValueError, match="predictions is not given"):
        run({"annotations": files / "annotations.json"})
    with pytest.raises(ValueError, match="'cocoo' is not an evaluator; did you mean 'coco'"):
        run({"annotations": "a", "predictions": files / "predictions.json", "evaluators": "cocoo"} | paths(files))


def paths(files: Path) -> dict:
    return {"annotations": files / "annotations.json", "predictions": files / "predictions.json"}


def test_weights_repeat_videos() -> None:
    # Counting a video twice is the same as having its detections and objects twice.
    rng = np.random.default_rng(0)
    tp, fp = rng.random(40) < 0.4, rng.random(40)
    fp[tp], tp[-1] = 0, False
    video, positives = rng.integers(0, 3, 40), np.array([9, 8, 12])
    weights = np.array([2, 0, 1])
    matches = ScoredMatches(tp, fp, video, positives)
    times = weights[video]
    repeated = ScoredMatches(
        np.repeat(tp, times), np.repeat(fp, times), np.repeat(video, times), np.repeat(positives, weights)
    )
    for rule in ("area", "101"):
        want = repeated.average_precision(rule)
        assert matches.average_precision(rule, weights) == pytest.approx(want, abs=1e-12)
        assert matches.compact().average_precision(rule, weights) == pytest.approx(want, abs=1e-12)
    assert len(matches.compact().tp) < 40


def test_matches_give_the_metric_back(make_random_scene) -> None:
    scene = make_random_scene(7)
    names = ("coco", "vid", "vid_mega", "tube")
    flat = evaluate(scene.document, scene.predictions, evaluators=names, causal=False, seeds=1).flat()
    collected = collect(prepare(scene.document, scene.predictions), make_evaluators(names))
    overall = {"coco/AP", "coco/AP50", "vid/AP50", "vid_mega/AP50", "tube/AP", "tube/AP50"}
    assert {key for key in collected if " class=" not in key} == overall
    for key, table in collected.items():
        known = flat[key.replace(" class=", "/")]
        assert table.value() == pytest.approx(np.nan if known is None else known, abs=1e-9, nan_ok=True), key


def many_videos(new_scene, quality: float, seed: int):
    """Twenty videos; the object of each frame is found with this probability."""
    rng = np.random.default_rng(seed)
    scene = new_scene([3] * 20)
    for image in scene.images:
        scene.truth(image["id"], [20, 20, 40, 40])
        if rng.random() < quality:
            scene.found(image["id"], [20, 20, 40, 40], 0.9)
        else:
            scene.found(image["id"], [120, 120, 40, 40], 0.9)
    return scene


def test_compare_calls_noise_noise_and_a_gain_a_gain(new_scene, tmp_path: Path, capsys) -> None:
    for name, quality, seed in (("a", 0.6, 0), ("b", 0.6, 1), ("c", 0.95, 2)):
        scene = many_videos(new_scene, quality, seed)
        (tmp_path / name).mkdir()
        (tmp_path / name / "predictions.json").write_text(json.dumps(scene.predictions))
    (tmp_path / "annotations.json").write_text(json.dumps(scene.document))

    def verdicts(first: str, second: str) -> dict:
        cfg = {"annotations": tmp_path / "annotations.json", "bootstrap_draws": 200, "evaluators": ["coco", "vid"]}
        pair = f"{tmp_path / first},{tmp_path / second}"
        values = run(cfg | {"compare": pair, "output_dir": tmp_path / "out"})
        document = json.loads((tmp_path / "out" / "eval" / "compare.json").read_text())
        assert document["runs"]["B"]["predictions"] == str(tmp_path / second / "predictions.json")
        found = {d["metric"]: d for d in document["differences"]}
        for metric, d in found.items():
            assert d["low"] <= d["difference"] <= d["high"]
            assert values[f"compare/{metric}"] == d["difference"]
        return {metric: d["verdict"] for metric, d in found.items()}

    assert verdicts("a", "b")["vid/AP50"] == "within noise"
    assert verdicts("a", "c")["vid/AP50"] == "B is better"
    assert verdicts("c", "a")["coco/AP50"] == "A is better"
    assert verdicts("a", "a")["coco/AP50"] == "within noise"
    printed = capsys.readouterr().out
    assert "within noise" in printed
    assert "bootstrap over 20 videos)" in printed


def test_compare_finds_what_a_run_was_scored_with(files: Path, capsys) -> None:
    run(paths(files) | {"output_dir": files / "a", "evaluators": ["coco"]})
    (files / "b").mkdir()
    (files / "b" / "predictions.json").write_text((files / "predictions.json").read_text())
    values = run({"compare": f"{files / 'a'},{files / 'b'}", "bootstrap_draws": 20, "evaluators": ["coco"]})
    overall = {"compare/coco/AP", "compare/coco/AP50"}
    assert {key for key in values if " class=" not in key} == overall
    assert set(values.values()) == {0.0}
    assert "videos, too few for a reliable interval)" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["compare={a},{b}", "compare=[{a},{b}]", "compare='{a},{b}'"])
def test_compare_on_the_command_line(form: str, files: Path, capsys) -> None:
    for name in ("a", "b=2"):  # an equals sign in a folder's name, as sweeps make them, needs no quotes
        (files / name).mkdir()
        (files / name / "predictions.json").write_text((files / "predictions.json").read_text())
    if "[" in form:
        (files / "b=2").rename(files / "b")
    words = form.format(a=files / "a", b=files / ("b" if "[" in form else "b=2"))
    keys = [f"annotations={files / 'annotations.json'}", "bootstrap_draws=10", "evaluators=[coco]"]
    assert main(["eval", words, *keys, f"output_dir={files / 'out'}"]) == 0
    assert "within noise" in capsys.readouterr().out
    document = json.loads((files / "out" / "eval" / "compare.json").read_text())
    assert {d["difference"] for d in document["differences"]} == {0.0}
    assert {"coco/AP", "coco/AP50"} <= {d["metric"] for d in document["differences"]}
    assert document["runs"]["A"]["predictions"] == str(files / "a" / "predictions.json")


def test_compare_of_one_run_on_the_command_line(files: Path, capsys) -> None:
    assert main(["eval", "compare=a", f"output_dir={files}"]) == 2
    assert "compare=a names 1 run(s); give two: compare=RUN_A,RUN_B" in capsys.readouterr().err


def test_compare_mistakes(files: Path, new_scene) -> None:
    with pytest.raises(ValueError, match="names 1 run"):
        run({"compare": "a"})
    with pytest.raises(FileNotFoundError, match="compare: run"):
        run({"compare": f"{files / 'x'},{files / 'y'}"})
    (files / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no predictions\.json"):
        run({"compare": f"{files / 'empty'},{files / 'empty'}"})
    with pytest.raises(ValueError, match="over videos needs at least 2 of them"):
        bootstrap({}, {}, 1)


def test_files_are_scored_without_torch(files: Path) -> None:
    """Importing torch takes longer than scoring two small files, figures included."""
    words = ["eval", *(f"{key}={path}" for key, path in paths(files).items()), f"output_dir={files / 'run'}"]
    code = f"import sys; from stdetr.cli import main; assert main({words}) == 0; print(sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = run.stdout.splitlines()[-1]
    assert "'matplotlib.figure'" in modules
    for heavy in ("torch", "torchvision", "supervision", "wandb"):
        assert f"'{heavy}'" not in modules
    assert (files / "run" / "eval" / "per_class.png").is_file()


def test_importing_the_evaluators_imports_no_library_but_numpy() -> None:
    code = "import sys, stdetr.evaluation, stdetr.evaluation.offline; print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "matplotlib", "scipy", "trackeval", "pycocotools"):
        assert f"'{heavy}'" not in modules
