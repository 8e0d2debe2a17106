"""What ``stdetr`` can do: each verb, the module whose ``run(cfg)`` does it, and its one line of help."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig


@dataclass(frozen=True)
class Verb:
    """One verb: it composes ``conf/<name>.yaml`` and hands it to ``run`` of ``module``."""

    name: str
    module: str
    summary: str
    example: str
    inputs: tuple[str, ...] = ()
    """Keys that name something which must exist."""

    def load(self) -> Callable[[DictConfig], Any]:
        """The verb's ``run``, imported only now so that help and mistakes in overrides do not wait for torch."""
        return importlib.import_module(self.module).run


VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "train",
            "stdetr.engine.train",
            "train a detector",
            "experiment=toy output_dir=runs/a",
            ("init_from", "resume"),
        ),
        Verb(
            "eval",
            "stdetr.engine.evaluate",
            "evaluate a checkpoint on a data set",
            "checkpoint=runs/a data=toy",
            ("checkpoint", "annotations", "predictions", "tubes", "timestamps"),
        ),
        Verb(
            "predict",
            "stdetr.inference.predict",
            "detect and track in a video, a folder of frames or a glob",
            "checkpoint=runs/a source=street.mp4 output_dir=out",
            ("checkpoint", "source", "annotations"),
        ),
        Verb(
            "data",
            "stdetr.cli.data",
            "convert, validate, count or show a data set",
            "action=validate path=train.json",
            ("path", "source", "root"),
        ),
        Verb(
            "export",
            "stdetr.engine.export",
            "write a checkpoint as ONNX",
            "checkpoint=runs/a format=onnx",
            ("checkpoint",),
        ),
        Verb(
            "bench",
            "stdetr.bench",
            "measure the op, the model or the loader",
            "suite=op output=result.json",
            ("loader.video",),
        ),
        Verb("doctor", "stdetr.doctor", "tell whether this installation works, and what is missing", ""),
    )
}
