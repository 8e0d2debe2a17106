"""Composing ``conf/<verb>.yaml`` with its groups and the user's overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from stdetr.config.folder import compose_raw, config_dir, list_groups
from stdetr.config.mistakes import explain
from stdetr.config.values import check_values, parse, single_values


def compose(
    verb: str,
    overrides: Sequence[str] = (),
    *,
    folder: Path | str | None = None,
    with_hydra: bool = False,
) -> DictConfig:
    """The configuration of one run of ``verb``.

    Args:
        verb: name of a file of the configuration folder without its extension: ``train``, ``eval``, ...
        overrides: Hydra overrides, ``key=value``, ``group=option``, ``+new.key=value``, ``~key``.
        folder: configuration folder; default ``config_dir()``.
        with_hydra: keep the ``hydra`` node (where a sweep writes, which launcher it uses).

    Raises:
        ValueError: an override that is malformed, names no key or option, or has a value of the wrong type.
    """
    root = Path(folder).resolve() if folder is not None else config_dir()
    if not (root / f"{verb}.yaml").is_file():
        raise ValueError(f"{root / verb}.yaml does not exist, so there is nothing to configure '{verb}' with")
    try:
        cfg = compose_raw(verb, overrides, root, with_hydra=with_hydra)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra raises a few plain ValueErrors
        raise ValueError(explain(error, verb, overrides, root)) from error
    check_values(verb, overrides, root)
    return cfg


def compose_sweep(verb: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration, ``hydra`` node included, of the first job of a sweep, after checking all its values.

    Raises:
        ValueError: as ``compose``, also for a mistake in a later value.
    """
    folder = config_dir()
    items, groups = parse(overrides), list_groups(folder)
    values = [single_values(item, groups) for item in items]
    first = [texts[0] for texts in values]
    for place, texts in enumerate(values):
        for text in texts[1:]:
            compose(verb, [*first[:place], text, *first[place + 1 :]])
    cfg = compose(verb, first, with_hydra=True)
    check_values(verb, overrides, folder)
    return cfg
