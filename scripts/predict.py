"""``python scripts/predict.py key=value ...`` is ``stdetr predict key=value ...``."""

from __future__ import annotations

import sys

from stdetr.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
