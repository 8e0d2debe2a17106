"""Video in, tracks out.

Shape legend
    B windows per batch    T frames of a window    N tubes    h, w pixels of the source frame
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from stdetr import checkpoint
from stdetr import config as configs
from stdetr.data.collate import Collate
from stdetr.data.transforms import ClipTransform
from stdetr.inference.predictions import VideoInfo, VideoPredictions
from stdetr.inference.windows import Window, iterate_windows
from stdetr.models.detector import ClipDetector
from stdetr.models.neck import Tokens
from stdetr.models.postprocess import to_tubes
from stdetr.models.streaming import CausalStream
from stdetr.stitch.association import StitchRules
from stdetr.stitch.stitching import Stitcher, best_class_only, visible_frames
from stdetr.structures import ClassNames, Clip, ClipBatch, ClipInfo, ClipTargets, ModelOutput, Tubes
from stdetr.video.open import open_source
from stdetr.video.source import VideoSource

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Detector:
    """A model with everything it needs to run on videos of any length in bounded memory.

    model:           a ``ClipDetector``, or a module with its ``features`` and ``detect``; a causal one runs frame by
                     frame
    transform:       the evaluation transforms of the data the model was trained on, normalisation included
    clip_length:     T of a window; overlap: how many frames a window shares with the next one
    step:            process every ``step``-th frame
    top_k:           (tube, class) pairs kept of a window
    score_threshold: frames of a tube with a lower score are left out
    presence:        ... as are frames with a lower presence
    track_threshold: a track gets its id when a frame reaches this score
    rules:           when a window's tube continues a track (its ``birth_score`` is ``track_threshold``)
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
        presence: float = 0.3,
        track_threshold: float = 0.4,
        rules: StitchRules | None = None,
        batch_size: int = 1,
        pad_to: int = 32,
        precision: str = "fp32",
        device: torch.device | str = "cpu",
    ) -> None:
        if not 0 <= overlap < clip_length:
            raise ValueError(f"overlap={overlap} must lie in [0, clip_length - 1] = [0, {clip_length - 1}]")
        for name, value in (("top_k", top_k), ("batch_size", batch_size), ("step", step)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        thresholds = {"score_threshold": score_threshold, "presence": presence, "track_threshold": track_threshold}
        for name, value in thresholds.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must lie in [0, 1]")
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r} is not one of {', '.join(PRECISIONS)}")
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.classes = classes
        self.transform = transform
        self.clip_length, self.overlap, self.step = clip_length, overlap, step
        self.top_k, self.score_threshold, self.presence = top_k, score_threshold, presence
        self.rules = replace(rules if rules is not None else StitchRules(), birth_score=track_threshold)
        self.batch_size = batch_size
        self.collate = Collate(pad_to)
        self.precision = precision

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str = "auto", **settings: Any) -> Detector:
        """The detector of a run folder, a checkpoint folder or a ``model.safetensors``.

        device: ``auto`` (the first GPU, else the CPU) or any name that torch knows
        settings: constructor arguments, mainly ``clip_length`` and ``overlap``; by default (None) the clip length of
        training, with an overlap of two fifths of it

        Raises FileNotFoundError and ValueError, in one line, for what is missing or does not fit.
        """
        where = choose_device(device)
        model, cfg, classes = load_model(path, where)
        given = {name: value for name, value in settings.items() if value is not None}
        frames = int(given.pop("clip_length", 0) or cfg.data.frames)
        defaults: dict[str, Any] = {"overlap": default_overlap(frames), "pad_to": _pad_to(cfg)}
        return cls(model, classes, eval_transform(cfg), clip_length=frames, device=where, **{**defaults, **given})

    def open(self, source: str | Path | VideoSource) -> VideoSource:
        """``source`` itself, or the file, folder of frames or glob that it names."""
        return open_source(source) if isinstance(source, str | Path) else source

    def stream(
        self, source: str | Path | VideoSource, *, start: int = 0, max_frames: int | None = None
    ) -> Iterator[Tubes]:
        """Tracks of consecutive pieces of the video, each as soon as no later window can change it.

        Every processed frame comes exactly once, in order; an id means the same object throughout.  The backbone runs
        once per frame.  A causal model gives one frame at a time, and its result is final.
        """
        if max_frames is not None and max_frames < 1:
            raise ValueError(f"max_frames={max_frames} must be at least 1")
        video = self.open(source)
        stop = None if max_frames is None else start + max_frames * self.step
        causal = getattr(self.model, "causal", False)
        stitcher = Stitcher(0 if causal else self.overlap, self.rules)
        for tubes in (self._frame_by_frame if causal else self._by_windows)(video, start, stop):
            clip = stitcher.push(tubes)
            if clip.frame_index.numel():
                yield clip
        rest = stitcher.flush()
        if rest.frame_index.numel():
            yield rest

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

    def _by_windows(self, video: VideoSource, start: int, stop: int | None) -> Iterator[Tubes]:
        """The tubes of each window, not yet stitched."""
        windows = iterate_windows(video, self.clip_length, self.overlap, start=start, stop=stop, step=self.step)
        known: dict[int, Tokens] = {}
        while group := list(islice(windows, self.batch_size)):
            new = {i: x for w in group for i, x in zip(w.frame_index, w.frames, strict=True) if i not in known}
            known |= self._tokens(Window(tuple(new), np.stack(list(new.values()))), video)
            yield from self._detect([window.frame_index for window in group], known, video)
            known = {i: known[i] for i in group[-1].frame_index}

    def _frame_by_frame(self, video: VideoSource, start: int, stop: int | None) -> Iterator[Tubes]:
        """The tubes of each frame and the previous one, which links them."""
        window = CausalStream(cast(ClipDetector, self.model), self.clip_length, self.overlap)
        frames = video.iterate(start, stop, self.step)
        while group := list(islice(frames, self.batch_size)):
            ahead = Window(tuple(index for index, _ in group), np.stack([frame for _, frame in group]))
            for index, tokens in self._tokens(ahead, video).items():
                with torch.no_grad(), self._autocast():
                    output = window.push(tokens, index)
                length = len(window.index)
                output = output.frames(max(0, length - 2), length)
                (tubes,) = self._sure(output, [_info(video, tuple(window.index[-2:]))])
                yield tubes

    @torch.no_grad()
    def _tokens(self, frames: Window, video: VideoSource) -> dict[int, Tokens]:
        """The tokens of each frame, by frame number."""
        batch = self.batch([frames], video)
        with self._autocast():
            tokens = cast(ClipDetector, self.model).features(batch.frames, batch.sizes)
        return {index: tokens.frame(t) for t, index in enumerate(frames.frame_index)}

    @torch.no_grad()
    def _detect(self, windows: Sequence[tuple[int, ...]], known: dict[int, Tokens], video: VideoSource) -> list[Tubes]:
        """The tubes of windows of equal length, from the tokens of their frames."""
        some = known[windows[0][0]]
        features = torch.cat([torch.cat([known[i].features for i in window], 1) for window in windows])
        shared = {
            name: getattr(some, name).expand(len(windows), *getattr(some, name).shape[1:])
            for name in ("position", "valid", "valid_ratios", "centres")
        }
        index = torch.tensor(windows, device=self.device)
        with self._autocast():
            tokens = replace(some, features=features, **shared)
            output = cast(ClipDetector, self.model).detect(tokens, frame_index=index)
        return self._sure(output, [_info(video, window) for window in windows])

    def _sure(self, output: ModelOutput, infos: Sequence[ClipInfo]) -> list[Tubes]:
        """The tubes that are reported of each clip: each query under one class, on the frames where it is seen."""
        results = []
        for tubes in to_tubes(output, infos, self.top_k, self.score_threshold, self.presence):
            tubes = visible_frames(tubes, score_threshold=self.score_threshold)
            if output.logits.ndim == 4:  # the last frame decides, which is the one that is read
                tubes = tubes.select(tubes.present[:, -1])
            results.append(best_class_only(tubes))
        return results

    def batch(self, windows: Sequence[Window], video: VideoSource) -> ClipBatch:
        """Windows as input of the model, on its device; of equal length or padded in time."""
        clips = []
        for window in windows:
            frames, _, _ = self.transform(torch.from_numpy(window.frames).permute(0, 3, 1, 2), torch.zeros(0, 4))
            clips.append(Clip(frames, ClipTargets.empty(len(frames)), _info(video, window.frame_index)))
        return self.collate(clips).to(self.device)

    def _autocast(self) -> AbstractContextManager[object]:
        kind = PRECISIONS[self.precision]
        return nullcontext() if kind is None else torch.autocast(self.device.type, dtype=kind)


def _info(video: VideoSource, frame_index: tuple[int, ...]) -> ClipInfo:
    return ClipInfo(0, frame_index, (-1,) * len(frame_index), video.size, video.name)


def load_model(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, DictConfig, ClassNames]:
    """Build the model that ``config.yaml`` describes and load the weights; in evaluation mode, on ``device``.

    Raises FileNotFoundError for a missing file and ValueError for a damaged one, or for weights that do not fit this
    model, with the names that differ.
    """
    files = checkpoint.find_checkpoint(path)
    cfg = configs.load_config(files.config)
    node = OmegaConf.select(cfg, "model.detector")
    if node is None:
        raise ValueError(f"{files.config}: key model.detector is missing; is it the configuration of a training run?")
    model: nn.Module = configs.instantiate(node)
    weights, parameters = checkpoint.read_weights(files.weights), model.state_dict()
    weights = {name: x for name, x in weights.items() if name in parameters or name not in checkpoint.UNUSED_TENSORS}
    difference = checkpoint.Difference.between(parameters, weights)
    if difference:
        raise ValueError(f"{files.weights} does not fit the model of {files.config}: {difference}")
    model.load_state_dict(weights)
    return model.to(device).eval(), cfg, checkpoint.read_classes(files.meta)


def choose_device(device: str) -> torch.device:
    """``auto`` is the first GPU where there is one, else the CPU; raises ValueError for a missing device."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is unknown; use auto, cpu, cuda or cuda:<number>") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device} but PyTorch sees no GPU here; use device=auto or device=cpu")
    return chosen


def default_overlap(frames: int) -> int:
    """Two fifths of a window: enough common frames to link objects, at 1.7 times the work of adjacent windows."""
    return 2 * frames // 5


def eval_transform(cfg: DictConfig) -> ClipTransform:
    """The transforms that the run evaluated with, from ``data.eval_transforms``, ``data.mean`` and ``data.std``."""
    transforms = configs.instantiate(cfg.data.eval_transforms)
    return ClipTransform(list(transforms or ()), mean=list(cfg.data.mean), std=list(cfg.data.std))


def _pad_to(cfg: DictConfig) -> int:
    return int(OmegaConf.select(cfg, "data.loader.pad_to", default=32))


def normalised_to_uint8(frames: Tensor, transform: ClipTransform) -> Tensor:
    """The pixels behind normalised frames: T,3,h,w float32 -> T,h,w,3 uint8, for pictures."""
    if transform.scale is not None and transform.shift is not None:
        frames = (frames - transform.shift.to(frames.device)) / transform.scale.to(frames.device)
    return frames.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
