"""``python scripts/eval.py key=value ...`` is ``stdetr eval key=value ...``."""

from __future__ import annotations

import sys

from stdetr.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
