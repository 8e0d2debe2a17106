"""How much of a tube's attention does each frame get, and do degraded frames get less?

    python scripts/frame_shares.py checkpoint=RUN [split=test] [threshold=0.3] [output=FILE] [KEY=VALUE ...]

Takes the tubes whose best class score reaches ``threshold`` and the last decoder layer's weights on behalf of each
frame, averaged over heads and summed over the points of a sampled frame.  Which frames are degraded comes from the
annotations of the toy benchmark and is used for counting only.  Every other KEY=VALUE overrides the run's config.

Printed and written: the mean share of clean and degraded frames at each distance in time; ``ratio``, what degraded
frames get relative to what clean ones at the same distances would; ``spread``, the standard deviation over tubes of the
share of one frame on behalf of another, averaged over all such pairs.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stdetr.atomic import write_text
from stdetr.config import instantiate
from stdetr.inference.load import load_model
from stdetr.logger import git_revision
from stdetr.structures import SamplingRecord


def shares_of(record: SamplingRecord, tubes: Tensor) -> Tensor:
    """N,T,T: share of each frame (last axis) on behalf of each frame, for N tubes by index; NaN = not sampled."""
    weights = record.weights[tubes].sum((-1, -2)).mean(2)  # N,T,F
    length = record.frames.shape[0]
    shares = torch.full((len(tubes), length, length), torch.nan)
    for t, sampled in enumerate(record.frames.tolist()):
        for slot, f in enumerate(sampled):
            if f >= 0:
                shares[:, t, f] = weights[:, t, slot]
    return shares


def summarise(shares: Sequence[Tensor], degraded: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """Figures from each clip's ``shares`` N,T,T and its marks, one for each real frame."""
    length = max(len(m) for m in degraded)
    every = torch.full((sum(map(len, shares)), length, length), torch.nan)
    marks, row = torch.zeros(len(every), length, dtype=torch.bool), 0
    for s, m in zip(shares, degraded, strict=True):
        real = len(m)  # frames that pad a clip are left out
        every[row : row + len(s), :real, :real] = s[:, :real, :real]
        marks[row : row + len(s), :real] = torch.tensor(m)
        row += len(s)
    time = torch.arange(length)
    distance = (time[:, None] - time).abs()
    marked = marks[:, None].expand_as(every)
    clean: list[float | None] = []
    worse: list[float | None] = []
    actual = expected = 0.0
    for d in range(length):
        here = (distance == d) & every.isfinite()
        good, bad = every[here & ~marked], every[here & marked]
        clean.append(float(good.mean()) if len(good) else None)
        worse.append(float(bad.mean()) if len(bad) else None)
        if len(good) and len(bad):
            actual, expected = actual + float(bad.sum()), expected + len(bad) * float(good.mean())
    columns = [column[column.isfinite()] for column in every.flatten(1).T]
    spread = [float(column.std()) for column in columns if len(column) > 1]
    return {
        "tubes": len(every),
        "clean": clean,
        "degraded": worse,
        "ratio": actual / expected if expected else None,
        "spread": sum(spread) / len(spread) if spread else None,
    }


def main(arguments: list[str]) -> int:
    settings = {"checkpoint": "", "split": "test", "threshold": "0.3", "output": ""}
    overrides = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key in settings and equals:
            settings[key] = value
        else:
            overrides.append(argument)
    if not settings["checkpoint"]:
        print("error: checkpoint is not given: python scripts/frame_shares.py checkpoint=RUN", file=sys.stderr)
        return 2
    model, cfg, _ = load_model(settings["checkpoint"])
    cfg.merge_with_dotlist(overrides)
    data = instantiate(cfg.data)
    data.read(settings["split"])
    shares, degraded = [], []
    for batch in data.eval_loader(settings["split"]):
        batch = batch.normalised()
        output, records = model.record_sampling(  # pyright: ignore[reportCallIssue]
            batch.frames, batch.sizes, batch.frame_mask, batch.frame_index
        )
        score = output.logits.sigmoid().flatten(2).amax(-1)
        for record, one, info in zip(records, score, batch.infos, strict=True):
            shares.append(shares_of(record, (one >= float(settings["threshold"])).nonzero().flatten()))
            degraded.append(info.degraded)
    report = {
        "what": f"share of attention of clean and degraded frames by distance in time, {settings['split']} split",
        "command": "python scripts/frame_shares.py " + " ".join(arguments),
        "commit": git_revision(),
        "machine": f"{platform.machine()} CPU, {platform.system()}",
        **summarise(shares, degraded),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if settings["output"]:
        write_text(settings["output"], text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
