"""``python -m stdetr`` is the console command ``stdetr``."""

from __future__ import annotations

import sys

from stdetr.cli import main

if __name__ == "__main__":
    sys.exit(main())
