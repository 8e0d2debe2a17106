"""The classes of a model or data set, apart from the tensors: what only names classes need not load torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassNames:
    """The classes of a model or data set: contiguous index -> (category id of the annotation file, name)."""

    ids: tuple[int, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.names):
            raise ValueError(f"{len(self.ids)} category ids but {len(self.names)} names")

    def __len__(self) -> int:
        return len(self.ids)
