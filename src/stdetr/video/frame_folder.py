"""Image files as a video.  h, w height and width in pixels; T requested frames.

Photographs may be stored rotated, with an EXIF tag that says how to show them.  Peers differ: pycocotools' users,
torchvision's ``CocoDetection`` and the DETR family read the stored pixels, detectron2 and OpenCV rotate them.  Here
``predict`` rotates images, like videos with rotation metadata.  Annotated frames are read as stored, as COCO's boxes
assume, unless only the rotated image has the annotated size, because an annotation tool rotated it.  A mirrored or
upside-down tag does not change the size, so then the stored pixels are used.

Of 16 bits per channel the upper 8 are used, so 65535 is white; values beyond 16 bits, and files that hold several
pictures (animated WebP and PNG, TIFF pages), are refused.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stdetr.video.source import IMAGE_SUFFIXES, VideoSource

_PAGED = ("WEBP", "PNG", "TIFF", "GIF")  # MPO is a photograph with previews


def read_image(path: Path, annotated: tuple[int, int] | None = None) -> np.ndarray:
    """h,w,3 uint8 RGB; raises ValueError or FileNotFoundError naming the file.

    annotated: (h, w) of the frame in the annotations: the stored pixels are used, or rotated by the EXIF tag where only
        then the sides agree.  None rotates by the tag.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pages = getattr(image, "n_frames", 1)
            if pages > 1 and image.format in _PAGED:
                raise ValueError(
                    f"frame {path} holds {pages} pictures, of which one would be seen; store each in a file, or all as "
                    "a video"
                )
            if annotated is None or (image.size != annotated[::-1] and image.size == annotated):
                image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):
                return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
            if image.mode in ("I", "F"):
                raise ValueError(f"frame {path} has 32 bits per channel; store it with 8 or 16")
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise FileNotFoundError(f"frame {path} does not exist") from None
    except UnidentifiedImageError:
        raise ValueError(f"frame {path} is not an image that Pillow can read") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"frame {path} is damaged: {error}") from error


def is_image(path: Path) -> bool:
    """Whether the name is that of an image, and not of a side file (``._name``)."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("._")


def natural_key(path: Path) -> list[int | str]:
    """Sort key under which ``frame10`` follows ``frame9``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


class FrameFolder(VideoSource):
    """Image files in a given order.

    annotated: (h, w) of annotated frames, see :func:`read_image`

    Raises FileNotFoundError when there is no file, ValueError for a frame that differs in size or is damaged.
    """

    backend = "frames"

    def __init__(
        self, name: str, files: Sequence[Path], fps: float = 0.0, annotated: tuple[int, int] | None = None
    ) -> None:
        if not files:
            raise FileNotFoundError(f"{name} has no frames ({', '.join(IMAGE_SUFFIXES)})")
        self.name, self.fps = name, fps
        self._files, self._annotated = list(files), annotated
        height, width = read_image(self._files[0], annotated).shape[:2]
        self.size = (height, width)

    @classmethod
    def from_directory(cls, folder: Path) -> FrameFolder:
        """All images of a folder, in natural order of their names."""
        files = [item for item in folder.iterdir() if is_image(item)]
        return cls(str(folder), sorted(files, key=natural_key))

    @classmethod
    def from_glob(cls, pattern: str) -> FrameFolder:
        """All images that match a glob pattern, in natural order of their paths."""
        files = [Path(item) for item in glob.glob(pattern, recursive=True)]  # noqa: PTH207 - absolute patterns
        files = [item for item in files if is_image(item)]
        return cls(pattern, sorted(files, key=lambda item: (str(item.parent), natural_key(item))))

    def __len__(self) -> int:
        return len(self._files)

    def _frame(self, index: int) -> np.ndarray:
        frame = read_image(self._files[index], self._annotated)
        if frame.shape[:2] != self.size:
            want, have = ("x".join(map(str, shape[::-1])) for shape in (self.size, frame.shape[:2]))
            raise ValueError(f"frame {self._files[index]} is {have}, but {self.name} starts with {want} frames")
        return frame

    def frames(self, indices: Sequence[int]) -> list[np.ndarray]:
        """T arrays h,w,3 uint8 RGB."""
        return [self._frame(index) for index in self.check_indices(indices)]
