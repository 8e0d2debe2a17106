"""Objects from configuration nodes: what a node's ``_target_`` names is called with the node's other keys."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from omegaconf import DictConfig, ListConfig

from stdetr.names import did_you_mean

PARTS = ("stdetr.", "torchvision.transforms.")
"""Where the classes lie that every configuration may name."""
_trusted: ContextVar[tuple[str, ...]] = ContextVar("trusted", default=())


@contextmanager
def trusting(targets: Sequence[str]) -> Iterator[None]:
    """For the length of the block, configurations may also name ``targets``, dotted paths of classes or functions.

    They come from the user (``trust=[mylab.models.Backbone]``), never from a configuration that lies beside weights.
    """
    token = _trusted.set((*_trusted.get(), *map(str, targets)))
    try:
        yield
    finally:
        _trusted.reset(token)


def instantiate(node: Any, **kwargs: Any) -> Any:
    """Build what ``node._target_`` names, children first, and pass ``kwargs`` to it unchanged.

    The keys are Hydra's: ``_target_``, and ``_partial_: true`` for a callable in place of the object.  ``kwargs``
    replace the node's keys of the same name and are never copied, so that parameters, modules and data sets can be
    handed over.  Lists and mappings reach the target as plain ``list`` and ``dict``.

    A run's ``config.yaml`` comes with its checkpoint from anywhere, so only the classes of ``PARTS`` are built, and
    what the user trusts (``trusting``).

    Raises:
        ValueError: the target does not exist, is not trusted or takes no such argument.
    """
    is_node = isinstance(node, DictConfig) and not node._is_none() and "_target_" in node
    if kwargs and not is_node:
        raise ValueError(f"{_name(node)}: no _target_ to pass {sorted(kwargs)} to")
    if isinstance(node, ListConfig):
        return None if node._is_none() else [instantiate(item) for item in node]
    if not isinstance(node, DictConfig):
        return node
    if node._is_none():
        return None
    given: dict[Any, Any] = {key: instantiate(node[key]) for key in node if key not in kwargs} | kwargs
    if not is_node:
        return given
    path = str(given.pop("_target_"))
    target = _find(path, node)
    partial = given.pop("_partial_", False)
    given.pop("_convert_", None)  # of older configurations: lists and mappings are always plain
    call = functools.partial(target, **given)
    if partial:
        return call
    try:
        inspect.signature(target).bind(**given)
    except TypeError as error:
        unknown = str(error).partition("unexpected keyword argument ")[2].strip("'")
        hint = did_you_mean(unknown, inspect.signature(target).parameters) if unknown else ""
        raise ValueError(f"{_name(node)}: {path}: {error}{hint}") from error
    except ValueError:
        pass  # a built-in without a signature: the call itself tells
    return call()


def _find(path: str, node: DictConfig) -> Any:
    import pydoc  # standard, but slow to import for a command that builds nothing

    trusted = path in _trusted.get()
    if not (trusted or path.startswith(PARTS)):
        raise ValueError(_refusal(path, node, "is no part of stdetr"))
    try:
        target = pydoc.locate(path)
    except pydoc.ErrorDuringImport as error:
        if error.value is not None and not isinstance(error.value, ImportError):
            raise error.value from None
        raise ValueError(f"{_name(node)}: _target_ {path}: {error.value}") from error
    if target is None:
        raise ValueError(f"{_name(node)}: _target_ {path} does not exist")
    # A path can lead through a module of stdetr to what it imports, as stdetr.checkpoint.shutil.rmtree does.
    if not trusted and not (inspect.isclass(target) and f"{target.__module__}.".startswith(PARTS)):
        raise ValueError(_refusal(path, node, "is no class of stdetr"))
    return target


def _refusal(path: str, node: DictConfig, what: str) -> str:
    return (
        f"{_name(node)}: _target_ {path} {what}, and a configuration may come from anywhere; if you trust it, add "
        f"trust=[{path}]"
    )


def _name(node: Any) -> str:
    return (node._get_full_key("") if isinstance(node, DictConfig | ListConfig) else "") or "configuration"
