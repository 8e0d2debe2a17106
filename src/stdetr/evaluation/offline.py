"""``stdetr eval annotations=FILE predictions=FILE``: score any predictions, or compare two runs, without torch.

Keys of the configuration (all but ``annotations`` and ``predictions`` may be absent or null):
    annotations, predictions, tubes     files; predictions may be COCO results, MOT text or a column file
    output_dir                          ``<output_dir>/eval/`` gets metrics.json, report.json, report.md, figures
    evaluators                          list out of ``stdetr.evaluation.EVALUATORS``
    rescore                             ``tracks``: scores are averaged along tracks first, joined by evaluation.stitch
    causal, seeds                       stated in the reports; null is reported as not stated
    timestamps | latency_ms, frame_rate for the streaming evaluator
    compare                             ``RUN_A,RUN_B``: bootstrap of the difference, in compare.json and compare.md
    bootstrap_draws                     1000
    evaluation.group, evaluation.by     fields of videos: drawn whole by compare; AP50 is split by
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from stdetr.atomic import write_text
from stdetr.evaluation.compare import LEVEL, as_tables, compare_runs, run_files
from stdetr.evaluation.detections import Detections
from stdetr.evaluation.evaluate import EVALUATORS, Evaluation, evaluate
from stdetr.evaluation.ground_truth import GroundTruth
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
    annotations, predictions = Path(str(cfg["annotations"])), Path(str(cfg["predictions"]))
    rescore = check_rescore(cfg.get("rescore"))
    if rescore and cfg.get("causal"):
        raise ValueError("rescore=tracks uses the whole video, so causal=true would be wrong: leave one of them out")
    gt = GroundTruth.from_coco(annotations)
    detections = Detections.load(predictions, gt)
    evaluation = evaluate(
        gt,
        rescored(detections, gt, cfg.get("evaluation")) if rescore else detections,
        _path(cfg, "tubes"),
        evaluators=evaluators,
        causal=cfg.get("causal"),
        seeds=cfg.get("seeds"),
        timestamps=_path(cfg, "timestamps"),
        latency_ms=cfg.get("latency_ms"),
        frame_rate=cfg.get("frame_rate"),
        by=list((cfg.get("evaluation") or {}).get("by") or ()),
    )
    sources = {**evaluation.sources, "annotations": str(annotations), "predictions": str(predictions)}
    evaluation = replace(evaluation, sources=sources | ({"rescored": rescore} if rescore else {}))
    print(summary(evaluation))
    output_dir = _path(cfg, "output_dir")
    if output_dir is None:
        return evaluation, []
    figures = write_reports(evaluation, output_dir)
    print(f"wrote {output_dir / 'eval' / 'metrics.json'}, report.json, report.md and figures")
    return evaluation, figures


def check_rescore(value: Any) -> str | None:
    """The key ``rescore``: None or ``tracks``."""
    if value not in (None, "tracks"):
        raise ValueError(f"rescore={value} must be tracks (scores averaged along tracks) or null")
    return value


def rescored(detections: Detections, gt: GroundTruth, settings: Mapping[str, Any] | None) -> Detections:
    """``detections`` with scores averaged along the tracks that the stitcher makes of them.

    settings: the config node ``evaluation``, for its ``stitch``; None takes the default rules
    """
    # These need torch, and nothing else here does.
    from stdetr.stitch.association import StitchRules
    from stdetr.stitch.rescoring import rescore_tracks

    bound = detections.bind(gt)
    scores = rescore_tracks(
        video=gt.image_video[bound.image],
        frame=gt.frame_ids[bound.image],
        label=bound.category,
        boxes=bound.boxes,
        scores=bound.scores,
        rules=StitchRules(**dict(settings["stitch"])) if settings else None,
    )
    return replace(detections, scores=scores)


def _path(cfg: Mapping[str, Any], key: str) -> Path | None:
    return Path(str(cfg[key])) if cfg.get(key) else None


def _names(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    value = cfg.get("evaluators")
    if value is None:
        return EVALUATORS
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else tuple(str(name) for name in value)


def _compare(cfg: Mapping[str, Any]) -> dict[str, float | None]:
    value = cfg["compare"]
    if check_rescore(cfg.get("rescore")):
        raise ValueError("compare takes predictions as they are: run eval with rescore=tracks into a folder first")
    runs = value.split(",") if isinstance(value, str) else [str(run) for run in value]
    if len(runs) != 2:
        raise ValueError(f"compare={value} names {len(runs)} run(s); give two: compare=RUN_A,RUN_B")
    first, second = (Path(run.strip()) for run in runs)
    evaluators, draws = _names(cfg), int(cfg.get("bootstrap_draws") or 1000)
    settings = cfg.get("evaluation") or {}
    group, by = settings.get("group"), list(settings.get("by") or ())
    found = compare_runs((first, second), _path(cfg, "annotations"), evaluators, draws=draws, group=group, by=by)
    differences = found.differences
    if not differences:
        raise ValueError(f"compare: no metric of evaluators {list(evaluators)} is defined for both runs")
    text = "\n".join(table.markdown() for table in as_tables(found, (str(first), str(second))))
    print(text)
    output_dir = _path(cfg, "output_dir")
    if output_dir is not None:
        folder = output_dir / "eval"
        used = {}
        for name, path in (("A", first), ("B", second)):
            predictions, tubes, _ = run_files(path)
            used[name] = {"predictions": str(predictions), "tubes": None if tubes is None else str(tubes)}
        document = {"runs": used, "draws": draws, "level": LEVEL, **asdict(found)}
        write_json(folder / "compare.json", document)
        write_text(folder / "compare.md", text)
        print(f"wrote {folder / 'compare.json'} and compare.md")
    return {f"compare/{d.metric}": d.difference for d in differences}
