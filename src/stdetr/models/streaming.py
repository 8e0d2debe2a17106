"""A causal detector on a video, frame by frame.

Shape legend: T frames of a window, S tokens of a frame, C width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from stdetr.models.detector import ClipDetector
from stdetr.models.neck import Tokens
from stdetr.structures import ModelOutput


class CausalStream:
    """What the frames of a video show, each as soon as it is read, for good.

    Frames are read in windows of ``length``.  A window begins with the last ``overlap`` frames of the one before, so
    that its first new frame has a past, and what is said of a frame is what one pass over the window up to it says.
    Backbone and neck have run before (``ClipDetector.features``), the encoder runs on each frame as it comes; both are
    kept for the window, the only memory there is.
    """

    def __init__(self, model: ClipDetector, length: int, overlap: int) -> None:
        if not model.causal:
            raise ValueError(
                "model.causal=false: this model also looks at later frames and cannot answer frame by frame"
            )
        if not 0 <= overlap < length:
            raise ValueError(f"overlap={overlap} must lie in [0, length - 1] = [0, {length - 1}]")
        self.model, self.length, self.overlap = model, length, overlap
        self.index: list[int] = []
        self._tokens: list[Tokens] = []
        self._memory: Tensor | None = None  # 1,T,S,C
        self._past: list[Tensor] | None = None

    def push(self, tokens: Tokens, frame_index: int) -> ModelOutput:
        """Read one frame (tokens of one clip with T = 1) and return what its window shows so far, this frame last.

        ``index`` tells which frames those are.
        """
        if len(self.index) == self.length:
            first = self.length - self.overlap
            frames = list(zip(self._tokens[first:], self.index[first:], strict=True))
            self.index, self._tokens, self._memory, self._past = [], [], None, None
            for earlier, number in frames:
                self._encode(earlier, number)
        memory = self._encode(tokens, frame_index)
        numbers = torch.tensor([self.index], device=memory.device)
        return self.model.detect(replace(tokens, features=memory), frame_index=numbers, memory=memory)

    def _encode(self, tokens: Tokens, number: int) -> Tensor:
        self.index.append(number)
        self._tokens.append(tokens)
        index = torch.tensor([self.index], device=tokens.features.device)
        memory, self._past = self.model.encoder.extend(tokens, index, self._past)
        self._memory = memory if self._memory is None else torch.cat((self._memory, memory), 1)
        return self._memory
