"""Makes cuda_ops/harness importable; skips its tests where no C++ compiler is."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "cuda_ops"))  # last: its stdetr_ops holds no libraries
sys.path.insert(0, str(Path(__file__).resolve().parent))
