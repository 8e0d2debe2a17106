"""Start-up time of commands, compared with ``python -c "import torch"`` in the same run.

    python scripts/bench_startup.py output=benchmarks/startup.json

Keys: turns (of all cases in turn; figures are medians), output.  Every command runs in a separate process, in a folder
with two small files, after one turn that is not counted.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from omegaconf import OmegaConf

from stdetr.bench.report import finish

DOCUMENT = {
    "videos": [{"id": 1, "name": "a", "width": 64, "height": 48, "length": 2}],
    "images": [{"id": i + 1, "video_id": 1, "frame_id": i, "file_name": f"a/{i}.jpg"} for i in range(2)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "instance_id": 1, "bbox": [1, 2, 10, 12], "area": 120, "iscrowd": 0}
    ],
    "categories": [{"id": 1, "name": "car"}],
}
RESULTS = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 12], "score": 0.9}]
DETECTOR = "from stdetr import Detector; Detector.from_checkpoint('run')"
RUN = """
from safetensors.torch import save_file
from stdetr.config import compose, instantiate, save_config
cfg = compose("train", ["experiment=toy", "model.classes=1", "output_dir=run"])
folder = save_config(cfg, "run").parent / "checkpoints" / "best"
folder.mkdir(parents=True)
save_file(instantiate(cfg.model.detector).state_dict(), folder / "model.safetensors")
(folder / "meta.json").write_text('{"class_ids": [1], "class_names": ["car"], "step": 0, "metrics": {}}')
"""
COMMANDS = {
    "--help": 1 / 3,
    "train --help": 1 / 3,
    "train trainer.max_stpes=3": 1 / 3,
    "eval checkpoint=nope": 1 / 3,
    "predict checkpoint=run source=nope.mp4": 1 / 3,
    "eval annotations=nope.json predictions=results.json": 1 / 3,
    "data action=validate path=good.json check_media=false": 1 / 3,
    "eval annotations=good.json predictions=results.json output_dir=scores": 1.0,
}
"""Commands, and the share of ``import torch`` that each may take."""
PROGRAMS = {"from stdetr import Detector": 1.5, DETECTOR: 1.5}


def write_files(folder: Path) -> None:
    """Two small files, and the run folder of a toy detector that was never trained."""
    (folder / "good.json").write_text(json.dumps(DOCUMENT), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(RESULTS), encoding="utf-8")
    subprocess.run([sys.executable, "-c", RUN], cwd=folder, check=True)


def main(arguments: list[str]) -> None:
    keys = {"turns": 5, "output": None} | dict(OmegaConf.to_container(OmegaConf.from_dotlist(arguments)))  # type: ignore
    unknown = sorted(set(keys) - {"turns", "output"})
    if unknown:
        sys.exit(f"error: {unknown[0]}: no such key; there are turns and output")
    torch = "import torch"
    cases = {torch: ["-c", torch]}
    cases |= {f"stdetr {words}": ["-m", "stdetr", *words.split()] for words in COMMANDS}
    cases |= {program: ["-c", program] for program in PROGRAMS}
    bars = {f"stdetr {words}": bar for words, bar in COMMANDS.items()} | PROGRAMS
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder)
        for turn in range(int(keys["turns"]) + 1):
            for case, words in cases.items():
                began = time.perf_counter()
                subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, check=False)
                if turn:
                    seconds[case].append(time.perf_counter() - began)
                shutil.rmtree(folder / "scores", ignore_errors=True)
    base = statistics.median(seconds[torch])
    rows = [
        {
            "case": case,
            "seconds": round(statistics.median(turns), 3),
            "of_import_torch": round(statistics.median(turns) / base, 3),
            "bar": None if case == torch else round(bars[case], 3),
        }
        for case, turns in seconds.items()
    ]
    lines = [
        f"{row['seconds']:8.2f} s {row['of_import_torch']:7.2f}  bar {row['bar'] or '-'}  {row['case']}" for row in rows
    ]
    finish(
        {"what": (__doc__ or "").splitlines()[0], "turns": int(keys["turns"]), "rows": rows},
        table="\n".join(lines),
        output=None if keys["output"] is None else str(keys["output"]),
    )


if __name__ == "__main__":
    main(sys.argv[1:])
