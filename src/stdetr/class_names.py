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

    def matched(self, known: ClassNames) -> ClassNames:
        """These names with the ids that ``known`` gives to equal names, case aside; names it lacks get ids below 0.

        Raises ValueError where no name is shared.
        """
        ids = {name.casefold(): number for name, number in zip(known.names, known.ids, strict=True)}
        found = ClassNames(
            tuple(ids.get(name.casefold(), -1 - place) for place, name in enumerate(self.names)), self.names
        )
        if self.names and max(found.ids) < 0:
            raise ValueError(
                f"the checkpoint knows the classes {', '.join(self.names)}, the data set has {', '.join(known.names)}: "
                "none has the same name"
            )
        return found
