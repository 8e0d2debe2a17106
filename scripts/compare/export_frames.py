"""Frames of a CocoVID file as JPEG images with COCO annotations and ultralytics labels, to train other detectors on.

    python scripts/compare/export_frames.py --annotations data/drone_vid/train.json --output frames/train --every 5

Writes OUTPUT/<image id>.jpg, <image id>.txt (class, centre, size; normalised) and _annotations.coco.json.  Ignore
regions are left out, since these formats have none.  Needs opencv-python.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import cv2
import frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--root", type=Path, help="folder of the videos; default: the folder of the file")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="every n-th annotated frame of each video")
    given = parser.parse_args()
    if given.every < 1:
        raise ValueError(f"--every {given.every} must be at least 1")
    document = json.loads(given.annotations.read_text())
    number = {category["id"]: place for place, category in enumerate(document["categories"])}
    places: dict[int, int] = defaultdict(int)
    chosen = []
    for image in sorted(document["images"], key=lambda image: (image["video_id"], image["frame_id"])):
        if places[image["video_id"]] % given.every == 0:
            chosen.append(image)
        places[image["video_id"]] += 1
    boxes = defaultdict(list)
    for record in document["annotations"]:
        if not record.get("iscrowd") and not record.get("ignore"):
            boxes[record["image_id"]].append(record)
    given.output.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image, frame in frames.frames({**document, "images": chosen}, given.root or given.annotations.parent):
        height, width = frame.shape[:2]
        cv2.imwrite(str(given.output / f"{image}.jpg"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        images.append({"id": image, "file_name": f"{image}.jpg", "width": width, "height": height})
        annotations += boxes[image]
        lines = []
        for record in boxes[image]:
            x, y, w, h = record["bbox"]
            label = number[record["category_id"]]
            lines.append(
                f"{label} {(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f} {w / width:.6f} {h / height:.6f}"
            )
        (given.output / f"{image}.txt").write_text("\n".join(lines))
    coco = {"images": images, "annotations": annotations, "categories": document["categories"]}
    (given.output / "_annotations.coco.json").write_text(json.dumps(coco))
    print(f"{len(images)} images and {len(annotations)} boxes written to {given.output}")


if __name__ == "__main__":
    main()
