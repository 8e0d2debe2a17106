"""``python scripts/bench.py key=value ...`` is ``stdetr bench key=value ...``."""

from __future__ import annotations

import sys

from stdetr.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
