"""Composing ``conf/<verb>.yaml`` with its groups and the user's overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from stdetr.config.folder import compose_raw, config_dir, list_groups
from stdetr.config.overrides import Overrides, one_line

_ERRORS = (HydraException, OmegaConfBaseException, ValueError)  # Hydra raises a few plain ValueErrors


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
    given = Overrides(overrides, root, list_groups(root))
    if given.named:
        _check(verb, given)
    try:
        return compose_raw(verb, overrides, root, with_hydra=with_hydra)
    except _ERRORS as error:
        given.check_options()
        if not given.named:
            given.check_keys(verb, compose_raw(verb, [], root, with_hydra=True))
        raise ValueError(_explain(error, given)) from error


def compose_sweep(verb: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration, ``hydra`` node included, of the first job of a sweep, after checking all its values.

    Raises:
        ValueError: as ``compose``, also for a mistake in a later value.
    """
    folder = config_dir()
    given = Overrides(overrides, folder, list_groups(folder))
    values = [given.single(item) for item in given.items]
    first = [texts[0] for texts in values]
    for place, texts in enumerate(values):
        for text in texts[1:]:
            compose(verb, [*first[:place], text, *first[place + 1 :]])
    cfg = compose(verb, first, with_hydra=True)
    _check(verb, given)
    return cfg


def _check(verb: str, given: Overrides) -> None:
    """Compare keys and values with the defaults: the configuration composed without the plain values."""
    try:
        defaults = compose_raw(verb, given.others(), given.folder, with_hydra=True)
    except _ERRORS as error:
        # A group, an addition or a deletion is at fault, unless a key that even the verb's own defaults lack is.
        given.check_options()
        given.check_keys(verb, compose_raw(verb, [], given.folder, with_hydra=True))
        raise ValueError(_explain(error, given)) from error
    given.check_keys(verb, defaults)
    given.check_values(defaults)


def _explain(error: Exception, given: Overrides) -> str:
    missing = getattr(error, "missing_cfg_file", None) or ""
    if isinstance(error, MissingConfigException) and missing.startswith(("hydra/launcher/", "hydra/sweeper/")):
        return f"{missing.replace('hydra/', '', 1)} is not installed; pip install 'stdetr[sweep]'"
    for item in given.items:
        if item.is_sweep_override() and "multirun" in str(error):
            key, _, value = str(item.input_line).partition("=")
            return f"{key}={value} has several values; add -m to run each, or write '{key}=[{value}]' for a list"
    return one_line(error)
