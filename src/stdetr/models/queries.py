"""Where tubes start: learned queries, or the best tokens of the clip linked through time.

Shape legend
    B clips, T frames, S tokens of a frame, M candidates of a frame, Q tubes, C width, N classes
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stdetr.models.heads import BoxHead, ClassHead
from stdetr.models.linking import Candidates, TubeLinker, distinct_boxes
from stdetr.models.neck import Tokens


@dataclass(frozen=True)
class DenseOutput:
    """Predictions per token: logits B,T,S,N; boxes B,T,S,4 cxcywh in [0,1] of the unpadded frame."""

    logits: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class Queries:
    """states B,Q,T,C; references B,Q,T,2|4 in [0,1]; position B,Q,T,C or None (computed from boxes); dense or None;
    exists B,Q,T bool, False on frames before a causal tube begins, None = every tube exists on all frames."""

    states: Tensor
    references: Tensor
    position: Tensor | None
    dense: DenseOutput | None
    exists: Tensor | None = None


class LearnedQueries(nn.Module):
    """The queries of Deformable DETR: content and position embeddings, reference points by a linear map of the latter.

    All frames of a clip start from the same point, which is causal in itself.
    """

    def __init__(self, *, width: int = 256, queries: int = 300) -> None:
        super().__init__()
        self.position = nn.Embedding(queries, width)
        self.content = nn.Embedding(queries, width)
        self.reference = nn.Linear(width, 2)
        nn.init.xavier_uniform_(self.reference.weight)
        nn.init.zeros_(self.reference.bias)

    def forward(self, memory_BTSC: Tensor, tokens: Tokens, frame_mask_BT: Tensor, index_BT: Tensor) -> Queries:
        clips, frames = memory_BTSC.shape[:2]

        def spread(x: Tensor) -> Tensor:
            return x[None, :, None].expand(clips, -1, frames, -1)

        points = self.reference(self.position.weight).float().sigmoid()
        return Queries(spread(self.content.weight), spread(points), spread(self.position.weight), None)


class TokenQueries(nn.Module):
    """Two-stage queries: every token proposes a class and a box; the best are linked into tubes.

    content: ``token`` initialises a tube's state on a frame from the feature of its token there, ``learned`` from an
        embedding (mixed query selection, DINO, Zhang et al. 2022)
    candidates: M, tokens per frame that linking considers: the best of the ``pool`` highest-scoring tokens, without
        those that overlap a better one by more than ``overlap`` (Dense Distinct Queries, Zhang et al. 2023)
    anchor: side of the reference box at the finest level, as a share of the frame; doubles with each level
    causal: a tube begins on the frame that first proposes it and depends on earlier frames only; up to ``queries``
        tubes begin on the first frame and up to ``births`` (default: a fifth of that) on each later one
    """

    def __init__(
        self,
        *,
        classes: int,
        width: int = 256,
        queries: int = 300,
        candidates: int = 100,
        pool: int = 300,
        overlap: float = 0.7,
        content: str = "token",
        anchor: float = 0.05,
        linker: TubeLinker | None = None,
        causal: bool = False,
        births: int | None = None,
    ) -> None:
        super().__init__()
        if content not in ("token", "learned"):
            raise ValueError(f"model.queries.content must be 'token' or 'learned', got {content!r}")
        self.project = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.class_head, self.box_head = ClassHead(width, classes), BoxHead(width)
        from_token = content == "token"
        self.content = nn.Linear(width, width) if from_token else None
        self.norm = nn.LayerNorm(width) if from_token else None
        self.embedding = None if from_token else nn.Embedding(queries, width)
        self.queries, self.candidates, self.anchor = queries, candidates, anchor
        self.pool, self.overlap = pool, overlap
        self.linker = TubeLinker() if linker is None else linker
        if self.linker.seeds < queries:
            raise ValueError(
                f"model.queries={queries} tubes need as many seeds, but model.detector.queries.linker.seeds="
                f"{self.linker.seeds}"
            )
        if candidates > pool:
            raise ValueError(f"model.detector.queries.candidates={candidates} are drawn from pool={pool}; raise pool")
        if births is not None and not (causal and births >= 1):
            raise ValueError(f"model.detector.queries.births={births} must be at least 1 and needs model.causal=true")
        self.causal, self.births = causal, max(1, queries // 5) if births is None else births

    def dense(self, memory_BTSC: Tensor, tokens: Tokens) -> tuple[Tensor, DenseOutput]:
        """Projected token features, B,T,S,C, and the predictions of each token."""
        features = self.project(memory_BTSC)
        side = (self.anchor * 2.0 ** tokens.levels.float()).clamp(max=0.9)
        anchors = torch.cat((tokens.centres, side[None, :, None].expand(tokens.centres.shape[0], -1, 2)), -1)
        boxes = self.box_head(features, anchors[:, None].expand(-1, features.shape[1], -1, -1)).sigmoid()
        return features, DenseOutput(self.class_head(features), boxes)

    @torch.no_grad()
    def _best_tokens(self, score_BTS: Tensor, boxes: Tensor) -> Tensor:
        """B,T,M token indices of each frame: the best tokens whose boxes are distinct (DDQ)."""
        pool = score_BTS.topk(min(self.pool, score_BTS.shape[-1]), dim=-1).indices
        boxes = boxes.float().gather(2, pool[..., None].expand(-1, -1, -1, 4))
        order = distinct_boxes(boxes.flatten(0, 1), self.overlap).view_as(pool)
        return pool.gather(2, order[..., : self.candidates])

    def forward(self, memory_BTSC: Tensor, tokens: Tokens, frame_mask_BT: Tensor, index_BT: Tensor) -> Queries:
        features, dense = self.dense(memory_BTSC, tokens)
        classes = dense.logits.float().sigmoid()
        score = classes.amax(-1).masked_fill(~tokens.valid[:, None], -1.0)
        best = self._best_tokens(score, dense.boxes.detach())  # B,T,M

        def take(x: Tensor) -> Tensor:
            return x.gather(2, best[..., None].expand(-1, -1, -1, x.shape[-1]))

        candidates = Candidates(
            boxes=take(dense.boxes),
            scores=score.gather(2, best).clamp(min=0),
            classes=take(classes),
            features=take(features),
            frame_mask=frame_mask_BT,
            frame_index=index_BT,
        )
        if self.causal:
            linked = self.linker.follow(candidates, self.queries, self.births)
        else:
            linked = self.linker(candidates, self.queries)
        tubes, frames = linked.scores.shape[1], memory_BTSC.shape[1]
        if self.content is not None and self.norm is not None:
            # Where the object is not seen, the state starts from the tube's mean over the (earlier) frames where it is.
            seen = torch.einsum("bptm,btmc->bptc", linked.assignment.to(features.dtype), candidates.features)
            share = linked.visible[..., None].to(features.dtype)
            if self.causal:
                past = torch.ones(frames, frames, dtype=seen.dtype, device=seen.device).tril()
                mean = (past @ seen) / (past @ share).clamp(min=1e-6)
            else:
                mean = seen.sum(2, keepdim=True) / share.sum(2, keepdim=True).clamp(min=1e-6)
            states = self.norm(self.content(seen + (1 - share) * mean))
        else:
            assert self.embedding is not None
            weight = self.embedding.weight[:tubes]
            if self.causal:
                # On every frame the best new tube starts from the first embedding.
                births = min(self.births, best.shape[2])
                first = weight[: tubes - (frames - 1) * births]
                weight = torch.cat((first, weight[:births].repeat(frames - 1, 1)))
            states = weight[None, :, None].expand(memory_BTSC.shape[0], -1, frames, -1)
        return Queries(states, linked.boxes.clamp(1e-4, 1 - 1e-4), None, dense, linked.exists)
