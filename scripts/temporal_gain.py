"""What does a clip gain over single frames?  Trains a clip detector, the same one with model.causal=true, and
their T = 1 twin on equally many frames.

    python scripts/temporal_gain.py [seeds=0,1,2] [frames=5] [threads=2] [output=FILE] [work=FOLDER] [KEY=VALUE ...]

Every other KEY=VALUE is an override of ``stdetr train experiment=toy``.  Each run is trained by the console command in
its own folder under ``work`` (default runs/temporal), resumed where it was stopped, and evaluated on the test split.
The oracle is told which frames are degraded and gives each of them the single-frame detections of the nearest clean
frame of its video (the earlier on a tie): what copying alone could reach.  All figures follow COCO rules, test split.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

from stdetr.atomic import write_text
from stdetr.config import instantiate, load_config
from stdetr.evaluation import evaluate
from stdetr.logger import git_revision

KEYS = {
    "AP": "coco/AP",
    "AP50": "coco/AP50",
    "AP50_clean": "coco/AP50_clean",
    "AP_clean": "coco/AP_clean",
    "AP50_degraded": "coco/AP50_degraded",
    "AP_degraded": "coco/AP_degraded",
}


def main(arguments: list[str]) -> int:
    settings = {"seeds": "0,1,2", "frames": "5", "threads": "2", "output": "benchmarks/temporal_toy.json",
           "work": "runs/temporal"}  # fmt: skip
    overrides = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in settings and equals:
            settings[key] = value
        elif equals:
            overrides.append(argument)
        else:
            print(f"error: {argument!r} is not KEY=VALUE; own keys: {', '.join(settings)}", file=sys.stderr)
            return 2
    seeds, clip = [int(seed) for seed in settings["seeds"].split(",")], int(settings["frames"])
    runs: dict[str, list[dict[str, Any]]] = {"clip": [], "causal": [], "single": [], "oracle": []}
    for seed in seeds:
        for name, frames, keys in (("clip", clip, []), ("causal", clip, ["model.causal=true"]), ("single", 1, [])):
            folder = Path(settings["work"]) / f"{name}_seed{seed}"
            size = 4 * clip // frames
            train(folder, seed, settings["threads"], [*overrides, *keys], frames, size)
            runs[name].append(score(folder))
        runs["oracle"].append(oracle(Path(settings["work"]) / f"single_seed{seed}"))
        print(table(runs), flush=True)
    report = {
        "what": f"clip detector (T = {clip}), offline and causal, and its T = 1 twin, equal frames seen, toy test",
        "command": "python scripts/temporal_gain.py " + " ".join(arguments),
        "commit": git_revision(),
        "machine": f"{platform.machine()} CPU, {settings['threads']} threads, {platform.system()}",
        "evaluator": "COCO rules per frame; offline (a frame sees later frames of its clip) but for the row causal",
        "seeds": seeds,
        "runs": runs,
        "mean": {name: {key: mean(run[key] for run in part) for key in KEYS} for name, part in runs.items()},
        "gain_AP50_degraded": [c["AP50_degraded"] - s["AP50_degraded"] for c, s in pairs(runs)],
        "gain_AP50": [c["AP50"] - s["AP50"] for c, s in pairs(runs)],
        "train_seconds_median": {n: median(r["train_seconds"] for r in runs[n]) for n in ("clip", "causal", "single")},
    }
    output = Path(settings["output"])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {output}")
    return 0


def pairs(runs: dict[str, list[dict[str, Any]]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return list(zip(runs["clip"], runs["single"], strict=True))


def train(folder: Path, seed: int, threads: str, overrides: list[str], frames: int, size: int) -> None:
    """One run by the console command, unless it is already complete; then its predictions on the test split."""
    command = [sys.executable, "-m", "stdetr", "train", "experiment=toy", f"seed={seed}", f"data.frames={frames}",
               f"data.loader.batch_size={size}", f"data.loader.eval_batch_size={2 * size}",
               f"trainer.threads={threads}", f"output_dir={folder}", *overrides]  # fmt: skip
    subprocess.run(command, check=True)
    subprocess.run(
        [sys.executable, "-m", "stdetr", "eval", f"checkpoint={folder / 'checkpoints' / 'last'}",
         f"output_dir={folder / 'test'}", "evaluation.split=test", "device=cpu"],
        check=True,
    )  # fmt: skip


def score(folder: Path) -> dict[str, Any]:
    metrics = json.loads((folder / "test" / "eval" / "metrics.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [line["frames_per_second"] for line in lines if line.get("split") == "train"]
    frames = load_config(folder)
    seen = frames.trainer.max_steps * frames.data.loader.batch_size * frames.data.frames
    figures = {name: metrics[key] for name, key in KEYS.items()}
    return figures | {"frames_seen": seen, "train_seconds": seen / median(rates)}


def oracle(folder: Path) -> dict[str, Any]:
    """Degraded frames get the detections of the nearest clean frame of their video."""
    annotations = instantiate(load_config(folder).data).annotations("test")
    truth = json.loads(annotations.read_text())
    detections: dict[int, list[dict[str, Any]]] = {}
    for detection in json.loads((folder / "test" / "predictions.json").read_text()):
        detections.setdefault(detection["image_id"], []).append(detection)
    videos: dict[int, list[dict[str, Any]]] = {}
    for image in truth["images"]:
        videos.setdefault(image["video_id"], []).append(image)
    copied = []
    for images in videos.values():
        clean = [image for image in images if image.get("degradation") is None]
        for image in images:
            source = image
            if image.get("degradation") is not None and clean:
                source = min(clean, key=lambda other: (abs(other["frame_id"] - image["frame_id"]), other["frame_id"]))
            copied += [dict(copy, image_id=image["id"]) for copy in detections.get(source["id"], [])]
    write_text(folder / "oracle.json", json.dumps(copied))
    metrics = evaluate(annotations, copied, [], evaluators=("coco",), causal=False, seeds=1).flat()
    return {name: metrics[key] for name, key in KEYS.items()}


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    lines = [f"{'mean of ' + str(len(runs['clip'])) + ' seeds':20s}" + "".join(f"{key:>15s}" for key in KEYS)]
    for name, part in runs.items():
        lines.append(f"{name:20s}" + "".join(f"{100 * mean(run[key] for run in part):15.1f}" for key in KEYS))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
