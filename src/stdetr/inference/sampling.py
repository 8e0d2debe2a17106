"""The sampling figure of one window of a video: where the detector sampled.

Shape legend
    Q tubes of the model     D detections of the video     T frames of a window
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from stdetr.inference.detector import Detector
from stdetr.inference.predictions import VideoPredictions
from stdetr.stitch.association import iou_per_frame
from stdetr.structures import ModelOutput
from stdetr.video.source import VideoSource
from stdetr.viz.sampling import sampling_figure
from stdetr.viz.style import track_colour


def can_record(detector: Detector) -> bool:
    """Whether the model can record where it sampled (dense attention samples nothing)."""
    return hasattr(detector.model, "record_sampling")


def most_confident_window(predictions: VideoPredictions, length: int, objects: int = 4) -> tuple[int, ...]:
    """The frames of the window of ``length`` frames with the largest sum of the ``objects`` best scores per frame."""
    frames = predictions.info.frame_index
    length = min(length, len(frames))
    place = np.searchsorted(np.asarray(frames), predictions.frame_index)
    # Detections of a frame are sorted by score, so the rank within the frame is the distance to its first row.
    first = np.searchsorted(place, np.arange(len(frames)))
    rank = np.arange(len(place)) - first[place]
    total = np.bincount(place, weights=predictions.scores * (rank < objects), minlength=len(frames))
    summed = np.convolve(total, np.ones(length), mode="valid")
    start = int(summed.argmax())
    return frames[start : start + length]


def draw_sampling(
    detector: Detector,
    video: VideoSource,
    frame_index: tuple[int, ...],
    path: str | Path,
    *,
    predictions: VideoPredictions | None = None,
    rows: int = 4,
    columns: int = 7,
    points: int = 256,
    dpi: int = 130,
) -> Path:
    """Run the detector on the frames again with recording on, and draw the ``rows`` most confident tubes.

    predictions: source of the track ids in the headings.  Raises ValueError when the model cannot record.
    """
    if not can_record(detector):
        raise ValueError(f"{type(detector.model).__name__} has no record_sampling: it has no sampled points to draw")
    frames = video.read(frame_index)
    batch = detector.batch(frame_index, frames, video)
    output, records = detector.model.record_sampling(batch.frames, batch.sizes, batch.frame_mask, batch.frame_index)  # pyright: ignore[reportCallIssue]
    chosen, scores, labels = most_confident_tubes(output, rows)
    middle = len(frame_index) // 2
    titles, colours = [], []
    for tube, score, label in zip(chosen, scores, labels, strict=True):
        name = f"{detector.classes.names[label]} {score:.2f}"
        track = _track_of(output.boxes[0, tube, middle].cpu(), video.size, predictions, frame_index[middle])
        titles.append(f"#{track} {name}" if track is not None else name)
        colours.append(track_colour(-1 if track is None else track))  # the colour that the overlay gives it
    first, last = frame_index[0], frame_index[-1]
    return sampling_figure(
        frames,
        records[0],
        path,
        tubes=chosen,
        titles=titles,
        colours=colours,
        boxes=output.boxes[0].float().cpu(),
        seen_from=middle,
        frame_index=frame_index,
        title=f"{Path(video.name).name}, frames {first} to {last}: where the most confident tubes sampled",
        points=points,
        columns=columns,
        dpi=dpi,
    )


def most_confident_tubes(
    output: ModelOutput, count: int, overlap: float = 0.5
) -> tuple[list[int], list[float], list[int]]:
    """Tubes of the first clip by descending class score x mean presence, with score and class; one per object.

    A tube that overlaps a more confident one (mean IoU over the frames of at least ``overlap``) is skipped.
    """
    score, label = output.clip_logits[0].float().sigmoid().max(-1)
    score = (score * output.presence[0].float().sigmoid().mean(-1)).cpu()
    boxes = box_convert(output.boxes[0].float().cpu(), "cxcywh", "xyxy")
    iou = iou_per_frame(boxes, boxes).mean(-1)  # Q,Q
    chosen: list[int] = []
    for tube in score.argsort(descending=True).tolist():
        if len(chosen) == count:
            break
        if (iou[tube, chosen] < overlap).all():
            chosen.append(tube)
    return chosen, [float(score[tube]) for tube in chosen], [int(label[tube]) for tube in chosen]


def _track_of(box: Tensor, size: tuple[int, int], predictions: VideoPredictions | None, frame: int) -> int | None:
    """The confirmed track whose box on ``frame`` is the given one (cxcywh in [0,1]), None where there is none."""
    if predictions is None:
        return None
    detections = predictions.on_frame(frame)
    kept = detections["track_ids"] >= 0
    if not kept.any():
        return None
    height, width = size
    pixel = box_convert(box.float()[None], "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
    iou = box_iou(pixel, torch.from_numpy(detections["boxes"][kept]))[0]
    best = int(iou.argmax())
    return int(detections["track_ids"][kept][best]) if float(iou[best]) >= 0.5 else None
