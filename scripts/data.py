"""``python scripts/data.py key=value ...`` is ``stdetr data key=value ...``."""

from __future__ import annotations

import sys

from stdetr.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", *sys.argv[1:]]))
