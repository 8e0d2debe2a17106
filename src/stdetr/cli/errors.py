"""Which exceptions are a user's mistake, and their one line."""

from __future__ import annotations

import errno
import re

from hydra.errors import HydraException
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SMALLER = "batch_size (data.loader.batch_size in training), the frames of a clip or their size"
_WORKERS = "data.loader.num_workers or data.loader.prefetch"
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
    if (trouble := _trouble(root)) is not None:
        return trouble
    if isinstance(root, _FILE_ERRORS) and root.filename is not None and root.strerror:
        return f"{root.filename}: {root.strerror.lower()}"
    if isinstance(root, (ValueError, HydraException, *_FILE_ERRORS)):
        return _without_worker(one_line(root), str(root))
    if isinstance(root, RuntimeError | ImportError) and "torchvision::nms" in str(root):
        return "torch and torchvision do not match (operator torchvision::nms does not exist); run 'stdetr doctor'"
    return None


def _trouble(error: BaseException) -> str | None:
    """The machine's troubles, which are neither mistakes nor bugs."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in _FULL:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{(error.strerror or 'disk full').lower()}; what was saved stays: make room, then start again"
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return f"{error.filename}: {(error.strerror or '').lower()}; choose another output_dir"
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError) or "can't allocate memory" in text:
        where = "the GPU" if "CUDA" in text else "the machine"
        first = text.partition(". ")[0]
        return f"{where} has no memory left ({first}); lower {_SMALLER}; what was saved before stays"
    if isinstance(error, FloatingPointError):
        return text
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):
        return f"a worker of the data loader died ({text.partition('. ')[0]}), as when memory is full; lower {_WORKERS}"
    if isinstance(error, RuntimeError) and text.startswith("DataLoader timed out"):
        return f"no batch came in time ({text}); look at the storage, or raise data.loader.timeout"
    return None


def _without_worker(line: str, text: str) -> str:
    """The message of an exception that torch re-raised from a data worker with the worker's traceback in its text."""
    if not (text.startswith("Caught ") and "Original Traceback" in text):
        return line
    tail = re.split(r"\n[\w.]+(?:Error|Exception): ", text)[-1]
    return " ".join(tail.split())
