"""``make demo``: train on the toy benchmark, evaluate on its test split, render a held-out video and list the results.

Arguments are further overrides of the training: ``python scripts/demo.py trainer.max_steps=100 output_dir=runs/short``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

OUTPUT = Path("runs/demo")
TRAIN = ["experiment=toy"]


def main(overrides: list[str]) -> int:
    """Run the phases one after another, each the console command a user would type; stop at the first that fails."""
    given = [text.partition("=")[2] for text in overrides if text.startswith("output_dir=")]
    output = Path(given[-1]) if given else OUTPUT
    seconds: dict[str, float] = {}
    train = [*TRAIN, f"output_dir={output}", *(text for text in overrides if not text.startswith("output_dir="))]
    code = phase("train", ["train", *train], seconds)
    if code == 0:
        arguments = ["eval", f"checkpoint={output}", "evaluation.split=test", f"output_dir={output / 'test'}"]
        code = phase("evaluate", arguments, seconds)
    if code == 0:
        video = held_out_video(output)
        arguments = ["predict", f"checkpoint={output}", f"source={video}", f"output_dir={output / 'predict'}"]
        code = phase("predict", arguments, seconds)
    if code:
        return code
    report(output, seconds)
    return 0


def phase(name: str, arguments: list[str], seconds: dict[str, float]) -> int:
    """One verb as its own process, its time kept in ``seconds``; returns its exit code."""
    print(f"\n== {name}: stdetr {' '.join(arguments)}", flush=True)
    started = time.perf_counter()
    code = subprocess.run([sys.executable, "-m", "stdetr", *arguments], check=False).returncode
    seconds[name] = time.perf_counter() - started
    return code


def held_out_video(output: Path) -> Path:
    """The test video with the most objects on degraded frames, where a clip shows more than a single frame."""
    from stdetr.config import instantiate, load_config

    root = instantiate(load_config(output).data).root
    index = json.loads((root / "test.json").read_text(encoding="utf-8"))
    degraded = {image["id"] for image in index["images"] if image.get("degradation") is not None}
    hidden = dict.fromkeys((video["id"] for video in index["videos"]), 0)
    for annotation in index["annotations"]:
        hidden[annotation["video_id"]] += annotation["image_id"] in degraded
    video = max(index["videos"], key=lambda video: hidden[video["id"]])
    return root / video["file_name"]


def report(output: Path, seconds: dict[str, float]) -> None:
    """The results and their files, with the headline figures."""
    print("\n== done in " + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    for path in sorted(output.rglob("eval/metrics.json")):
        metrics = json.loads(path.read_text(encoding="utf-8"))
        shown = {key: value for key, value in metrics.items() if key.endswith(("/AP", "/AP50")) and key.count("/") == 1}
        print(f"{path}: " + ", ".join(f"{key} {value:.3f}" for key, value in shown.items() if value is not None))
    files = {
        "overlay": sorted(output.rglob("overlay.mp4")),
        "figure": sorted(output.rglob("sampling.png")),
        "W&B run": sorted((output / "wandb").glob("*run-*")),
        "metrics over time": [output / "metrics.jsonl"],
        "checkpoints": sorted((output / "checkpoints").glob("*")),
    }
    for name, paths in files.items():
        existing = [str(path) for path in paths if path.exists()]
        print(f"{name}: {', '.join(existing) or 'none'}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
