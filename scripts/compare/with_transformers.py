"""COCO results from RT-DETR, RT-DETRv2, D-FINE or RF-DETR in transformers, on the frames of a CocoVID file.

    python scripts/compare/with_transformers.py --annotations data/drone_vid/val.json --weights FOLDER --output out.json

FOLDER: what `save_pretrained` wrote for model and image processor.  Needs transformers, torch, opencv-python.
"""

from __future__ import annotations

import frames
import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModelForObjectDetection


def main() -> None:
    given = frames.options(__doc__)
    processor = AutoImageProcessor.from_pretrained(given.weights)
    model = AutoModelForObjectDetection.from_pretrained(given.weights).to(given.device).eval()
    names = model.config.id2label

    @torch.no_grad()
    def detect(frame: np.ndarray) -> frames.Boxes:
        inputs = processor(images=frame, return_tensors="pt").to(given.device)
        (found,) = processor.post_process_object_detection(
            model(**inputs), threshold=given.min_score, target_sizes=[frame.shape[:2]]
        )
        labels = [names[label] for label in found["labels"].tolist()]
        return found["boxes"].cpu().numpy(), found["scores"].cpu().numpy(), labels

    frames.write_results(given, detect)


if __name__ == "__main__":
    main()
