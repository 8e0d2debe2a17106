"""What is the gain of a clip made of?  Variants that differ only in clips fork from one single-frame phase per seed.

    python scripts/ablation.py experiment=drone_vid data.root=data/drone_vid output=benchmarks/ablation_drone_vid.json
    python scripts/ablation.py experiment=toy variants=clip,twin seeds=0 output=toy.json

Keys: experiment, seeds (0,1,2), variants (all), threads (1), work (runs/ablation), output; every other KEY=VALUE is an
override of ``stdetr train``.  Per seed the single-frame phase (trainer.single_frame of all steps) is trained once; each
variant resumes from it in a folder of its own, so that variants of a seed share everything before.  Everything is done
by the console command, is resumed where it was stopped, and is not repeated where it is complete.  The last evaluation
of training is the one that counts (the validation split; thinned where the experiment says so).

``twin`` is the same model on the same number of frames at T = 1, and ``twin_tracks`` its detections with scores
averaged along tracks (Seq-NMS and REPP in kind): what a single-frame detector reaches with tracking.  ``output`` keeps
the runs of other seeds that it holds already, so that seeds can be trained one by one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import DictConfig

from stdetr.bench.report import draw_table, finish
from stdetr.config import compose

SHARED = ["model.frame_weights=content"]
"""Overrides of the single-frame phase, which uses no temporal part but must hold those of every variant."""
VARIANTS = {
    "clip": ["model.frame_weights=idle"],
    "content": ["model.frame_weights=content"],
    "own_frame": ["model.frame_weights=idle", "model.decoder_window=0"],
    "twin": ["model.frame_weights=idle", "data.frames=1"],
}
"""Overrides of each variant.  own_frame: in the decoder a tube samples on each frame that frame alone."""
TRACKS = {"twin_tracks": "twin", "clip_tracks": "clip"}
"""Variants that rescore the detections of another along tracks, without training."""
SHOWN = ("coco/AP50", "coco/AP", "coco/AP_small", "tube/AP50")


def main(arguments: list[str]) -> int:
    settings = {"experiment": None, "seeds": "0,1,2", "variants": ",".join([*VARIANTS, *TRACKS]), "threads": "1",
                "work": "runs/ablation", "output": None}  # fmt: skip
    overrides = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            sys.exit(f"error: {argument!r} is not KEY=VALUE; own keys: {', '.join(settings)}")
        if key in settings:
            settings[key] = value
        else:
            overrides.append(argument)
    if settings["experiment"] is None:
        sys.exit("error: experiment is not given; for example experiment=drone_vid")
    chosen = str(settings["variants"]).split(",")
    for name in chosen:
        if name not in (*VARIANTS, *TRACKS):
            sys.exit(f"error: variants: {name!r} is not one of {', '.join([*VARIANTS, *TRACKS])}")
    common = [f"experiment={settings['experiment']}", *overrides, f"trainer.threads={settings['threads']}"]
    common += ["trainer.thin_final=true", "logger=jsonl", "viz.samples=0"]
    seeds = [int(seed) for seed in str(settings["seeds"]).split(",")]
    work = Path(str(settings["work"])) / str(settings["experiment"])
    runs = earlier_runs(settings["output"], chosen, seeds)
    for seed in seeds:
        seeded = [*common, f"seed={seed}"]
        base = work / f"base_{seed}"
        single_frames(base, [*seeded, *SHARED])
        for name in sorted(chosen, key=lambda name: name in TRACKS):
            source = work / f"{TRACKS.get(name, name)}_{seed}"
            fork(base, source, [*seeded, *VARIANTS[TRACKS.get(name, name)]])
            if name in TRACKS:
                rescore(source, work / f"{name}_{seed}")
            metrics = json.loads((work / f"{name}_{seed}" / "eval" / "metrics.json").read_text(encoding="utf-8"))
            runs[name].append({"seed": seed, **metrics})
    seen = sorted({run["seed"] for part in runs.values() for run in part})
    finish(
        {"what": (__doc__ or "").splitlines()[0], "seeds": seen, "overrides": overrides, "runs": runs},
        table=table(runs),
        output=None if settings["output"] is None else str(settings["output"]),
    )
    return 0


def single_frames(folder: Path, overrides: list[str]) -> None:
    """The phase that all variants of a seed share."""
    trainer = compose("train", overrides).trainer
    steps = round(trainer.single_frame * trainer.max_steps) if trainer.single_frame < 1 else int(trainer.single_frame)
    if step_of(folder) != steps:
        stdetr("train", *overrides, f"trainer.stop_at={steps}", f"output_dir={folder}")


def fork(base: Path, folder: Path, overrides: list[str]) -> None:
    """One variant, from the state of ``base`` to the end."""
    cfg = compose("train", overrides)
    if cfg.data.frames == 1:
        overrides = [*overrides, *like_clips(overrides)]
    if step_of(folder) == cfg.trainer.max_steps and (folder / "eval" / "metrics.json").is_file():
        return
    changed = sorted({override.partition("=")[0] for override in overrides} & CHANGED)
    stdetr("train", *overrides, f"resume={base}", f"resume_with=[{','.join(changed)}]", f"output_dir={folder}")


CHANGED = {override.partition("=")[0] for keys in VARIANTS.values() for override in keys} | {"data.loader.batch_size"}


def like_clips(overrides: list[str]) -> list[str]:
    """Batch sizes with which single frames come in the same number as with clips."""
    clips: DictConfig = compose("train", [key for key in overrides if key != "data.frames=1"])
    frames, loader = int(clips.data.frames), clips.data.loader
    return [
        f"data.loader.batch_size={loader.batch_size * frames}",
        f"data.loader.eval_batch_size={loader.eval_batch_size * frames}",
    ]


def rescore(source: Path, folder: Path) -> None:
    """The predictions of a run with scores averaged along tracks."""
    if (folder / "eval" / "metrics.json").is_file():
        return
    report = json.loads((source / "eval" / "report.json").read_text(encoding="utf-8"))
    annotations = report["sources"]["annotations"]
    stdetr("eval", f"annotations={annotations}", f"predictions={source / 'predictions.json'}",
           f"tubes={source / 'tubes.json'}", "evaluators=[coco,tube]", "rescore=tracks",
           f"output_dir={folder}")  # fmt: skip


def earlier_runs(output: str | None, names: list[str], seeds: list[int]) -> dict[str, list[dict[str, Any]]]:
    """What the file ``output`` holds of other seeds."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    if output is not None and Path(output).is_file():
        for name, earlier in json.loads(Path(output).read_text(encoding="utf-8"))["runs"].items():
            runs[name] = [run for run in earlier if run["seed"] not in seeds or name not in names]
    return runs


def step_of(folder: Path) -> int | None:
    """The step of the last checkpoint of a run; None where there is none."""
    meta = folder / "checkpoints" / "last" / "meta.json"
    return int(json.loads(meta.read_text(encoding="utf-8"))["step"]) if meta.is_file() else None


def stdetr(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "stdetr", *arguments], check=True)


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Means over seeds with their standard deviation, in percent."""

    def cell(name: str, key: str) -> str:
        values = [100 * run[key] for run in runs[name] if run.get(key) is not None]
        spread = f" ±{stdev(values):.1f}" if len(values) > 1 else ""
        return f"{mean(values):.1f}{spread}" if values else "-"

    return draw_table(("variant", *SHOWN), [(name, *(cell(name, key) for key in SHOWN)) for name in runs])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
