"""The embedded benchmark: textured objects over moving clutter, some of them hidden on degraded frames."""

from stdetr.datasets.toy.generator import ToyBenchmark
from stdetr.datasets.toy.settings import ToyBackground, ToyDegradation, ToyEncoder, ToyObjects, ToySplit
from stdetr.datasets.toy.sprites import SPRITE_CLASSES

__all__ = [
    "SPRITE_CLASSES",
    "ToyBackground",
    "ToyBenchmark",
    "ToyDegradation",
    "ToyEncoder",
    "ToyObjects",
    "ToySplit",
]
