"""Which commit the running code is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def git_revision(folder: Path | None = None) -> str | None:
    """The commit that ``folder`` (default: this package) is checked out at, with ``-dirty`` after local changes.

    None where there is no git, or where ``folder`` is not under version control (an installed wheel).
    """
    git = shutil.which("git")
    if git is None:
        return None
    where = Path(folder) if folder is not None else Path(__file__).parent

    def ask(*arguments: str) -> str | None:
        answer = subprocess.run([git, *arguments], cwd=where, capture_output=True, text=True, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else None

    # An environment inside somebody else's checkout is ignored by it; its commit says nothing about this code.
    if ask("ls-files", "--error-unmatch", "." if where.is_dir() else where.name) is None:
        return None
    commit = ask("rev-parse", "HEAD")
    if commit is None:
        return None
    changed = ask("status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changed else commit
