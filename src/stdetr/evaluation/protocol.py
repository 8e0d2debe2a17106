"""The interface of the evaluators: their inputs and their results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from stdetr.evaluation.curve import MatchTable
from stdetr.evaluation.detections import BoundDetections
from stdetr.evaluation.ground_truth import GroundTruth
from stdetr.evaluation.tubes import TubeResults


@dataclass(frozen=True)
class Inputs:
    """The inputs of the evaluators.

    tubes: given by the user or built from ``track_id``; None when there are neither
    output_times: seconds from the start of its video at which the output for an image was ready, by image position
        (M float64, nan for frames that were never processed); None when latency is not known
    frame_rate: frames per second of each video (V float64); None when latency is not known
    """

    gt: GroundTruth
    detections: BoundDetections
    tubes: TubeResults | None = None
    output_times: np.ndarray | None = None
    frame_rate: np.ndarray | None = None


@dataclass
class Result:
    """The result of one evaluator.

    metrics:   short name (``AP50``) to a value, nan where not defined
    per_class: short name to one value per class, in the order of the categories, nan where not defined
    curves:    label to (recall, precision), each k float64, mean over classes
    details:   further JSON-able numbers (per video, per threshold, counts)
    undefined: why the metrics are not defined, one line; empty when they are
    note: where the numbers go beyond the public rules on these annotations, one line; empty when they do not
    """

    metrics: dict[str, float]
    per_class: dict[str, np.ndarray] = field(default_factory=dict)
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    undefined: str = ""
    note: str = ""


class Evaluator(ABC):
    """One evaluation protocol.

    name: prefix of its flat keys (``vid`` gives ``vid/AP50``)
    rule: one line for reports: which public code's numbers these are, and the conventions
    """

    name: ClassVar[str]
    rule: ClassVar[str]

    @abstractmethod
    def evaluate(self, inputs: Inputs) -> Result: ...

    def matches(self, inputs: Inputs) -> dict[str, MatchTable]:
        """Flat key (``coco/AP50``) to the matches behind it, which the bootstrap weighs video by video.

        Empty where nothing is defined, and for evaluators whose metrics cannot be computed from matches.
        """
        return {}
