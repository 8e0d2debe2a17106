"""``stdetr data action=convert|validate|stats|show``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from stdetr.names import did_you_mean

ACTIONS = ("convert", "validate", "stats", "show")


def run(cfg: DictConfig) -> int:
    """Do what ``cfg.action`` says; returns the exit code (1 when ``validate`` finds violations).

    Raises:
        ValueError: unknown action, missing key, malformed input.
        FileNotFoundError: a missing file.
    """
    keys = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(keys, dict)
    action = keys.get("action")
    if action not in ACTIONS:
        raise ValueError(f"action={action} is not one of {', '.join(ACTIONS)}{did_you_mean(str(action), ACTIONS)}")
    return {"convert": _convert, "validate": _validate, "stats": _stats, "show": _show}[action](keys)


def _need(keys: Mapping[Any, Any], name: str, example: str) -> str:
    value = keys.get(name)
    if value in (None, "", "???"):
        raise ValueError(f"{name} is missing: action={keys['action']} needs {name}={example}")
    return str(value)


def _convert(keys: Mapping[Any, Any]) -> int:
    from stdetr.datasets.converters.convert import convert

    output = Path(_need(keys, "output", "FOLDER"))
    counts, problems = convert(
        _need(keys, "format", "mot"),
        _need(keys, "source", "FOLDER"),
        output,
        strict=bool(keys.get("strict", True)),
        link=str(keys.get("link", "auto")),
        follow_links=bool(keys.get("follow_links", False)),
        splits=keys.get("splits"),
        options={name: keys[name] for name in _OPTION_KEYS if name in keys},
    )
    columns = ("videos", "images", "boxes", "ignore", "tracks", "clipped", "outside")
    print(f"{'file':<16}" + "".join(f"{column:>10}" for column in columns))
    for split, count in counts.items():
        values = (count.videos, count.images, count.boxes, count.ignore_regions)
        values += (count.tracks, count.clipped, count.outside)
        print(f"{split + '.json':<16}" + "".join(f"{value:>10}" for value in values))
    for what, number in sorted(problems.notes.items()):
        print(f"{number} {what}")
    if problems.skipped:
        print(f"skipped {problems.skipped} malformed records, listed in {output / 'skipped.txt'}; the first:")
        for line in problems.first:
            print(f"  {line}")
    print(f"written to {output}")
    if keys.get("link") == "none":
        print(f"frames stay where they are: data.root={keys['source']} data.train={output.resolve() / 'train.json'}")
    return 0


_OPTION_KEYS = ("classes", "video", "annotations", "split", "frame_size", "check_media", "frames", "det")


def _validate(keys: Mapping[Any, Any]) -> int:
    from stdetr.datasets.validate import Validation

    root = keys.get("root")
    validation = Validation(
        Path(_need(keys, "path", "FILE.json")),
        root=None if root is None else Path(root),
        check_media=bool(keys.get("check_media", True)),
    )
    for violation in validation.violations():
        print(violation)
    print(validation.summary)
    return 1 if validation.found else 0


def _stats(keys: Mapping[Any, Any]) -> int:
    from stdetr.datasets.stats import measure, plot, table

    path = Path(_need(keys, "path", "FILE.json"))
    statistics = measure(path)
    output = Path(str(keys.get("output") or path.with_name(f"{path.stem}.stats.png")))
    print(table(statistics))
    print(f"figure: {plot(statistics, output)}")
    return 0


def _show(keys: Mapping[Any, Any]) -> int:
    from stdetr.viz.annotations import show

    path = Path(_need(keys, "path", "FILE.json"))
    output = Path(str(keys.get("output") or path.with_name(f"{path.stem}.show")))
    written = show(
        path,
        output,
        root=keys.get("root"),
        videos=keys.get("videos"),
        max_frames=keys.get("max_frames"),
    )
    for video in written:
        print(video)
    return 0
