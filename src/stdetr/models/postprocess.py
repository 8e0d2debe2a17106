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
    score_threshold: float = 0.0,
    presence: float = 0.0,
) -> list[Tubes]:
    """The ``top_k`` best (tube, class) pairs of each clip.

    A frame's score is the geometric mean of the class scores of the tube and of its state on that frame: the one knows
    the whole clip, the other how well this box fits.  With one frame it is the class score, as in Deformable DETR.  A
    tube is kept when its best frame reaches ``score_threshold``, and is present on the frames whose presence (after the
    sigmoid) reaches ``presence``.  One query may be reported under several classes, as DETR evaluation does.
    Boxes: xyxy in pixels of ``info.source_size``, clipped to the frame.  Frames that only pad a clip are cut off.
    """
    score = output.logits.float().sigmoid()
    clips, queries, classes = score.shape
    count = min(top_k, queries * classes)
    best, flat = score.flatten(1).topk(count, dim=1)
    tube, label = flat // classes, flat % classes
    of_frame = output.frame_logits.float().sigmoid()
    there = output.presence.float().sigmoid() >= presence
    results = []
    for i, info in enumerate(infos):
        frames = len(info.frame_index)
        height, width = info.source_size
        scale = torch.tensor([width, height, width, height], dtype=torch.float32, device=score.device)
        boxes = to_xyxy(output.boxes[i, tube[i], :frames].float()) * scale
        boxes = torch.minimum(boxes.clamp(min=0), scale)
        per_frame = (best[i][:, None] * of_frame[i, tube[i], :frames, label[i]]).sqrt()
        tubes = Tubes(
            boxes=boxes.cpu(),
            scores=per_frame.cpu(),
            labels=label[i].cpu(),
            track_ids=torch.full((count,), -1),
            frame_index=torch.tensor(info.frame_index, dtype=torch.int64),
            tube_scores=best[i].cpu(),
            present=there[i, tube[i], :frames].cpu(),
        )
        results.append(tubes.select(tubes.scores.amax(1) >= score_threshold) if score_threshold > 0 else tubes)
    return results
