"""Write the README's results from the JSON files under ``benchmarks/``: ``python scripts/update_readme.py``."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def toy() -> list[str]:
    file = ROOT / "benchmarks" / "temporal_toy.json"
    if not file.is_file():
        return []
    found = json.loads(file.read_text())
    names = {"clip": "clip, T = 5", "single": "single frame, T = 1", "oracle": "T = 1, degraded frames copied (oracle)"}
    lines = [
        f"**Toy benchmark**, test split, COCO rules per frame, offline, mean of {len(found['seeds'])} seeds, equal "
        f"frames seen ({found['runs']['clip'][0]['frames_seen']}); `{found['command'].strip()}`, commit "
        f"`{found['commit'][:10]}`, {found['machine']}:",
        "",
        "| | AP50 | AP | AP50 clean | AP clean | AP50 degraded | AP degraded |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, name in names.items():
        mean = found["mean"][key]
        cells = [mean[k] for k in ("AP50", "AP", "AP50_clean", "AP_clean", "AP50_degraded", "AP_degraded")]
        lines.append(f"| {name} | " + " | ".join(f"{100 * cell:.1f}" for cell in cells) + " |")
    gain = found["gain_AP50_degraded"]
    lines += [
        "",
        f"On degraded frames the clip gains {100 * min(gain):.0f} to {100 * max(gain):.0f} AP50 over its twin; on "
        "clean frames the boxes of the twin are more exact, which is what the clip detector has to learn next.",
        "",
    ]
    return lines


def pets() -> list[str]:
    file = ROOT / "benchmarks" / "mot_pets.json"
    if not file.is_file():
        return []
    found = json.loads(file.read_text())
    lines = [
        "**One real clip** (PETS09-S2L1, walkers; trained on frames 1-560, scored on 600-795; one camera and shared "
        f"people: a demonstration, not a claim of generalisation), {found['seeds']} seed, COCO rules; "
        f"`{found['command']}`, commit `{found['commit'][:10]}`, {found['machine']}:",
        "",
        "| | AP50 | AP | tube AP50 | training |",
        "|---|---|---|---|---|",
    ]
    for run in found["runs"]:
        tube = "-" if run["tube_AP50"] is None else f"{100 * run['tube_AP50']:.1f}"
        minutes = "-" if run["train_minutes"] is None else f"{run['train_minutes']:.0f} min"
        lines.append(f"| {run['name']} | {100 * run['AP50']:.1f} | {100 * run['AP']:.1f} | {tube} | {minutes} |")
    return [*lines, ""]


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    body = "\n".join(["<!-- measured -->", "", *toy(), *pets(), "<!-- /measured -->"])
    if "<!-- /measured -->" in text:
        text = re.sub(r"<!-- measured -->.*<!-- /measured -->", lambda _: body, text, flags=re.S)
    else:
        text = text.replace("<!-- measured -->", body)
    readme.write_text(text)


if __name__ == "__main__":
    main()
