"""``python scripts/doctor.py key=value ...`` is ``stdetr doctor key=value ...``."""

from __future__ import annotations

import sys

from stdetr.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
