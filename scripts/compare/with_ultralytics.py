"""COCO results from an ultralytics detector (YOLO26, YOLO11, RT-DETR, ...), on the frames of a CocoVID file.

    python scripts/compare/with_ultralytics.py --annotations data/drone_vid/val.json --weights best.pt --output out.json

Needs ultralytics (AGPL-3.0), which brings torch and opencv-python.
"""

from __future__ import annotations

import frames
import numpy as np
from ultralytics import RTDETR, YOLO  # pyright: ignore[reportMissingImports]


def main() -> None:
    given = frames.options(__doc__)
    model = (RTDETR if "rtdetr" in given.weights.lower() else YOLO)(given.weights)

    def detect(frame: np.ndarray) -> frames.Boxes:
        # Arrays are taken as BGR.
        (found,) = model.predict(
            np.ascontiguousarray(frame[..., ::-1]), imgsz=given.size, conf=given.min_score, max_det=100,
            device=given.device, verbose=False,
        )  # fmt: skip
        boxes = found.boxes
        labels = [found.names[int(label)] for label in boxes.cls.tolist()]
        return boxes.xyxy.cpu().numpy(), boxes.conf.cpu().numpy(), labels

    frames.write_results(given, detect)


if __name__ == "__main__":
    main()
