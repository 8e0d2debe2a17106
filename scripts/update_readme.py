"""Write the README's table and docs/benchmarks.md from the JSON files under ``benchmarks/``.

python scripts/update_readme.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def _read(name: str) -> dict[str, Any] | None:
    file = ROOT / "benchmarks" / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def toy() -> list[str]:
    data = _read("temporal_toy")
    if data is None:
        return []
    names = {
        "clip": "clip, T = 5",
        "causal": "clip, T = 5, causal",
        "single": "single frame, T = 1",
        "oracle": "T = 1, degraded frames copied (oracle)",
    }
    lines = [
        f"**Toy benchmark**, test split, COCO rules per frame, mean of {len(data['seeds'])} seeds, equal "
        f"frames seen ({data['runs']['clip'][0]['frames_seen']}); `{data['command'].strip()}`, commit "
        f"`{data['commit'][:10]}`, {data['machine']}:",
        "",
        "| | AP50 | AP | AP50 clean | AP clean | AP50 degraded | AP degraded |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, name in names.items():
        if key not in data["mean"]:
            continue
        mean = data["mean"][key]
        cells = [mean[k] for k in ("AP50", "AP", "AP50_clean", "AP_clean", "AP50_degraded", "AP_degraded")]
        lines.append(f"| {name} | " + " | ".join(f"{100 * cell:.1f}" for cell in cells) + " |")
    clip, single, oracle = (data["mean"][key] for key in ("clip", "single", "oracle"))
    gain = data["gain_AP50_degraded"]
    clean = 100 * (clip["AP_clean"] - single["AP_clean"])
    lines += [
        "",
        f"On degraded frames the clip gains {100 * min(gain):.0f} to {100 * max(gain):.0f} AP50 over its twin and "
        f"{100 * (clip['AP_degraded'] - oracle['AP_degraded']):+.1f} AP on the oracle; over all frames "
        f"{100 * (clip['AP'] - single['AP']):+.1f} AP on the twin, on clean frames alone {clean:+.1f}.",
        "",
    ]
    return lines


def pets() -> list[str]:
    data = _read("mot_pets")
    if data is None:
        return []
    lines = [
        "**One real clip** (PETS09-S2L1, walkers; trained on frames 1-560, scored on 600-795; one camera and shared "
        f"people: a demonstration, not a claim of generalisation), {data['seeds']} seed, COCO rules; "
        f"`{data['command']}`, commit `{data['commit'][:10]}`, {data['machine']}:",
        "",
        "| | AP50 | AP | tube AP50 | HOTA | IDF1 | id switches | training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in data["runs"]:
        shares = [run.get(key) for key in ("AP50", "AP", "tube_AP50", "HOTA", "IDF1")]
        cells = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
        switches = run.get("IDSW")
        cells += ["-" if switches is None else f"{switches:.0f}", f"{run['train_minutes']:.0f} min"]
        lines.append(f"| {run['name']} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def drones() -> list[str]:
    data = _read("ablation_drone_vid")
    if data is None:
        return []
    classes = ("airplane", "bird", "drone", "helicopter")
    names = {"clip": "clip, T = 5", "twin": "T = 1", "clip_tracks": "clip, scores averaged along tracks",
             "twin_tracks": "T = 1, scores averaged along tracks"}  # fmt: skip
    lines = [
        f"**Real clips of drones, birds, airplanes and helicopters** (`drone_vid`, split by scene), seed "
        f"{', '.join(map(str, data['seeds']))} alone, COCO rules, 12 windows of 5 frames of each validation clip; "
        f"`{data['command']}`, commit `{data['commit'][:10]}`, {data['machine']['processor']}:",
        "",
        f"| | AP50 | {' | '.join(classes)} | AP |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, name in names.items():
        (run,) = data["runs"][key]
        cells = [run["coco/AP50"], *(run[f"coco/AP50/{name}"] for name in classes), run["coco/AP"]]
        lines.append(f"| {name} | " + " | ".join(f"{100 * cell:.1f}" for cell in cells) + " |")
    compared = data["clip_against_twin_by_scene"]
    (change,) = (row for row in compared["differences"] if row["metric"] == "coco/AP50")
    gains = sum(row["difference"] > 0 for row in compared["groups"])
    middle = [100 * data["middle_50_frames"][name]["coco/AP50"] for name in ("clip", "twin")]
    return [
        *lines,
        "",
        f"The clip against its twin: {100 * change['difference']:+.1f} AP50, 95 % interval over the {change['units']} "
        f"scenes {100 * change['low']:+.1f} to {100 * change['high']:+.1f}; {gains} of {len(compared['groups'])} "
        "scenes gain. Each scene shows one class, and a class has 2 to 5 scenes: one seed decides nothing here, and no "
        f"gain is claimed. On the middle 50 frames of each clip: {middle[0]:.1f} against {middle[1]:.1f} AP50.",
        "",
    ]


def op() -> list[str]:
    """The attention op on the CPU: ours, and how many times slower the others are in the same run."""
    data = _read("op_cpu")
    if data is None:
        return []
    machine = data["machine"]
    lines = [
        f"**The op**, {data['dtype']}, inference (forward) and a training step (both), medians of "
        f"turns that start with a call that is not timed; "
        f"`{data['command']}`, commit `{data['commit'][:10]}`, {machine['processor']}, {machine['threads']} threads, "
        f"torch {machine['torch']}, {data['backend']}:",
        "",
        "| case, sampling locations | forward | both | grid_sample takes | reference takes | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, str], dict[str, dict]] = {}
    for row in data["rows"]:
        groups.setdefault((row["case"], row["locations"], row["kind"]), {})[row["implementation"]] = row
    for (case, locations, kind), rows in groups.items():
        ours = rows["stdetr"]
        name = f"{case.replace('_', ' ')}, {locations}" + (", fused" if kind == "fused" else "")
        cells = [f"{ours['forward_ms']:.1f} ms", f"{ours['both_ms']:.1f} ms"]
        cells += [_times(rows.get(peer, {})) for peer in ("grid_sample", "reference")]
        peak = ours.get("memory_peak")
        cells.append("-" if peak is None else f"{peak / 2**20:.0f} MiB, {peak / ours['memory_needed']:.2f} of needed")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for kind, sweep in data.get("sweep", {}).items():
        grown = sweep["exponents"].get("stdetr")
        if grown is not None:
            memory = "" if "memory_peak" not in grown else f", peak memory {grown['memory_peak']:.2f}"
            frames = sorted({row["frames"] for row in sweep["rows"]})
            lines += [
                "",
                f"Growth with the number of frames, T = {', '.join(map(str, frames))}, {kind} op, as an exponent (1 is "
                f"linear): forward {grown['forward_ms']:.2f}, both {grown['both_ms']:.2f}{memory}. Needed memory: "
                "inputs, outputs and gradients.",
            ]
    absent = ", ".join(f"{peer} ({why})" for peer, why in data["absent"].items())
    return [*lines, "", *([f"Not in this run: {absent}.", ""] if absent else [])]


def transformers() -> list[str]:
    """Models of transformers on the CPU, as they are and with our operator in them."""
    data = _read("transformers")
    if data is None:
        return []
    machine = data["machine"]
    lines = [
        f"**Models of transformers** {data['transformers']} with random weights, one image, inference, processor time "
        f"as they are and after `patch_transformers()`; `{data['command']}`, commit `{data['commit'][:10]}`, "
        f"{machine['processor']}, "
        f"{machine['threads']} thread, load {machine['load_average']}, torch {machine['torch']}, {data['backend']}:",
        "",
        "| model, image | whole model | patched | times faster | its deformable attention alone | layer differs by | "
        "outputs in float64 differ by |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in data["rows"]:
        name, _, size = row["case"].rpartition("_")
        whole = row["whole_ms"]
        lines.append(
            f"| {name.replace('_', ' ')}, {size} | {whole['transformers'] / 1000:.2f} s | "
            f"{whole['patched'] / 1000:.2f} s | {row['whole_speedup']:.2f}x | {row['layer_speedup']:.1f}x | "
            + " | ".join(f"{difference:.0e}" for difference in row["largest_difference"].values())
            + " |"
        )
    return [*lines, ""]


def model() -> list[str]:
    """The detector's encoder and decoder on the CPU over T, and the gain from computing offsets inside the op."""
    data = _read("model_cpu")
    if data is None:
        return []
    machine = data["machine"]
    lines = [
        f"**The model over T** with a fixed window of {data['model']['window']} frame to each side; "
        f"`{data['command']}`, commit `{data['commit'][:10]}`, {machine['processor']}, {machine['threads']} threads; "
        "composed: offsets and logits of all sampled frames formed before the op, instead of in it:",
        "",
        "| part | T | training step | peak memory per frame | composed: step, peak | reference: step, peak |",
        "|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, int], dict[str, dict]] = {}
    for row in data["rows"]:
        groups.setdefault((row["part"], row["frames"]), {})[row["backend"]] = row
    for (part, frames), rows in groups.items():
        ours = rows["kernels"]
        cells = [f"{ours['both_ms']:.0f} ms", f"{ours['peak'] / 2**20 / frames:.1f} MiB"]
        for other in ("composed", "reference"):
            row = rows.get(other)
            cells.append("-" if row is None else f"{row['both_times_kernels']:.2f}x, {row['peak_times_kernels']:.2f}x")
        lines.append(f"| {part} | {frames} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def loader() -> list[str]:
    """Clips in order, loaded in the training process and by workers, against the bare decoder."""
    data = _read("loader")
    if data is None:
        return []
    film = data["video"]
    ways = [name for name in next(iter(data["backends"].values())) if name.startswith("loader_contiguous_workers_")]
    reads = next(memory["reads"] for memory in data["memory"].values())
    workers = [int(name.rpartition("_")[2]) for name in ways]
    lines = [
        f"**Reading** clips of {data['clip_frames']} frames, {film['size'][0]}x{film['size'][1]}, a key frame every "
        f"{film['gop']} frames, in order against the bare decoder and from anywhere, the fastest passes of one run; "
        f"`{data['command']}`, commit `{data['commit'][:10]}`, {data['machine']['processor']}, "
        f"{data['machine']['cores']} cores:",
        "",
        "| | bare decoder | in order, "
        + ", ".join("no worker" if n == 0 else f"{n} worker{'s' * (n > 1)}" for n in workers)
        + f" | random clips | memory, each 1,000 of {reads:,} random clips |",
        "|---|---|---|---|---|",
    ]
    for name, rows in data["backends"].items():
        shares = ", ".join(f"{100 * rows[way]['ratio_to_raw']:.0f} %" for way in ways)
        memory = data["memory"].get(name)
        lines.append(
            f"| {name} | {rows['raw_sequential']['frames_per_s']:.0f} frames/s | {shares} | "
            f"{rows['loader_random_workers_0']['frames_per_s']:.0f} frames/s | "
            + ("-" if memory is None else f"{round(memory['slope_mb_per_1000_reads'], 1) + 0.0:+.1f} MB")
            + " |"
        )
    return [*lines, ""]


def evaluation() -> list[str]:
    """Time and memory of the AP evaluators at the size of ImageNet VID val."""
    data = _read("evaluation")
    if data is None:
        return []
    faster = data["subset"]["times_faster"]
    return [
        f"**Scoring** {data['frames']:,} frames in {data['videos']} videos with {data['detections']:,} detections "
        f"(the size of ImageNet VID val, generated) by three AP evaluators with motion splits: "
        f"{data['total_seconds']:.0f} s, {data['peak_memory_gib']:.1f} GiB; the VID rules alone are "
        f"{faster['all']:.0f} times (with motion {faster['all_and_motion']:.0f} times) faster than a plain port; "
        f"`{data['command']}`, commit `{data['commit'][:10]}`, {data['machine']['cpu']}.",
        "",
    ]


def _times(row: dict) -> str:
    if "skipped" in row:
        return row["skipped"]
    if "forward_times_ours" not in row:
        return "-"
    return f"{row['forward_times_ours']:.1f}x, {row['both_times_ours']:.1f}x"


START, END = "<!-- measured -->", "<!-- /measured -->"
HEAD = """# Benchmarks

Every table is made by `python scripts/update_readme.py` from a JSON file under `benchmarks/`, which holds the command,
the commit and the machine. Times are medians; ratios compare figures of one run. Nothing here was measured on a GPU.

A table holds for the commit that it names. All but the toy benchmark's are older than today's code, and reading has
become slower since: without the shared-memory ring, one run on a busy machine gave 50 % of the bare decoder in order
with no worker and 31 % with one (72 % and 56 % with the ring, measured beside it).

"""


def updated(text: str) -> str:
    """The README ``text`` with the table between its marks made again."""
    if START not in text or END not in text:
        raise ValueError(f"the README has no {START} and {END}: put them where the table belongs")
    body = "\n".join([START, "", *toy(), END])
    return re.sub(f"{START}.*{END}", lambda _: body, text, flags=re.S)


def page() -> str:
    """The text of docs/benchmarks.md."""
    tables = [*toy(), *pets(), *drones(), *op(), *transformers(), *model(), *loader(), *evaluation()]
    return HEAD + "\n".join(tables).rstrip() + "\n"


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(updated(readme.read_text()))
    (ROOT / "docs" / "benchmarks.md").write_text(page())


if __name__ == "__main__":
    main()
