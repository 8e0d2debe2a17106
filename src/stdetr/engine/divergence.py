"""Steps without a finite gradient: they are skipped, counted and named; too many in a row end the run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from stdetr.engine import processes
from stdetr.structures import ClipInfo


class SkippedSteps:
    """Skips steps of ``model``: its weights and the statistics of its batch normalisation keep nothing of them.

    limit: so many steps in a row are skipped; one more, and the training has diverged
    total: of the whole run
    """

    def __init__(self, model: nn.Module, limit: int) -> None:
        self.limit, self.total, self.in_row = limit, 0, 0
        norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
        self._buffers = [buffer for module in norms for buffer in module.buffers()]
        self._before: list[Tensor] = []
        self._batches: list[tuple[Mapping[str, Tensor], Sequence[ClipInfo]]] = []
        self._last = ""

    def begin(self) -> None:
        """Before the first batch of a step."""
        self._before, self._batches = [buffer.clone() for buffer in self._buffers], []

    def saw(self, terms: Mapping[str, Tensor], clips: Sequence[ClipInfo]) -> None:
        """The loss terms of a batch of the step."""
        self._batches.append((terms, clips))

    def passed(self) -> None:
        """The step was made."""
        self.in_row = 0

    def skip(self, step: int) -> None:
        """Undo the step, and say what was wrong with which clips."""
        for buffer, before in zip(self._buffers, self._before, strict=True):
            buffer.copy_(before)
        self.total, self.in_row = self.total + 1, self.in_row + 1
        found = False
        for terms, clips in self._batches:
            wrong = [name for name, value in terms.items() if not torch.isfinite(value)]
            if wrong:
                found = True
                self._tell(step, f"loss not finite ({', '.join(wrong)})", clips)
        if not found and processes.count() == 1:
            self._tell(step, "gradient not finite", [info for _, clips in self._batches for info in clips])

    def _tell(self, step: int, what: str, clips: Sequence[ClipInfo]) -> None:
        names = ", ".join(f"{info.video_name} frames {_span(info.frame_index)}" for info in clips)
        self._last = f"{what} on {names}"
        count = f"{self.in_row} in a row, {self.total} in all; trainer.max_skips={self.limit}"
        print(f"step {step + 1} skipped ({count}): {self._last}", file=sys.stderr, flush=True)

    def check(self) -> None:
        """Raise FloatingPointError where the training has diverged."""
        if self.in_row > self.limit:
            last = self._last or "loss not finite in another process"
            raise FloatingPointError(
                f"training has diverged: {self.in_row} steps in a row were skipped, the last with {last}; lower "
                "optim.lr or look at these clips (the weights before them are saved)"
            )


def _span(frames: Sequence[int]) -> str:
    return str(frames[0]) if len(frames) == 1 else f"{frames[0]}-{frames[-1]}"
