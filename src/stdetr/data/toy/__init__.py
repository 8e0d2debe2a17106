"""The embedded benchmark: textured objects over moving clutter, with frames that hide what their neighbours show."""

from stdetr.data.toy.generator import ToyBenchmark
from stdetr.data.toy.settings import ToyBackground, ToyDegradation, ToyEncoder, ToyObjects, ToySplit
from stdetr.data.toy.sprites import SPRITE_CLASSES

__all__ = [
    "SPRITE_CLASSES",
    "ToyBackground",
    "ToyBenchmark",
    "ToyDegradation",
    "ToyEncoder",
    "ToyObjects",
    "ToySplit",
]
