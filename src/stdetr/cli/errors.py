"""Which exceptions are a user's mistake, and their one line."""

from __future__ import annotations

import re

from hydra.errors import HydraException
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

_FILE_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)


def user_line(error: BaseException) -> str | None:
    """What to tell the user, on one line; None for an exception that is a bug and deserves its traceback."""
    from stdetr.config.overrides import one_line

    root = error
    while isinstance(root, HydraException) and root.__cause__ is not None:
        root = root.__cause__
    if isinstance(root, MissingMandatoryValue):
        key = re.search(r"Missing mandatory value: (\S+)", str(root))
        return f"{key.group(1)} is required: {key.group(1)}=..." if key else one_line(root)
    if isinstance(root, InterpolationResolutionError):
        return one_line(root)
    if isinstance(root, OmegaConfBaseException):
        # A key that code asks for and the configuration lacks: a bug, unless Hydra raised it while composing.
        return one_line(error) if isinstance(error, HydraException) else None
    if isinstance(root, _FILE_ERRORS) and root.filename is not None and root.strerror:
        return f"{root.filename}: {root.strerror.lower()}"
    if isinstance(root, (ValueError, HydraException, *_FILE_ERRORS)):
        return _without_worker(one_line(root), str(root))
    if isinstance(root, RuntimeError | ImportError) and "torchvision::nms" in str(root):
        return "torch and torchvision do not match (operator torchvision::nms does not exist); run 'stdetr doctor'"
    return None


def _without_worker(line: str, text: str) -> str:
    """The message of an exception that torch re-raised from a data worker with the worker's traceback in its text."""
    if not (text.startswith("Caught ") and "Original Traceback" in text):
        return line
    tail = re.split(r"\n[\w.]+(?:Error|Exception): ", text)[-1]
    return " ".join(tail.split())
