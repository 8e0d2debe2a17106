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
from stdetr.models.neck import Neck, Tokens
from stdetr.models.queries import DenseOutput, LearnedQueries, TokenQueries
from stdetr.structures import ClipTargets, ModelOutput, SamplingRecord

# Logit of a tube on frames before it begins: its sigmoid is 0, and so is its loss against "no object".
NEVER = -1e4


@dataclass(frozen=True)
class TubePrediction:
    """One layer's prediction.  logits B,Q,N per tube (causal: B,Q,T,N); frame_logits B,Q,T,N per frame state;
    boxes B,Q,T,4 cxcywh in [0,1]; presence B,Q,T logits; exists B,Q,T bool, False on frames before a causal tube
    begins, where all logits are ``NEVER`` and the box is undefined; None = every tube exists on all frames."""

    logits: Tensor
    frame_logits: Tensor
    boxes: Tensor
    presence: Tensor
    exists: Tensor | None = None


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

    The parts are built elsewhere (Hydra ``_target_``) and passed in; ``neck`` may be a partial that still needs the
    backbone's ``channels``.  All parts must agree on width and levels.  T is arbitrary and may differ between calls.
    With T = 1 and learned queries the computation is Deformable DETR's.

    share_heads: one class head for all decoder layers (plain Deformable DETR) instead of one per layer
    causal: the prediction for a frame does not depend on later frames; all parts must agree on it
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
        causal: bool = False,
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
        for name, part in (("encoder", encoder), ("queries", queries), ("decoder", decoder), ("denoising", denoising)):
            if getattr(part, "causal", causal) != causal:
                raise ValueError(f"model.{name}.causal={not causal} but model.causal={causal}; make them equal")
        if not encoder.layers:
            neck.level_embed = None
        self.causal = causal
        self.backbone, self.neck, self.encoder = backbone, neck, encoder
        self.queries, self.decoder, self.denoising = queries, decoder, denoising
        heads = 1 if share_heads else len(decoder.layers)
        self.class_heads = nn.ModuleList(ClassHead(neck.width, classes) for _ in range(heads))
        self.pools = nn.ModuleList(ClipPool(neck.width, causal) for _ in range(heads))
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
        return self.detect(self.features(frames, sizes), frame_mask, frame_index, targets)

    def features(self, frames: Tensor, sizes: Tensor | None = None) -> Tokens:
        """The tokens of each frame, from backbone and neck.  Arguments as ``forward``."""
        if frames.ndim != 5 or frames.shape[2] != 3:
            raise ValueError(f"frames must have shape (B,T,3,h,w), got {tuple(frames.shape)}")
        clips, _, _, height, width = frames.shape
        if sizes is None:
            sizes = torch.tensor([[height, width]], device=frames.device).expand(clips, -1)
        maps = self.backbone(rearrange(frames, "b t c h w -> (b t) c h w"))
        return self.neck(maps, sizes, (height, width), clips)

    def detect(
        self,
        tokens: Tokens,
        frame_mask: Tensor | None = None,
        frame_index: Tensor | None = None,
        targets: Sequence[ClipTargets] | None = None,
        memory: Tensor | None = None,
    ) -> ModelOutput:
        """The output for clips with these tokens.  Arguments as ``forward``; memory: the encoder's output for these
        tokens, B,T,S,C, if already computed."""
        clips, length = tokens.features.shape[:2]
        device = tokens.features.device
        if frame_mask is None:
            frame_mask = torch.ones(clips, length, dtype=torch.bool, device=device)
        if frame_index is None:
            frame_index = torch.arange(length, device=device).expand(clips, -1)
        if memory is None:
            memory = self.encoder(tokens, frame_mask, frame_index)
        queries = self.queries(memory, tokens, frame_mask, frame_index)

        noised = None
        states, references, exists, blocked = queries.states, queries.references, queries.exists, None
        if targets is not None and self.denoising is not None:
            noised = self.denoising(targets, states.shape[1])
            if noised is not None:
                states = torch.cat((noised.states.to(states.dtype), states), 1)
                references = torch.cat((noised.references, references), 1)
                blocked = noised.blocked
                if exists is not None and noised.exists is not None:
                    exists = torch.cat((noised.exists, exists), 1)
        layers = self.decoder(
            states, references, queries.position, memory, tokens, frame_mask, frame_index, blocked, exists
        )
        extra = 0 if noised is None else noised.track.shape[1]

        def predict(part: slice, first: int = 0) -> tuple[TubePrediction, ...]:
            there = None if exists is None else exists[:, part]
            return tuple(self._predict(i, layers[i], frame_mask, part, there) for i in range(first, len(layers)))

        if targets is None:
            (last,) = predict(slice(extra, None), len(layers) - 1)
            return ModelOutput(last.logits, last.frame_logits, last.boxes, last.presence)
        matching = predict(slice(extra, None))
        denoising = () if noised is None else predict(slice(0, extra))
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

    def _predict(
        self, layer: int, state: DecoderState, frame_mask: Tensor, part: slice, exists: Tensor | None
    ) -> TubePrediction:
        states = state.states[:, part]
        head = self.class_heads[layer if len(self.class_heads) > 1 else 0]
        pool = self.pools[layer if len(self.pools) > 1 else 0]
        frame_logits = head(states)
        if states.shape[2] == 1:
            logits = frame_logits if self.causal else frame_logits[:, :, 0]
        else:
            logits = head(pool(states, frame_mask, exists))
        presence = self.presence_head(states)[..., 0]
        logits, frame_logits, presence = logits.float(), frame_logits.float(), presence.float()
        if exists is not None:
            logits, frame_logits = (x.masked_fill(~exists[..., None], NEVER) for x in (logits, frame_logits))
            presence = presence.masked_fill(~exists, NEVER)
        return TubePrediction(logits, frame_logits, state.boxes[:, part], presence, exists)

    @torch.no_grad()
    def record_sampling(
        self,
        frames: Tensor,
        sizes: Tensor | None = None,
        frame_mask: Tensor | None = None,
        frame_index: Tensor | None = None,
    ) -> tuple[ModelOutput, list[SamplingRecord]]:
        """The output, and where the last decoder layer sampled in each clip.  Arguments as ``forward``."""
        attention = self.decoder.layers[-1].cross_attention
        assert isinstance(attention, STDeformableAttention)
        recorded: list[Samples] = []
        attention.recorder = recorded.append
        try:
            output = self(frames, sizes, frame_mask, frame_index)
        finally:
            attention.recorder = None
        length = frames.shape[1]
        samples = (getattr(recorded[0], name).cpu() for name in ("locations", "weights", "reference", "frames"))
        records = []
        for clip in zip(*samples, strict=True):
            locations, weights, reference, sampled = (rearrange(x, "(q t) ... -> q t ...", t=length) for x in clip)
            sampled = sampled.amax(0)  # T,F: tubes that have not begun sample none of them
            same_frame = (sampled == torch.arange(length)[:, None])[..., None]
            boxes = nn.functional.pad(reference, (0, 4 - reference.shape[-1]))
            records.append(SamplingRecord(locations, weights, sampled, torch.where(same_frame, boxes, 0.0).sum(2)))
        return output, records
