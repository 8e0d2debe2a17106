"""Videos in groups, such as the scenes they were filmed in, by a field of the annotation file's videos.

Shape legend
    V videos        G groups
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stdetr.evaluation.ground_truth import GroundTruth


@dataclass(frozen=True, repr=False)
class VideoGroups:
    """The groups of the videos by one field.

    names: G, sorted       group: V int64, position of each video's group
    main:  G int64, position of the class with the most boxes in the group; -1 where it has none
    """

    field: str
    names: tuple[str, ...]
    group: np.ndarray
    main: np.ndarray

    @classmethod
    def read(cls, gt: GroundTruth, field: str) -> VideoGroups:
        """By the field ``field`` of the videos; raises ValueError where a video has none."""
        values = gt.video_field(field)
        # Numbers by value, words by letter.
        names = sorted(set(values), key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
        place = {name: number for number, name in enumerate(names)}
        group = np.array([place[value] for value in values], np.int64)
        boxes = np.zeros((len(names), len(gt.category_ids)), np.int64)
        np.add.at(boxes, (group[gt.video[~gt.crowd]], gt.category[~gt.crowd]), 1)
        main = np.where(boxes.any(axis=1), boxes.argmax(axis=1) if boxes.shape[1] else -1, -1)
        return cls(field, tuple(names), group, main)

    def mask(self, name: str) -> np.ndarray:
        """V int64: 1 for the videos of a group, else 0."""
        return (self.group == self.names.index(name)).astype(np.int64)

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """V int64: how often each video counts in one bootstrap draw.

        Groups are drawn with replacement, as many as there are, separately among those with the same main class: every
        draw has as many groups of each class as the data.
        """
        times = np.zeros(len(self.names), np.int64)
        for main in np.unique(self.main):
            members = np.flatnonzero(self.main == main)
            np.add.at(times, members[generator.integers(len(members), size=len(members))], 1)
        return times[self.group]
