"""Reading the command line, running a verb, and turning mistakes into one line and an exit code.

Exit codes: 0 done, 1 a check failed (``stdetr doctor``, ``data action=validate``) or a bug (with its traceback), 2 a
mistake in the command, its files or its values (one line ``error: ...``), 75 stopped by a signal, the same command goes
on (training: SIGTERM, SIGUSR1, SIGHUP; for ``RequeueExit`` of Slurm), 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

import stdetr

TRACEBACK_VARIABLE = "STDETR_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``stdetr`` with ``arguments`` (default: the process's own) and return its exit code.

    An exception that is not a user's mistake keeps its traceback; with ``STDETR_TRACEBACK=1`` all do.
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

    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in {"-h", "--help", "help"}:
        from stdetr.cli.help import overview, verb_help

        topics = [word for word in rest if word in VERBS]
        print(verb_help(VERBS[topics[0]], []) if topics else overview())
        return 0
    if name in {"-V", "--version", "version"}:
        print(f"stdetr {stdetr.__version__}")
        return 0
    if name in {"-sc", "--shell-completion"}:
        return _complete(rest)
    if name not in VERBS:
        from stdetr.names import did_you_mean

        raise ValueError(f"stdetr {name}: no such verb{did_you_mean(name, VERBS)} (verbs: {', '.join(VERBS)})")

    from stdetr.cli.arguments import Parser

    flags, overrides = Parser().read(rest)
    if flags.help:
        from stdetr.cli.help import verb_help

        print(verb_help(VERBS[name], overrides))
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("stdetr").setLevel(logging.INFO)

    from stdetr.cli.run import run

    return run(VERBS[name], flags, overrides)


def _complete(words: list[str]) -> int:
    """``eval "$(stdetr -sc install=bash)"`` once, then Hydra completes groups, options and keys behind a verb."""
    from stdetr.cli.run import job, through_hydra
    from stdetr.cli.verbs import VERBS

    verb = next(iter(VERBS))
    if any(word.startswith("query=") for word in words):
        program, *typed = os.environ.get("COMP_LINE", "").split(" ")
        if len(typed) < 2 or typed[0] not in VERBS:
            print(" ".join(name for name in VERBS if name.startswith("".join(typed[:1]))))
            return 0
        verb = typed[0]
        os.environ["COMP_LINE"] = " ".join([program, *typed[1:]])
    through_hydra(verb, job, ["--shell-completion", *words])
    return 0
