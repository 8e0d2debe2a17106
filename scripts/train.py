"""``python scripts/train.py key=value ...`` is ``stdetr train key=value ...``."""

from __future__ import annotations

import sys

from stdetr.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
