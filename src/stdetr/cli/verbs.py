"""The verbs of ``stdetr``: the module with ``run(cfg)`` and one line of help for each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple


class Verb(NamedTuple):
    """One verb: it composes ``conf/<name>.yaml`` and hands it to ``run`` of ``module``.

    ``inputs`` are the keys that name files or checkpoints which must exist.
    """

    name: str
    module: str
    inputs: tuple[str, ...]
    summary: str
    example: str

    def load(self) -> Callable[[Any], Any]:
        """The verb's ``run``, imported only now so that help and mistakes in overrides do not wait for torch."""
        return importlib.import_module(self.module).run


_FILES = ("annotations", "predictions", "tubes", "timestamps")
VERBS = {
    verb.name: verb
    for verb in (
        Verb("train", "stdetr.engine.train", ("init_from", "resume"),
             "train a detector", "experiment=toy output_dir=runs/a"),
        Verb("eval", "stdetr.engine.evaluate", ("checkpoint", *_FILES),
             "evaluate a checkpoint on a data set", "checkpoint=runs/a data=toy"),
        Verb("predict", "stdetr.inference.predict", ("checkpoint", "source", "annotations"),
             "detect and track in a video, a folder of frames or a glob",
             "checkpoint=runs/a source=street.mp4 output_dir=out"),
        Verb("data", "stdetr.cli.data", ("path", "source", "root"),
             "convert, validate, count or show a data set", "action=validate path=train.json"),
        Verb("export", "stdetr.engine.export", ("checkpoint",),
             "write a checkpoint as ONNX", "checkpoint=runs/a format=onnx"),
        Verb("bench", "stdetr.bench", ("loader.video",),
             "measure the op, the model or the loader", "suite=op output=result.json"),
        Verb("doctor", "stdetr.doctor", (),
             "tell whether this installation works, and what is missing", ""),
    )
}  # fmt: skip
