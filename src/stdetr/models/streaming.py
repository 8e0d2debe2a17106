"""A causal detector on a video, frame by frame.

Shape legend: T frames of a window, S tokens of a frame, C width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stdetr.models.detector import ClipDetector
from stdetr.models.neck import Tokens
from stdetr.structures import ModelOutput


class CausalStream:
    """The output for each frame of a video as soon as it is read; it is final.

    Frames are read in windows of ``length``.  A window begins with the last ``overlap`` frames of the previous one, so
    that its first new frame has a past; the output for a frame equals one forward pass over the window up to it.
    Backbone and neck run before (``ClipDetector.features``), the encoder runs on each new frame; both results are kept
    for the current window only, which bounds the memory.
    """

    def __init__(self, model: ClipDetector, length: int, overlap: int) -> None:
        if not model.causal:
            raise ValueError("model.causal=false: this model also uses later frames and cannot run frame by frame")
        if not 0 <= overlap < length:
            raise ValueError(f"overlap={overlap} must lie in [0, length - 1] = [0, {length - 1}]")
        self.model, self.length, self.overlap = model, length, overlap
        self.index: list[int] = []
        self._tokens: list[Tokens] = []
        self._memory: Tensor | None = None  # 1,T,S,C
        self._past: list[Tensor] | None = None

    def push(self, tokens: Tokens, frame_index: int) -> ModelOutput:
        """Read one frame (tokens of one clip with T = 1) and return the output for its window so far, this frame last.

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

    def resume(self, frames: Sequence[tuple[Tokens, int]], count: int) -> None:
        """Go on after ``count`` frames of a video; frames: at least its last ``min(count, length)``."""
        windows = max(0, -(-(count - self.length) // (self.length - self.overlap)))
        for tokens, number in frames[len(frames) - (count - windows * (self.length - self.overlap)) :]:
            self._encode(tokens, number)

    def _encode(self, tokens: Tokens, number: int) -> Tensor:
        self.index.append(number)
        self._tokens.append(tokens)
        index = torch.tensor([self.index], device=tokens.features.device)
        memory, self._past = self.model.encoder.extend(tokens, index, self._past)
        self._memory = memory if self._memory is None else torch.cat((self._memory, memory), 1)
        return self._memory
