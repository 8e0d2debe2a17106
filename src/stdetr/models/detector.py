"""The clip-level detector: frames in, tubes out.

Shape legend
    B clips, T frames, h x w pixels of the padded frame, Q tubes, C width, S tokens of a frame, N classes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from stdetr.models.attention import Samples, STDeformableAttention
from stdetr.models.decoder import Decoder, DecoderState
from stdetr.models.denoising import TubeDenoising
from stdetr.models.encoder import Encoder
from stdetr.models.heads import ClassHead, ClipPool
from stdetr.models.neck import Neck
from stdetr.models.queries import DenseOutput, LearnedQueries, TokenQueries
from stdetr.structures import ClipTargets, ModelOutput, SamplingRecord


@dataclass(frozen=True)
class TubePrediction:
    """One layer's answer.  logits B,Q,N of the tube; frame_logits B,Q,T,N of its states one by one; boxes B,Q,T,4
    cxcywh in [0,1]; presence B,Q,T logits."""

    logits: Tensor
    frame_logits: Tensor
    boxes: Tensor
    presence: Tensor


@dataclass(frozen=True)
class TrainingOutput:
    """What the criterion needs: every layer's predictions of the matching and of the denoising queries, the dense
    predictions of the tokens with their valid mask (B,S) and centres (B,S,2), and the real frames (B,T)."""

    layers: tuple[TubePrediction, ...]
    denoising: tuple[TubePrediction, ...]
    denoising_track: Tensor | None
    denoising_positive: Tensor | None
    dense: DenseOutput | None
    token_valid: Tensor
    token_centres: Tensor
    frame_mask: Tensor


class ClipDetector(nn.Module):
    """Backbone per frame, spatio-temporal encoder, queries, tube decoder, heads.

    The parts are built elsewhere (Hydra ``_target_``) and handed in; ``neck`` may be a partial that still wants the
    backbone's ``channels``.  All parts must agree on width and levels.  T is arbitrary and may differ between calls.
    With T = 1 and learned queries the computation is Deformable DETR's.

    share_heads: one class head for all decoder layers (plain Deformable DETR) instead of one each
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        neck: Neck | Callable[..., Neck],
        encoder: Encoder,
        queries: LearnedQueries | TokenQueries,
        decoder: Decoder,
        classes: int,
        denoising: TubeDenoising | None = None,
        share_heads: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(neck, Neck):
            neck = neck(channels=backbone.channels)
        if neck.width != decoder.width:
            raise ValueError(f"model.neck.width={neck.width} but model.decoder.width={decoder.width}; make them equal")
        if isinstance(queries, LearnedQueries) and denoising is not None:
            raise ValueError(
                "model.detector.denoising starts from boxes, learned queries from points: "
                "set model.detector.denoising=null, or use TokenQueries"
            )
        if isinstance(queries, TokenQueries) and decoder.position_head is None:
            raise ValueError("model.detector.decoder.position=fixed needs LearnedQueries; set it to boxes")
        if not encoder.layers:
            neck.level_embed = None
        self.backbone, self.neck, self.encoder = backbone, neck, encoder
        self.queries, self.decoder, self.denoising = queries, decoder, denoising
        heads = 1 if share_heads else len(decoder.layers)
        self.class_heads = nn.ModuleList(ClassHead(neck.width, classes) for _ in range(heads))
        self.pools = nn.ModuleList(ClipPool(neck.width) for _ in range(heads))
        self.presence_head = nn.Linear(neck.width, 1)
        nn.init.zeros_(self.presence_head.weight)
        nn.init.constant_(self.presence_head.bias, 2.0)
        self.classes = classes

    def forward(
        self,
        frames: Tensor,
        sizes: Tensor | None = None,
        frame_mask: Tensor | None = None,
        frame_index: Tensor | None = None,
        targets: Sequence[ClipTargets] | None = None,
    ) -> ModelOutput:
        """
        frames: B,T,3,h,w float, normalised, zero on padding
        sizes: B,2 (h, w) unpadded; None = nothing is padded
        frame_mask: B,T bool, real frames; None = all
        frame_index: B,T source frame numbers; None = consecutive
        targets: only in training; adds denoising queries and fills ``losses_input``
        """
        if frames.ndim != 5 or frames.shape[2] != 3:
            raise ValueError(f"frames must have shape (B,T,3,h,w), got {tuple(frames.shape)}")
        clips, length, _, height, width = frames.shape
        device = frames.device
        if sizes is None:
            sizes = torch.tensor([[height, width]], device=device).expand(clips, -1)
        if frame_mask is None:
            frame_mask = torch.ones(clips, length, dtype=torch.bool, device=device)
        if frame_index is None:
            frame_index = torch.arange(length, device=device).expand(clips, -1)

        maps = self.backbone(rearrange(frames, "b t c h w -> (b t) c h w"))
        tokens = self.neck(maps, sizes, (height, width), clips)
        memory = self.encoder(tokens, frame_mask, frame_index)
        queries = self.queries(memory, tokens, frame_mask, frame_index)

        noised = None
        states, references, blocked = queries.states, queries.references, None
        if targets is not None and self.denoising is not None:
            noised = self.denoising(targets, states.shape[1])
            if noised is not None:
                states = torch.cat((noised.states.to(states.dtype), states), 1)
                references = torch.cat((noised.references, references), 1)
                blocked = noised.blocked
        layers = self.decoder(states, references, queries.position, memory, tokens, frame_mask, frame_index, blocked)
        extra = 0 if noised is None else noised.track.shape[1]
        if targets is None:
            last = self._predict(len(layers) - 1, layers[-1], frame_mask, slice(extra, None))
            return ModelOutput(last.logits, last.frame_logits, last.boxes, last.presence)
        matching = tuple(self._predict(i, s, frame_mask, slice(extra, None)) for i, s in enumerate(layers))
        denoising = ()
        if noised is not None:
            denoising = tuple(self._predict(i, s, frame_mask, slice(0, extra)) for i, s in enumerate(layers))
        training = TrainingOutput(
            layers=matching,
            denoising=denoising,
            denoising_track=None if noised is None else noised.track,
            denoising_positive=None if noised is None else noised.positive,
            dense=queries.dense,
            token_valid=tokens.valid,
            token_centres=tokens.centres,
            frame_mask=frame_mask,
        )
        last = matching[-1]
        return ModelOutput(last.logits, last.frame_logits, last.boxes, last.presence, training)

    def _predict(self, layer: int, state: DecoderState, frame_mask: Tensor, part: slice) -> TubePrediction:
        states = state.states[:, part]
        head = self.class_heads[layer if len(self.class_heads) > 1 else 0]
        pool = self.pools[layer if len(self.pools) > 1 else 0]
        frame_logits = head(states)
        logits = frame_logits[:, :, 0] if states.shape[2] == 1 else head(pool(states, frame_mask))
        presence = self.presence_head(states)[..., 0]
        return TubePrediction(logits.float(), frame_logits.float(), state.boxes[:, part], presence.float())

    @torch.no_grad()
    def record_sampling(
        self,
        frames: Tensor,
        sizes: Tensor | None = None,
        frame_mask: Tensor | None = None,
        frame_index: Tensor | None = None,
    ) -> tuple[ModelOutput, list[SamplingRecord]]:
        """The output and, for each clip, where the last decoder layer sampled.  Arguments as ``forward``."""
        attention = self.decoder.layers[-1].cross_attention
        assert isinstance(attention, STDeformableAttention)
        recorded: list[Samples] = []
        attention.recorder = recorded.append
        try:
            output = self(frames, sizes, frame_mask, frame_index)
        finally:
            attention.recorder = None
        length = frames.shape[1]
        mask = torch.ones(frames.shape[:2], dtype=torch.bool) if frame_mask is None else frame_mask.cpu()
        index = torch.arange(length).expand(len(frames), -1) if frame_index is None else frame_index.cpu()
        window = self.decoder.window_of(mask, index)
        records = []
        for i in range(len(frames)):
            locations, weights, reference = (
                rearrange(x[i], "(q t) ... -> q t ...", t=length).cpu()
                for x in (recorded[0].locations, recorded[0].weights, recorded[0].reference)
            )
            # The tube's box on a frame is the reference of the slot that samples this very frame.
            own = (window.frames[i] == torch.arange(length)[:, None]).int().argmax(-1)
            boxes = reference[:, torch.arange(length), own]
            if boxes.shape[-1] == 2:
                boxes = nn.functional.pad(boxes, (0, 2))
            records.append(SamplingRecord(locations=locations, weights=weights, frames=window.frames[i], boxes=boxes))
        return output, records
