"""A small builder of CocoVID documents and COCO results."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest


class Scene:
    """``Scene(lengths=[3, 2], classes=2)``: videos 1, 2, ... with frames from 0; image ids 1, 2, ... in that order."""

    def __init__(self, lengths: list[int], classes: int = 1) -> None:
        self.videos = [
            {"id": v, "name": f"vid{v}", "width": 200, "height": 200, "length": n} for v, n in enumerate(lengths, 1)
        ]
        frames = [(v["id"], f) for v in self.videos for f in range(v["length"])]
        self.images: list[dict[str, Any]] = [
            {"id": i, "video_id": v, "frame_id": f, "width": 200, "height": 200} for i, (v, f) in enumerate(frames, 1)
        ]
        self.categories = [{"id": c, "name": f"class{c}"} for c in range(1, classes + 1)]
        self.annotations: list[dict[str, Any]] = []
        self.predictions: list[dict[str, Any]] = []

    def truth(self, image: int, box: list[float], category: int = 1, instance: int | None = 1, **more: Any) -> None:
        record = {
            "id": len(self.annotations) + 1,
            "image_id": image,
            "video_id": self.images[image - 1]["video_id"],
            "category_id": category,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        if instance is not None:
            record["instance_id"] = instance
        self.annotations.append(record | more)

    def found(self, image: int, box: list[float], score: float, category: int = 1, track: int | None = None) -> None:
        record = {"image_id": image, "category_id": category, "bbox": box, "score": score}
        self.predictions.append(record | ({} if track is None else {"track_id": track}))

    @property
    def document(self) -> dict[str, Any]:
        names = ("videos", "images", "annotations", "categories")
        return {name: getattr(self, name) for name in names}


def random_scene(seed: int, *, crowd: bool = False, copies: int = 2) -> Scene:
    """Two or three short videos, moving tracks of three classes, ``copies`` noisy detections of each, some strays."""
    rng = np.random.default_rng(seed)
    scene = Scene(rng.integers(1, 9, rng.integers(2, 4)).tolist(), classes=3)
    for video in scene.videos:
        images = [image for image in scene.images if image["video_id"] == video["id"]]
        for instance in range(1, rng.integers(2, 4)):
            box, kind = rng.integers([0, 0, 8, 8], [120, 120, 60, 60]), int(rng.integers(1, 4))
            hidden = bool(crowd and rng.random() < 0.3)
            step = rng.integers(-3, 4, 2) * int(rng.choice([0, 1, 4]))
            for image in images:
                if rng.random() < 0.85:
                    here = [*(box[:2] + step * image["frame_id"]).tolist(), *box[2:].tolist()]
                    scene.truth(image["id"], here, kind, instance, iscrowd=int(hidden))
                    for copy in range(copies):
                        noise = rng.normal(scale=0.08 * box[2:].mean(), size=4)
                        near = np.maximum(np.array(here) + noise, [-1e3, -1e3, 1, 1])
                        right = kind if rng.random() < 0.9 else int(rng.integers(1, 4))
                        track = None if copy else instance
                        scene.found(image["id"], near.tolist(), float(rng.random()), right, track)
        for image in images:
            if rng.random() < 0.3:
                scene.found(image["id"], [float(v) for v in rng.uniform(5, 90, 4)], float(rng.random()))
    if not scene.annotations:
        scene.truth(1, [10, 10, 20, 20])
    return scene


@pytest.fixture(scope="session")
def new_scene() -> type[Scene]:
    return Scene


@pytest.fixture(scope="session")
def make_random_scene():
    return random_scene


def library_coco(scene: Scene, library: str) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """What pycocotools or faster-coco-eval says of a scene: the twelve numbers (nan where it says -1), AP of each class
    and IoU threshold (C,10), and the precision at IoU 0.5 (101 recall points), mean over the classes with objects."""
    if library == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        COCO = pytest.importorskip("faster_coco_eval").COCO
        COCOeval = pytest.importorskip("faster_coco_eval").COCOeval_faster
    with contextlib.redirect_stdout(io.StringIO()):
        truth, found = COCO(), COCO()
        crowd = [record | {"iscrowd": record["iscrowd"] or record.get("ignore", 0)} for record in scene.annotations]
        area = [p | {"area": p["bbox"][2] * p["bbox"][3], "iscrowd": 0} for p in scene.predictions]
        for data_set, records in ((truth, crowd), (found, area)):
            # An annotation whose id is 0 would count as unmatched.
            numbered = [record | {"id": number} for number, record in enumerate(records, 1)]
            data_set.dataset = {"images": scene.images, "categories": scene.categories, "annotations": numbered}
            data_set.createIndex()
        run = COCOeval(truth, found, iouType="bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    names = [
        "AP",
        "AP50",
        "AP75",
        "AP_small",
        "AP_medium",
        "AP_large",
        "AR1",
        "AR10",
        "AR100",
        "AR_small",
        "AR_medium",
        "AR_large",
    ]
    precision = np.array(run.eval["precision"])[..., 0, -1]  # T,R,C
    precision = np.where(precision < 0, np.nan, precision)
    ap = precision.mean(axis=1).T
    stats = {name: np.nan if value < 0 else float(value) for name, value in zip(names, run.stats, strict=False)}
    return stats, ap, np.nanmean(precision[0], axis=1)


@pytest.fixture(scope="session")
def coco_oracle():
    return library_coco
