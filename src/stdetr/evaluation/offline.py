"""``stdetr eval annotations=FILE predictions=FILE``: score any predictions, or compare two runs, without torch.

Keys of the configuration (all but ``annotations`` and ``predictions`` may be absent or null):
    annotations, predictions, tubes     files; predictions may be COCO results, MOT text or a column file
    output_dir                          ``<output_dir>/eval/`` gets metrics.json, report.json, report.md, figures
    evaluators                          list out of ``stdetr.evaluation.EVALUATORS``
    causal, seeds                       stated in the reports; null is reported as not stated
    timestamps | latency_ms, frame_rate for the streaming evaluator
    compare                             ``RUN_A,RUN_B``: bootstrap of the difference, in compare.json and compare.md
    bootstrap_draws                     1000
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stdetr.atomic import write_text
from stdetr.evaluation.compare import LEVEL, as_table, compare_runs, run_files
from stdetr.evaluation.evaluate import EVALUATORS, Evaluation, evaluate
from stdetr.evaluation.report import summary, write_json, write_reports


def run(cfg: Mapping[str, Any]) -> dict[str, float | None]:
    """Score or compare as ``cfg`` (a DictConfig or a dict) says, print the tables, write the reports.

    Returns the flat metrics (for ``compare``: ``compare/<metric>`` to the difference B - A).
    """
    if cfg.get("compare"):
        return _compare(cfg)
    return score_files(cfg)[0].flat()


def score_files(cfg: Mapping[str, Any]) -> tuple[Evaluation, list[Path]]:
    """Score the files that ``cfg`` names, print the tables, write the reports.

    Returns the evaluation, and the figures that were drawn.
    """
    evaluators = _names(cfg)
    for key in ("annotations", "predictions"):
        if not cfg.get(key):
            raise ValueError(f"{key} is not given: stdetr eval annotations=FILE predictions=FILE [tubes=FILE]")
    evaluation = evaluate(
        Path(str(cfg["annotations"])),
        Path(str(cfg["predictions"])),
        _path(cfg, "tubes"),
        evaluators=evaluators,
        causal=cfg.get("causal"),
        seeds=cfg.get("seeds"),
        timestamps=_path(cfg, "timestamps"),
        latency_ms=cfg.get("latency_ms"),
        frame_rate=cfg.get("frame_rate"),
    )
    print(summary(evaluation))
    output_dir = _path(cfg, "output_dir")
    if output_dir is None:
        return evaluation, []
    figures = write_reports(evaluation, output_dir)
    print(f"wrote {output_dir / 'eval' / 'metrics.json'}, report.json, report.md and figures")
    return evaluation, figures


def _path(cfg: Mapping[str, Any], key: str) -> Path | None:
    return Path(str(cfg[key])) if cfg.get(key) else None


def _names(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    value = cfg.get("evaluators")
    if value is None:
        return EVALUATORS
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else tuple(str(name) for name in value)


def _compare(cfg: Mapping[str, Any]) -> dict[str, float | None]:
    value = cfg["compare"]
    runs = value.split(",") if isinstance(value, str) else [str(run) for run in value]
    if len(runs) != 2:
        raise ValueError(f"compare={value} names {len(runs)} run(s); give two: compare=RUN_A,RUN_B")
    first, second = (Path(run.strip()) for run in runs)
    evaluators, draws = _names(cfg), int(cfg.get("bootstrap_draws") or 1000)
    differences = compare_runs((first, second), _path(cfg, "annotations"), evaluators, draws=draws)
    if not differences:
        raise ValueError(f"compare: no metric of evaluators {list(evaluators)} is defined for both runs")
    table = as_table(differences, (str(first), str(second)))
    print(table.markdown())
    output_dir = _path(cfg, "output_dir")
    if output_dir is not None:
        folder = output_dir / "eval"
        used = {}
        for name, path in (("A", first), ("B", second)):
            predictions, tubes, _ = run_files(path)
            used[name] = {"predictions": str(predictions), "tubes": None if tubes is None else str(tubes)}
        document = {"runs": used, "draws": draws, "level": LEVEL, "differences": [asdict(d) for d in differences]}
        write_json(folder / "compare.json", document)
        write_text(folder / "compare.md", table.markdown())
        print(f"wrote {folder / 'compare.json'} and compare.md")
    return {f"compare/{d.metric}": d.difference for d in differences}
