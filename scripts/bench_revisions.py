"""What two commits spend on a training step and on a streamed frame, in turn, in one run.

    python scripts/bench_revisions.py before=b3d1f2d after=HEAD output=benchmarks/revisions.json

Keys: before, after (commits), turns (3; figures are medians), output.  Each commit runs from a clean checkout, with its
own compiled op, in processes of one thread.  Figures are seconds of processor time, so that a busy machine
changes them little.  A step is the difference between a short and a longer training run; a streamed frame, between a
short and a longer part of a video: starting costs cancel out.  Data: one generated video of 320x256 with a moving box,
random weights.  ``backbone`` is the share of backbone and neck in a streamed frame of ``before``; with windows of five
frames that share two, computing them once per frame is worth at most 1 / (1 - 0.4 x share).
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
from omegaconf import OmegaConf

from stdetr.bench.report import finish

ROOT = Path(__file__).resolve().parents[1]
CLIP = "data=coco_vid model=clip model.classes=1 data.train_transforms=[] data.eval_transforms=[] data.cache=memory"
CASES = {
    "mot_pets": ("experiment=mot_pets model.detector.backbone.weights=null data.cache=memory", (4, 12), (10, 55)),
    "model=clip": (f"{CLIP} data.loader.num_workers=0", (1, 3), (5, 20)),
}
"""Overrides of a configuration; steps of the short and the long training run; frames of the short and long stream."""
COMMON = (
    "logger=none trainer.cpu=true trainer.threads=1 trainer.eval_every=0 trainer.single_frame=0 trainer.log_every=1000"
)

STREAM = """
import json, sys, time
import torch
torch.set_num_threads(1)
from stdetr import Detector
detector = Detector.from_checkpoint(sys.argv[1], device="cpu")
spent = 0.0
def timed(module):
    forward = module.forward
    def call(*args, **kwargs):
        global spent
        began = time.process_time()
        try:
            return forward(*args, **kwargs)
        finally:
            spent += time.process_time() - began
    module.forward = call
timed(detector.model.backbone)
timed(detector.model.neck)
seconds, shared = [], []
for frames in map(int, sys.argv[3:]):
    spent, began = 0.0, time.process_time()
    for _ in detector.stream(sys.argv[2], max_frames=frames):
        pass
    seconds.append(time.process_time() - began)
    shared.append(spent)
print(json.dumps([seconds, shared]))
"""


def write_data(folder: Path) -> None:
    """One video of 60 frames, 320x256, in the CocoVID format, as training and validation set."""
    random = np.random.default_rng(0)
    texture = random.integers(0, 255, (64, 80, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    with av.open(folder / "a.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 320, 256, "yuv420p"
        for i in range(60):
            picture = texture.copy()
            picture[100:160, 2 * i : 2 * i + 60] = (220, 40, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    box = {"category_id": 1, "instance_id": 1, "area": 3600, "iscrowd": 0}
    document = {
        "videos": [{"id": 1, "name": "a", "file_name": "a.mp4", "width": 320, "height": 256, "length": 60}],
        "images": [{"id": i + 1, "video_id": 1, "frame_id": i} for i in range(60)],
        "annotations": [{"id": i + 1, "image_id": i + 1, "bbox": [2 * i, 100, 60, 60], **box} for i in range(60)],
        "categories": [{"id": 1, "name": "box"}],
    }
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(document), encoding="utf-8")


class Revision:
    """A clean checkout of a commit, with its op compiled for it alone."""

    def __init__(self, commit: str, folder: Path) -> None:
        self.folder = folder
        self.commit = subprocess.check_output(["git", "rev-parse", commit], cwd=ROOT, text=True).strip()
        (folder / "tree").mkdir(parents=True)
        archive = subprocess.Popen(["git", "archive", self.commit], cwd=ROOT, stdout=subprocess.PIPE)
        subprocess.run(["tar", "x", "-C", folder / "tree"], stdin=archive.stdout, check=True)
        install = ["sh", "scripts/bootstrap.sh", "uv", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
        install += ["--python", sys.executable, "--target", str(folder / "ops"), str(folder / "tree" / "cuda_ops")]
        subprocess.run(install, cwd=ROOT, check=True, env={**os.environ, "STDETR_OPS_CUDA": "0"})
        paths = [str(folder / "tree" / "src"), str(folder / "ops")]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}

    def python(self, *arguments: str) -> tuple[str, float]:
        """Standard output and processor seconds of one process."""
        began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{self.commit}: {' '.join(arguments[:3])} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began

    def train(self, overrides: str, data: Path, steps: int, name: str) -> tuple[Path, float]:
        run = self.folder / f"{name}-{steps}"
        keys = [f"data.root={data}", f"output_dir={run}", f"trainer.max_steps={steps}", f"trainer.save_every={steps}"]
        subprocess.run(["rm", "-rf", str(run)], check=True)
        return run, self.python("-m", "stdetr", "train", *overrides.split(), *COMMON.split(), *keys)[1]

    def turn(self, case: str, data: Path) -> dict[str, float]:
        overrides, steps, frames = CASES[case]
        short, long = (self.train(overrides, data, n, case.replace("=", "_")) for n in steps)
        text, _ = self.python("-c", STREAM, str(short[0]), str(data / "a.mp4"), *map(str, frames))
        seconds, shared = json.loads(text.splitlines()[-1])
        streamed = frames[1] - frames[0]
        return {
            "step": (long[1] - short[1]) / (steps[1] - steps[0]),
            "frame": (seconds[1] - seconds[0]) / streamed,
            "backbone": (shared[1] - shared[0]) / (seconds[1] - seconds[0]),
        }


def main(arguments: list[str]) -> None:
    keys = {"before": None, "after": "HEAD", "turns": 3, "output": None}
    given: dict = OmegaConf.to_container(OmegaConf.from_dotlist(arguments))  # type: ignore
    unknown = sorted(set(given) - set(keys))
    if unknown or not given.get("before"):
        sys.exit(f"error: {unknown[0] if unknown else 'before'}: give before=COMMIT; keys: {', '.join(keys)}")
    keys |= given
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        data.mkdir()
        write_data(data)
        revisions = {side: Revision(str(keys[side]), Path(name) / side) for side in ("before", "after")}
        rows = []
        for case in CASES:
            turns: dict[str, list[dict[str, float]]] = {side: [] for side in revisions}
            for _ in range(int(keys["turns"])):
                for side, revision in revisions.items():
                    turns[side].append(revision.turn(case, data))
            middle = {
                side: {what: statistics.median(turn[what] for turn in turns[side]) for what in turns[side][0]}
                for side in turns
            }
            bound = 1 / (1 - 0.4 * middle["before"]["backbone"])
            gain = {what: middle["before"][what] / middle["after"][what] for what in ("step", "frame")}
            rows.append({"case": case, **middle, "gain": gain, "bound": bound, "turns": turns})
    lines = [
        f"{row['case']:12} {what:6} {row['before'][what]:.3f} -> {row['after'][what]:.3f} s, {row['gain'][what]:.2f}x"
        + (f" (bound {row['bound']:.2f}x)" if what == "frame" else "")
        for row in rows
        for what in ("step", "frame")
    ]
    commits = {side: revision.commit for side, revision in revisions.items()}
    finish(
        {"what": (__doc__ or "").splitlines()[0], **commits, "rows": rows},
        table="\n".join(lines),
        output=None if keys["output"] is None else str(keys["output"]),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
