"""Video in, tracks out: the one way to predict, for ``stdetr predict``, evaluation and Python.

Shape legend
    B windows per batch    T frames of a window    N tubes    h, w pixels of the source frame
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from stdetr.config import trusting
from stdetr.data.collate import Collate
from stdetr.data.transforms import ClipTransform
from stdetr.inference.journal import Journal, pack, unpack
from stdetr.inference.load import choose_device, configuration_at_fault, eval_transform, load_model, pad_to
from stdetr.inference.predictions import VideoInfo, VideoPredictions
from stdetr.inference.windows import WindowCutter
from stdetr.models.detector import ClipDetector
from stdetr.models.neck import Tokens
from stdetr.models.postprocess import to_tubes
from stdetr.models.streaming import CausalStream
from stdetr.stitch.association import StitchRules
from stdetr.stitch.stitching import Stitcher, trackable, visible_frames
from stdetr.structures import ClassNames, Clip, ClipBatch, ClipInfo, ClipTargets, ModelOutput, Tubes
from stdetr.video.open import open_source
from stdetr.video.source import VideoSource

_log = logging.getLogger(__name__)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Piece:
    """What one window adds to the predictions on its video.

    info:  of the frames that no earlier window shows
    pairs: the (tube, class) pairs on these frames, not stitched; None at the end of the video
    clip:  the tracks on the frames that no later window can change
    """

    info: ClipInfo
    pairs: Tubes | None
    clip: Tubes


@dataclass(frozen=True)
class _Frame:
    """A frame after the backbone: its number, its image id, the clip that it came in, its tokens (T = 1)."""

    number: int
    image: int
    clip: ClipInfo
    tokens: Tokens


class Detector:
    """A model with everything it needs to run on videos of any length in bounded memory.

    model:           a ``ClipDetector``, or a module with its ``features`` and ``detect``
    transform:       the evaluation transforms of the data the model was trained on, normalisation included
    clip_length:     T of a window; overlap: how many frames a window shares with the next one
    step:            process every ``step``-th frame
    top_k:           (tube, class) pairs kept of a window
    score_threshold: frames of a tube with a lower score are left out
    presence_threshold: ... as are frames with a lower presence
    rules:           which tubes are stitched, and when one continues a track; by default all with a frame that is not
                     left out
    batch_size:      windows per forward pass; for a causal model, frames that are read ahead and go through its
                     backbone together
    precision:       ``fp32``, ``bf16`` or ``fp16``
    """

    def __init__(
        self,
        model: nn.Module,
        classes: ClassNames,
        transform: ClipTransform,
        *,
        clip_length: int,
        overlap: int = 0,
        step: int = 1,
        top_k: int = 100,
        score_threshold: float = 0.05,
        presence_threshold: float = 0.3,
        rules: StitchRules | None = None,
        batch_size: int = 1,
        pad_to: int = 32,
        precision: str = "fp32",
        device: torch.device | str = "cpu",
    ) -> None:
        WindowCutter(clip_length, overlap)
        for name, value in (("top_k", top_k), ("batch_size", batch_size), ("step", step)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        for name, value in {"score_threshold": score_threshold, "presence_threshold": presence_threshold}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must lie in [0, 1]")
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r} is not one of {', '.join(PRECISIONS)}")
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.classes = classes
        self.transform = transform
        self.clip_length, self.overlap, self.step = clip_length, overlap, step
        self.top_k, self.score_threshold, self.presence_threshold = top_k, score_threshold, presence_threshold
        self.rules = rules if rules is not None else StitchRules(score_threshold=score_threshold)
        self.batch_size = batch_size
        self.collate = Collate(pad_to)
        self.precision = precision

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, device: str = "auto", *, trust: Sequence[str] = (), **settings: Any
    ) -> Detector:
        """The detector of a run folder, a checkpoint folder or a ``model.safetensors``.

        device: ``auto`` (the first GPU, else the CPU) or any name that torch knows
        trust: dotted paths of your own classes that the configuration beside the weights may name; any others but those
            of stdetr and torchvision.transforms are refused, since a checkpoint may come from anywhere
        settings: constructor arguments, mainly ``clip_length`` and ``overlap``; by default (None) the clip length of
        training, with an overlap of two fifths of it

        Raises FileNotFoundError and ValueError, in one line, for what is missing or does not fit.
        """
        where = choose_device(device)
        given = {name: value for name, value in settings.items() if value is not None}
        with trusting(trust):
            model, cfg, classes = load_model(path, where)
            with configuration_at_fault(path):
                transform = eval_transform(cfg)
                frames = int(given.pop("clip_length", 0) or cfg.data.frames)
                defaults: dict[str, Any] = {"overlap": default_overlap(frames), "pad_to": pad_to(cfg)}
        return cls(model, classes, transform, clip_length=frames, device=where, **{**defaults, **given})

    def open(self, source: str | Path | VideoSource) -> VideoSource:
        """``source`` itself, or the file, folder of frames or glob that it names."""
        return open_source(source) if isinstance(source, str | Path) else source

    def stream(
        self,
        source: str | Path | VideoSource,
        *,
        start: int = 0,
        max_frames: int | None = None,
        on_error: str = "stop",
        journal: Journal | None = None,
    ) -> Iterator[Tubes]:
        """Tracks of consecutive pieces of the video, each as soon as no later window can change it.

        Every processed frame comes exactly once, in order; an id means the same object throughout.  A causal model
        gives one frame at a time, and its result is final.

        on_error: at a frame that cannot be read, ``stop`` raises its ValueError after the tracks on the frames before
            it; ``skip`` leaves the frame out
        journal: takes down each window; those that it has already are not predicted again
        """
        if max_frames is not None and max_frames < 1:
            raise ValueError(f"max_frames={max_frames} must be at least 1")
        if start < 0:
            raise ValueError(f"start={start} must be at least 0")
        if on_error not in ("stop", "skip"):
            raise ValueError(f"on_error={on_error} is unknown, it may be stop or skip")
        video = self.open(source)
        end = len(video) if max_frames is None else min(len(video), start + max_frames * self.step)
        info = ClipInfo(0, (), (), video.size, video.name)
        state = _Video(self, info, getattr(self.model, "causal", False), journal=journal)
        faults: list[ValueError] = []
        for clip in self._clips(state, video, start, end, on_error, faults):
            clip = visible_frames(clip, score_threshold=self.score_threshold)
            if clip.frame_index.numel():
                yield clip
        if faults and on_error == "stop":
            raise faults[0]

    def _clips(
        self, state: _Video, video: VideoSource, start: int, end: int, on_error: str, faults: list[ValueError]
    ) -> Iterator[Tubes]:
        known: list[int] = []
        for tubes in state.past():
            known = [*known, *(n for n in tubes.frame_index.tolist() if not known or n > known[-1])]
            yield state.stitcher.push(tubes)
            known = known[-self.clip_length :]
        if known:
            state.resume(self._frames(self.batch(known, video.read(known), video)))
            start = known[-1] + self.step
        for batch in self._batches(video, self._read(video, start, end, on_error, faults), state.causal is not None):
            yield from (piece.clip for piece in state.push(self._frames(batch), last=False))
        if faults and on_error == "stop":
            state.journal = None  # whoever goes on from here has other last windows
        yield from (piece.clip for piece in state.push([], last=True))

    def _read(
        self, video: VideoSource, start: int, end: int, on_error: str, faults: list[ValueError]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The frames that can be read, all or those before the first that cannot."""
        following = start
        while following < end:
            try:
                for number, frame in video.iterate(following, end, self.step):
                    yield number, frame
                    following = number + self.step
                return
            except ValueError as error:
                faults.append(error)
                if on_error == "stop":
                    return
                _log.warning("frame %d is left out (on_error=skip): %s", following, error)
                following += self.step

    def predict(
        self, source: str | Path | VideoSource, *, start: int = 0, max_frames: int | None = None
    ) -> VideoPredictions:
        """All detections of a video.  Frames are not kept; detections are."""
        video = self.open(source)
        return VideoPredictions.from_clips(
            self.stream(video, start=start, max_frames=max_frames), self.info(source, video), self.classes
        )

    def info(self, source: str | Path | VideoSource, video: VideoSource) -> VideoInfo:
        """What is known of a video before it is processed."""
        path = str(source) if isinstance(source, str | Path) else video.name
        return VideoInfo(path, Path(video.name).name, video.size, video.fps, ())

    def follow(
        self, batches: Iterable[ClipBatch], *, online: bool = False, every_track: bool = False
    ) -> Iterator[Piece]:
        """The predictions on videos, window by window.

        The backbone runs once per frame.  What a window needs of the previous one is kept; nothing else is.

        batches: the frames of videos, each frame once; those of a video in order, those of several videos in any
        online: a causal model answers frame by frame; the same output as by windows, at more cost
        every_track: each track gets an id, however weak it is
        """
        videos: dict[int, _Video] = {}
        for batch in batches:
            known = batch.infos[0].video_id
            if known not in videos:
                videos[known] = _Video(self, batch.infos[0], online, every_track=every_track)
            video = videos[known]
            frames = self._frames(batch)
            if batch.infos[-1].last:
                del videos[known]
            yield from video.push(frames, last=batch.infos[-1].last)
        for video in videos.values():
            yield from video.push([], last=True)

    def _batches(
        self, video: VideoSource, frames: Iterator[tuple[int, np.ndarray]], online: bool
    ) -> Iterator[ClipBatch]:
        """The frames in batches that complete ``batch_size`` windows each (online: of ``batch_size`` frames)."""
        new = 1 if online else self.clip_length - self.overlap
        size = self.batch_size * new + (0 if online else self.overlap)
        while group := list(islice(frames, size)):
            numbers, pictures = zip(*group, strict=True)
            yield self.batch(numbers, np.stack(pictures), video)
            size = self.batch_size * new

    @torch.no_grad()
    def _frames(self, batch: ClipBatch) -> list[_Frame]:
        batch = batch.to(self.device).normalised()
        with self._autocast():
            real = batch.frames[batch.frame_mask][None]
            tokens = cast(ClipDetector, self.model).features(real, batch.sizes[:1])
        named = ((*names, info) for info in batch.infos for names in zip(info.frame_index, info.image_ids, strict=True))
        return [_Frame(*names, tokens.frame(t)) for t, names in enumerate(named)]

    @torch.no_grad()
    def detect(self, windows: Sequence[Sequence[_Frame]]) -> ModelOutput:
        """The output for windows of equal length."""
        some = windows[0][0].tokens
        features = torch.cat([torch.cat([frame.tokens.features for frame in window], 1) for window in windows])
        shared = {
            name: getattr(some, name).expand(len(windows), *getattr(some, name).shape[1:])
            for name in ("position", "valid", "valid_ratios", "centres")
        }
        index = torch.tensor([[frame.number for frame in window] for window in windows], device=self.device)
        with self._autocast():
            tokens = replace(some, features=features, **shared)
            return cast(ClipDetector, self.model).detect(tokens, frame_index=index)

    def batch(self, numbers: Sequence[int], frames: np.ndarray, video: VideoSource) -> ClipBatch:
        """T frames of a video (T,h,w,3 uint8 RGB) as input of the model, on its device."""
        pictures, _, _ = self.transform(torch.from_numpy(frames).permute(0, 3, 1, 2), torch.zeros(0, 4))
        info = ClipInfo(0, tuple(numbers), (-1,) * len(numbers), video.size, video.name)
        return self.collate([Clip(pictures, ClipTargets.empty(len(pictures)), info)]).to(self.device)

    def _autocast(self) -> AbstractContextManager[object]:
        kind = PRECISIONS[self.precision]
        return nullcontext() if kind is None else torch.autocast(self.device.type, dtype=kind)


class _Video:
    """The state of one video that is being predicted: the frames that the next window needs, and the live tracks."""

    def __init__(
        self,
        detector: Detector,
        info: ClipInfo,
        online: bool,
        *,
        every_track: bool = False,
        journal: Journal | None = None,
    ) -> None:
        self.detector, self.end = detector, replace(info, frame_index=(), image_ids=(), degraded=())
        self.cutter: WindowCutter[_Frame] = WindowCutter(detector.clip_length, detector.overlap)
        model = cast(ClipDetector, detector.model)
        self.causal = CausalStream(model, detector.clip_length, detector.overlap) if online else None
        self.stitcher = Stitcher(0 if online else detector.overlap, detector.rules, every_track=every_track)
        self.previous: list[_Frame] = []
        self.journal, self.count = journal, 0

    def past(self) -> Iterator[Tubes]:
        """The windows that the journal holds."""
        for record in self.journal or ():
            yield unpack(record)
            self.count += 1

    def resume(self, frames: Sequence[_Frame]) -> None:
        """Go on after ``past``; frames: those of the last window, or, one by one, the last that make one."""
        if self.causal is None:
            self.cutter.resume(frames)
        else:
            self.causal.resume([(frame.tokens, frame.number) for frame in frames], self.count)
            self.previous = list(frames[-1:])

    def push(self, frames: Sequence[_Frame], *, last: bool) -> Iterator[Piece]:
        """The windows that these frames complete; last: the video ends with them."""
        yield from self._by_frames(frames) if self.causal else self._by_windows(frames, last)
        if last:
            yield Piece(self.end, None, self.stitcher.flush())

    def _by_windows(self, frames: Sequence[_Frame], last: bool) -> Iterator[Piece]:
        found = [self.cutter.push(frame) for frame in frames]
        windows = iter([window for window in (*found, self.cutter.end() if last else None) if window is not None])
        while group := list(islice(windows, self.detector.batch_size)):
            output = self.detector.detect([window for window, _ in group])
            yield from self._pieces(output, group)

    def _by_frames(self, frames: Sequence[_Frame]) -> Iterator[Piece]:
        assert self.causal is not None
        for frame in frames:
            with torch.no_grad(), self.detector._autocast():
                output = self.causal.push(frame.tokens, frame.number)
            # The previous frame links the tubes.
            shown = [*self.previous, frame][-min(2, len(self.causal.index)) :]
            length = len(self.causal.index)
            yield from self._pieces(output.frames(length - len(shown), length), [(shown, 1)])
            self.previous = [frame]

    def _pieces(self, output: ModelOutput, windows: Sequence[tuple[Sequence[_Frame], int]]) -> Iterator[Piece]:
        detector = self.detector
        infos = [_info_of(window) for window, _ in windows]
        every = to_tubes(output, infos, detector.top_k, detector.presence_threshold)
        for pairs, (window, new) in zip(every, windows, strict=True):
            tubes = trackable(pairs, detector.rules.score_threshold)
            if self.causal:  # the last frame decides, which is the one that is read
                tubes = tubes.select(tubes.present[:, -1])
            if self.journal is not None:
                self.journal.append(pack(tubes))
            yield Piece(_info_of(window[-new:]), pairs.frames(len(window) - new), self.stitcher.push(tubes))


def _info_of(frames: Sequence[_Frame]) -> ClipInfo:
    numbers, images = tuple(frame.number for frame in frames), tuple(frame.image for frame in frames)
    return replace(frames[0].clip, frame_index=numbers, image_ids=images, degraded=(), last=False)


def default_overlap(frames: int) -> int:
    """Two fifths of a window: enough common frames to link objects, at 1.7 times the work of adjacent windows."""
    return 2 * frames // 5
