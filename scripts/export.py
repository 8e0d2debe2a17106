"""``python scripts/export.py key=value ...`` is ``stdetr export key=value ...``."""

from __future__ import annotations

import sys

from stdetr.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
