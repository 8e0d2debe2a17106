"""LV-VIS: YouTube-VIS files with 1196 classes (Wang et al., 2023); the training set is not exhaustively annotated."""

from __future__ import annotations

from typing import Any

from stdetr.datasets.converters.annotation_files import AnnotationFile
from stdetr.datasets.converters.record_store import Stored
from stdetr.datasets.converters.youtube_vis import YoutubeVisReader


class LvvisReader(YoutubeVisReader):
    """As YouTube-VIS.  Of a training video only the annotated classes are known to be there, and not even all their
    objects: they are its ``not_exhaustive_category_ids``, and no class is known to be absent.
    """

    def frame_name(self, name: str) -> str:
        # The published files hold Windows paths with the annotators' folders in front: video and frame are the end.
        return "/".join(name.split("\\")[-2:]) if "\\" in name else name

    def federation(self, file: AnnotationFile, stored: Stored, classes: set[int]) -> dict[str, Any]:
        known = super().federation(file, stored, classes)
        if known or file.split != "train":
            return known
        return {"neg_category_ids": [], "not_exhaustive_category_ids": sorted(classes)}
