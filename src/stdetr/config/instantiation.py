"""Objects from configuration nodes: the only place that calls ``hydra.utils.instantiate``."""

from __future__ import annotations

import copy
import functools
import inspect
import os
import re
from collections.abc import Callable
from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from stdetr.config.names import did_you_mean

TARGETS_VARIABLE = "STDETR_TARGETS"
"""Packages of the user's own that configurations may name from Hydra 1.4 on, comma-separated: ``mylab.*``."""

_TRUSTED = ("stdetr.*", "torch.*", "torchvision.*", "timm.*")
_TAKES_WHITELIST = "_execution_whitelist_" in inspect.signature(hydra.utils.instantiate).parameters


def instantiate(node: Any, **kwargs: Any) -> Any:
    """Build what ``node._target_`` names, children first, and pass ``kwargs`` to it unchanged.

    ``kwargs`` replace the node's keys of the same name and are never copied, so that parameters, modules and data sets
    can be handed over.  Lists and mappings reach the target as plain ``list`` and ``dict``.  A node with
    ``_partial_: true`` gives a callable.  ``None`` gives ``None``.

    Raises:
        ValueError: the target does not exist or takes no such argument, or a target raised ValueError itself.
        FileNotFoundError: a target raised it.
    """
    if not isinstance(node, DictConfig) or "_target_" not in node or OmegaConf.is_missing(node, "_target_"):
        if kwargs:
            raise ValueError(f"{_name(node)}: no _target_ to pass {sorted(kwargs)} to")
        return _build(node) if isinstance(node, DictConfig | ListConfig) else node

    keep_partial = bool(node.get("_partial_", False))
    own = copy.deepcopy(node)
    with read_write(own), open_dict(own):
        for key in kwargs:
            own.pop(key, None)
        own["_partial_"] = True
    target = _build(own)
    if keep_partial:
        return functools.partial(target, **kwargs)
    try:
        return target(**kwargs)
    except TypeError as error:
        mistake = _wrong_arguments(error, target)
        if mistake is None:
            raise
        raise ValueError(f"{_name(node)}: {mistake}") from error


def _build(node: DictConfig | ListConfig) -> Any:
    options: dict[str, Any] = {}
    if isinstance(node, ListConfig) or "_convert_" not in node:
        options["_convert_"] = "all"
    if _TAKES_WHITELIST:
        own = os.environ.get(TARGETS_VARIABLE, "")
        options["_execution_whitelist_"] = [*_TRUSTED, *(pattern.strip() for pattern in own.split(",") if pattern)]
    try:
        return hydra.utils.instantiate(node, **options)
    except InstantiationException as error:
        raise _user_error(error) from error
    except TypeError as error:  # Hydra 1.4 lets the exceptions of nested targets through as they are
        mistake = _wrong_arguments(error, None)
        if mistake is None:
            raise
        raise ValueError(f"{_name(node)}: {mistake}") from error


def _user_error(error: InstantiationException) -> Exception:
    """The mistake under Hydra's wrapping if a user made one, else the exception a target raised: a bug in it."""
    root: BaseException = error
    while isinstance(root, InstantiationException) and root.__cause__ is not None:
        root = root.__cause__
    where = _full_key(error)
    if isinstance(root, ValueError | FileNotFoundError):
        return root
    if isinstance(root, TypeError) and (mistake := _wrong_arguments(root, _target_of(error))) is not None:
        return ValueError(f"{where}: {mistake}")
    if isinstance(root, InstantiationException | ImportError):
        head = str(error).partition(", set env var")[0]
        text = head if root is error else f"{head}: {root}"
        lines = [line.strip() for line in text.splitlines() if not line.startswith("full_key: ")]
        return ValueError(f"{where}: {' '.join(lines)}")
    return root if isinstance(root, Exception) else error


def _wrong_arguments(error: TypeError, target: Callable[..., Any] | None) -> str | None:
    """What is wrong with the arguments if the call never entered the target; None for a TypeError raised inside it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    if not (module == __name__ or module.startswith("hydra.") or module == "functools"):
        return None
    message = str(error)
    name = (
        message.rpartition("unexpected keyword argument ")[2].split()[0].strip("'.") if "unexpected" in message else ""
    )
    if not name:
        return message
    known = list(inspect.signature(_unwrapped(target)).parameters) if target is not None else []
    return f"{message}{did_you_mean(name, [item for item in known if item != 'self'])}"


def _unwrapped(target: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(target, functools.partial):
        target = target.func
    return target


def _target_of(error: InstantiationException) -> Callable[..., Any] | None:
    """The innermost target that Hydra was calling, by the name in its message."""
    named = re.findall(r"Error in call to target '([\w.]+)'", str(error))
    return hydra.utils.get_object(named[-1]) if named else None


def _full_key(error: InstantiationException) -> str:
    lines = [line for line in str(error).splitlines() if line.startswith("full_key: ")]
    return lines[-1].removeprefix("full_key: ") if lines else "configuration"


def _name(node: Any) -> str:
    return (node._get_full_key("") if isinstance(node, DictConfig | ListConfig) else "") or "configuration"
