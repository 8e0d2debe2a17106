"""From logits to tubes in source pixels.

Shape legend: B clips, Q tubes, T frames, N classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stdetr.models.boxes import to_xyxy
from stdetr.structures import ClipInfo, ModelOutput, Tubes


@torch.no_grad()
def to_tubes(
    output: ModelOutput,
    infos: Sequence[ClipInfo],
    top_k: int = 100,
    presence_threshold: float = 0.0,
) -> list[Tubes]:
    """The ``top_k`` best (tube, class) pairs of each clip.

    A frame's score is the geometric mean of the class scores of the tube and of its state on that frame: the first
    reflects the whole clip, the second how well this box fits.  With one frame it is the class score, as in Deformable
    DETR.  A tube is present on frames whose presence (after the sigmoid) reaches ``presence_threshold``.  One query may
    be reported under several classes, as in DETR's evaluation.
    Boxes: xyxy in pixels of ``info.source_size``, clipped to the frame.  Frames that only pad a clip are cut off.

    For a causal model all of this applies per frame, given the frames up to it: the best pairs are chosen per frame.
    Where a tube is not among them, it is not present and scores 0.  ``tube_scores`` are those of the last frame.
    """
    classes = output.frame_logits.shape[-1]
    of_frame = output.frame_logits.float().sigmoid()
    there = output.presence.float().sigmoid() >= presence_threshold
    results = []
    for i, info in enumerate(infos):
        frames = len(info.frame_index)
        height, width = info.source_size
        shown = output.logits[i] if output.logits.ndim == 3 else output.logits[i, :, :frames]
        if bool(torch.isnan(shown).any() | torch.isnan(output.boxes[i, :, :frames]).any()):
            raise ValueError(
                f"{info.video_name or 'clip'} frames {info.frame_index[0]}-{info.frame_index[-1]}: the output is NaN: "
                "are its weights finite, and does precision=fp32 help?"
            )
        score = output.logits[i].float().sigmoid()
        if score.ndim == 2:
            best, pair = score.flatten().topk(min(top_k, score.numel()))
            score, kept = best[:, None], torch.ones_like(best, dtype=torch.bool)[:, None]
        else:
            score = score[:, :frames].transpose(1, 2).flatten(0, 1)  # Q x N, T
            chosen = torch.zeros_like(score).scatter(0, score.topk(min(top_k, len(score)), dim=0).indices, 1.0)
            chosen = (chosen > 0) & (score > 0)  # 0: the tube has not begun
            pair = chosen.any(1).nonzero().flatten()
            pair = pair[score[pair, -1].argsort(descending=True, stable=True)]
            score, kept, best = score[pair], chosen[pair], score[pair, -1]
        tube, label = pair // classes, pair % classes
        scores = (score * of_frame[i, tube, :frames, label]).sqrt()
        scale = torch.tensor([width, height, width, height], dtype=torch.float32, device=score.device)
        boxes = torch.minimum((to_xyxy(output.boxes[i, tube, :frames].float()) * scale).clamp(min=0), scale)
        tubes = Tubes(
            boxes=boxes.cpu(),
            queries=tube.cpu(),
            scores=(scores * kept).cpu(),
            labels=label.cpu(),
            track_ids=torch.full(label.shape, -1),
            frame_index=torch.tensor(info.frame_index, dtype=torch.int64),
            tube_scores=best.cpu(),
            present=(there[i, tube, :frames] & kept).cpu(),
        )
        results.append(tubes)
    return results
