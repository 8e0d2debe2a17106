"""Reading the command line, running a verb, and turning mistakes into one line and an exit code.

Exit codes: 0 done, 1 a check failed (``stdetr doctor``, ``data action=validate``) or a bug (with its traceback), 2 a
mistake in the command, its files or its values (one line ``error: ...``), 130 interrupted.
"""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Sequence

import stdetr

TRACEBACK_VARIABLE = "STDETR_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``stdetr`` with ``arguments`` (default: the process's own) and return its exit code.

    An exception that is no user's mistake passes through with its traceback; ``STDETR_TRACEBACK=1`` lets all through.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has closed: leave without Python's message about the flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        from stdetr.cli.errors import user_line

        line = None if os.environ.get(TRACEBACK_VARIABLE) == "1" else user_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2


def _dispatch(words: list[str]) -> int:
    from stdetr.cli.verbs import VERBS

    if not words or words[0] in {"-h", "--help", "help"}:
        from stdetr.cli.help import overview, verb_help

        topics = [word for word in words[1:] if word in VERBS]
        print(verb_help(VERBS[topics[0]], []) if topics else overview())
        return 0
    if words[0] in {"-V", "--version", "version"}:
        print(f"stdetr {stdetr.__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in VERBS:
        known = ", ".join(VERBS)
        match = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"; did you mean '{match[0]}'?" if match else ""
        raise ValueError(f"stdetr {name}: no such verb{hint} (verbs: {known})")
    return _run_verb(name, rest)


def _run_verb(name: str, rest: list[str]) -> int:
    from stdetr.cli.arguments import Arguments
    from stdetr.cli.help import show_config, verb_help
    from stdetr.cli.verbs import VERBS

    arguments = Arguments.parse(rest)
    if arguments.help:
        print(verb_help(VERBS[name], arguments.overrides))
        return 0
    if arguments.show:
        print(show_config(name, arguments), end="")
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("stdetr").setLevel(logging.INFO)

    from stdetr.cli.single import run_once
    from stdetr.cli.sweep import is_sweep, run_sweep

    if is_sweep(name, arguments):
        return run_sweep(VERBS[name], arguments.overrides)
    return run_once(VERBS[name], arguments.overrides)
