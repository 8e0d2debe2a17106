"""Numbers of the toy benchmark; every field is a key of ``conf/data/toy.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, fields

Range = tuple[float, float]


def _check_ranges(settings: object, key: str) -> None:
    for field in fields(settings):  # pyright: ignore[reportArgumentType]
        value = getattr(settings, field.name)
        if not isinstance(value, (list, tuple)) or field.name == "kinds":
            continue
        if len(value) != 2 or value[0] > value[1]:
            raise ValueError(f"{key}.{field.name} must be [low, high] with low <= high, got {list(value)}")
        object.__setattr__(settings, field.name, tuple(value))


@dataclass(frozen=True)
class ToySplit:
    """One split.  Splits differ in seed, texture frequency (cycles per radius), the part of each class's palette in
    use (0-1), background hues (0-1) and background roughness."""

    videos: int
    seed: int
    texture_frequency: Range = (1.2, 1.8)
    hue: Range = (0.0, 1.0)
    roughness: Range = (1.2, 1.6)
    background_hue: Range = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.videos < 1:
            raise ValueError(f"data.benchmark.splits.*.videos must be at least 1, got {self.videos}")
        _check_ranges(self, "data.benchmark.splits.*")


@dataclass(frozen=True)
class ToyObjects:
    """Objects: how many per video, size (side of the box of an upright object, pixels), aspect, speed in px per frame.

    scale_change: largest relative change of size within a video
    turn:         largest rotation, degrees per frame
    acceleration: standard deviation of the change of velocity, px per frame squared
    leave:        share of objects whose path may leave the frame altogether and come back
    palette:      half width of a class's range of hues, with classes spread evenly over the circle: 0.5 lets every
                  class have any colour, small values let colour tell the classes apart
    """

    count: Range = (1, 4)
    size: Range = (14, 34)
    aspect: Range = (0.85, 1.18)
    speed: Range = (1.0, 4.5)
    scale_change: float = 0.25
    turn: float = 5.0
    acceleration: float = 0.35
    leave: float = 0.3
    palette: float = 0.5
    min_inside: float = 0.25
    min_visible: float = 0.2

    def __post_init__(self) -> None:
        _check_ranges(self, "data.benchmark.objects")


@dataclass(frozen=True)
class ToyBackground:
    """Background: mean level and contrast (0-255), scroll in px per frame, distractor shapes and occluding bars."""

    level: Range = (60, 120)
    contrast: Range = (10, 18)
    scroll: Range = (0.3, 1.8)
    distractors: Range = (3, 6)
    distractor_contrast: Range = (12, 28)
    bars: Range = (0, 2)
    bar_width: Range = (5, 9)

    def __post_init__(self) -> None:
        _check_ranges(self, "data.benchmark.background")


@dataclass(frozen=True)
class ToyDegradation:
    """Degraded frames: share of all frames, at most ``limit`` in any ``window`` consecutive ones, and how strong.

    blur_length: px of the motion blur     defocus_sigma: px of the Gaussian
    noise_sigma, noise_contrast: deviation of the noise (0-255) and the remaining share of the contrast
    """

    rate: float = 0.24
    window: int = 5
    limit: int = 2
    kinds: tuple[str, ...] = ("blur", "defocus", "noise", "blank")
    blur_length: Range = (24, 36)
    defocus_sigma: Range = (5.0, 7.0)
    noise_sigma: Range = (70, 90)
    noise_contrast: Range = (0.2, 0.3)

    def __post_init__(self) -> None:
        from stdetr.data.coco_vid_schema import DEGRADATIONS

        object.__setattr__(self, "kinds", tuple(self.kinds))
        unknown = [kind for kind in self.kinds if kind not in DEGRADATIONS]
        if unknown:
            names = ", ".join(DEGRADATIONS)
            raise ValueError(f"data.benchmark.degradation.kinds has {unknown[0]!r}; it may have {names}")
        if not 0 <= self.rate <= self.limit / self.window * 0.75:
            most = self.limit / self.window * 0.75
            raise ValueError(
                f"data.benchmark.degradation.rate must lie in [0, {most:.2f}] for limit {self.limit} of window "
                f"{self.window}, got {self.rate}"
            )
        _check_ranges(self, "data.benchmark.degradation")


@dataclass(frozen=True)
class ToyEncoder:
    """H.264 settings; constant quality ``crf``, a key frame every ``gop`` frames."""

    crf: int = 17
    gop: int = 12
    preset: str = "veryfast"
    fps: int = 12
