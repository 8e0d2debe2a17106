"""COCO results from RF-DETR (package rfdetr), on the frames of a CocoVID file.

    python scripts/compare/with_rfdetr.py --annotations data/drone_vid/val.json --weights checkpoint_best_total.pth \
        --output out.json

Needs rfdetr, which brings torch, and opencv-python.  The weights are those of its `train`, whose class names they hold.
"""

from __future__ import annotations

import frames
import numpy as np
from rfdetr import RFDETR  # pyright: ignore[reportMissingImports]


def main() -> None:
    given = frames.options(__doc__)
    model = RFDETR.from_checkpoint(given.weights)

    def detect(frame: np.ndarray) -> frames.Boxes:
        found = model.predict(frame, threshold=given.min_score, include_source_image=False)
        return found.xyxy, found.confidence, [str(name) for name in found.data["class_name"]]

    frames.write_results(given, detect)


if __name__ == "__main__":
    main()
