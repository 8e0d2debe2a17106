"""All that changes while a run trains, on disk: tensors as safetensors and the rest as JSON: reading runs no code."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stdetr import checkpoint
from stdetr.config import RunPaths
from stdetr.engine.average import WeightAverage
from stdetr.engine.meter import Meter
from stdetr.structures import ClassNames

TENSORS, RECORD = "state.safetensors", "state.json"
_UNREADABLE = (EOFError, pickle.UnpicklingError)  # files of earlier versions, whose pickles are read for tensors only
_EARLIER = ("optimizer.bin", "custom_checkpoint_1.pkl", "custom_checkpoint_2.pkl")


@dataclass
class Progress:
    """Where the run is.

    single: the next step is of the phase with single frames
    evaluated: the step of the last evaluation; best: the best value of the monitored metric
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    single: bool = False
    evaluated: int = 0
    skipped: int = 0
    best: float | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)

    def update(self, values: dict[str, Any]) -> None:
        """Take over those of ``values`` that belong here; ValueError for another kind of value."""
        for one in fields(self):
            now = getattr(self, one.name)
            value = values.get(one.name, now)
            kinds = (int, float, type(None)) if one.name == "best" else (type(now),)
            if type(value) not in kinds or (isinstance(value, int) and value < 0):
                raise ValueError(f"{one.name}={value!r} is not possible")
            setattr(self, one.name, value)


class RunState:
    """The state of a run: ``write`` and ``read`` give bitwise equal training after a stop.

    model: without wrappers; optimizer: over its parameters
    """

    def __init__(
        self, model: nn.Module, optimizer: Any, average: WeightAverage | None, meter: Meter, scaler: Any = None
    ) -> None:
        self.model, self.optimizer, self.average, self.meter, self.scaler = model, optimizer, average, meter, scaler
        self.progress = Progress()

    @property
    def shown(self) -> nn.Module:
        """The model that is evaluated and saved: the average where there is one."""
        return self.model if self.average is None else self.average.model

    def write(self, folder: Path, meter: dict[str, Tensor]) -> None:
        """The averaged weights are not written: they are those of the checkpoint.  ``meter``: its state."""
        folder.mkdir(parents=True)
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in zip(self._names(), self._parameters(), strict=True):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value)
        tensors |= {f"meter.{name}": values for name, values in meter.items()}
        tensors["random.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors |= {f"random.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
        save_file(
            {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, folder / TENSORS
        )
        kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - libraries draw from the global generator
        record = {
            "progress": asdict(self.progress),
            "average_step": None if self.average is None else self.average.step,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "random": {"python": random.getstate(), "numpy": [kind, np.asarray(keys).tolist(), *rest]},
        }
        (folder / RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")

    def read(self, folder: Path) -> None:
        """Restore the state of the checkpoint ``folder``, but for learning rates and other settings of the optimiser.

        Raises ValueError where it does not fit the model or is no state.
        """
        weights = checkpoint.read_weights(folder / checkpoint.WEIGHTS)
        try:
            self._restore(folder / checkpoint.STATE, weights)
            self.progress.update(checkpoint.read_meta(folder))
        except (LookupError, TypeError, AttributeError, OverflowError, ValueError, RuntimeError, *_UNREADABLE) as error:
            line = (str(error).strip().splitlines() or [repr(error)])[0]
            raise ValueError(f"{folder / checkpoint.STATE} does not fit this run: {line}") from error

    def _restore(self, folder: Path, weights: dict[str, Tensor]) -> None:
        if (folder / RECORD).is_file():
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            tensors = checkpoint.read_weights(folder / TENSORS)
        else:
            record, tensors = self._read_earlier(folder)
        _load(self.model, _below("model.", tensors))
        if self.average is not None:
            _load(self.average.model, weights)
            self.average.step = int(record["average_step"] or 0)
        if self.scaler is not None and record.get("scaler") is not None:
            self.scaler.load_state_dict(record["scaler"])
        moments = _below("optimizer.", tensors)
        state: dict[int, dict[str, Tensor]] = {}
        for number, (name, parameter) in enumerate(zip(self._names(), self._parameters(), strict=True)):
            own = {key: value for key, value in _below(f"{name}.", moments).items() if "." not in key}
            if any(value.numel() != 1 and value.shape != parameter.shape for value in own.values()):
                raise ValueError(f"the optimiser's state of {name} has another shape")
            if own:
                state[number] = own
        if len({tuple(sorted(own)) for own in state.values()}) > 1:
            raise ValueError("the optimiser's state is incomplete")
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.progress.update(record["progress"])
        device = next(self.model.parameters()).device
        self.meter.restore({name: values.to(device) for name, values in _below("meter.", tensors).items()})
        if "random" in record:
            version, keys, gauss = record["random"]["python"]
            random.setstate((version, tuple(keys), gauss))
            np.random.set_state(tuple(record["random"]["numpy"]))  # noqa: NPY002
            torch.set_rng_state(tensors["random.cpu"])
            cuda = [value for name, value in sorted(tensors.items()) if name.startswith("random.cuda.")]
            if torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(cuda)

    def _read_earlier(self, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The state as accelerate wrote it for earlier versions; its pickles are read for tensors and numbers only."""
        optimizer, progress, average = (
            torch.load(folder / name, map_location="cpu", weights_only=True) if (folder / name).is_file() else None
            for name in _EARLIER
        )
        if optimizer is None or progress is None:
            raise ValueError(f"neither {RECORD} nor {' and '.join(_EARLIER[:2])} is there")
        stored = checkpoint.read_weights(folder / checkpoint.WEIGHTS)
        tensors = {f"model.{name.removeprefix('module.')}": value for name, value in stored.items()}
        names = self._names()
        for number, values in optimizer["state"].items():
            tensors |= {f"optimizer.{names[number]}.{key}": torch.as_tensor(v) for key, v in values.items()}
        return {"progress": dict(progress), "average_step": average["step"] if average else None}, tensors

    def permute_classes(self, order: list[int]) -> None:
        """Sort what belongs to a class: class i of the model is then the checkpoint's class ``order[i]``."""
        index = torch.tensor(order)
        names = checkpoint.class_tensors(self.model)
        with torch.no_grad():
            for model in {id(model): model for model in (self.model, self.shown)}.values():
                for name, value in model.state_dict().items():
                    if name in names:
                        value.copy_(value[index.to(value.device)])
            for name, parameter in zip(self._names(), self._parameters(), strict=True):
                for value in self.optimizer.state.get(parameter, {}).values() if name in names else ():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value.copy_(value[index.to(value.device)])

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _names(self) -> list[str]:
        """The name of each parameter of the optimiser, in its order."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [names[id(parameter)] for parameter in self._parameters()]


@dataclass(frozen=True)
class RunRecord:
    """What every checkpoint of a run tells about it.

    config: resolved; notes: further entries of ``meta.json``
    """

    paths: RunPaths
    classes: ClassNames
    config: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)

    def save(
        self,
        folder: Path,
        model: nn.Module,
        step: int,
        metrics: Mapping[str, float | None],
        *,
        notes: Mapping[str, Any] | None = None,
        keep: int = 0,
        save_state: Callable[[Path], object] | None = None,
    ) -> None:
        """Write the checkpoint ``folder``, as ``checkpoint.save`` does."""
        checkpoint.save(
            folder, model, self.classes, step=step, metrics=metrics, save_state=save_state, keep=keep,
            config=self.config, notes={**self.notes, **(notes or {})},
        )  # fmt: skip


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    difference = checkpoint.Difference.between(model.state_dict(), tensors)
    if difference:
        raise ValueError(f"{difference}; init_from takes over the weights that fit")
    model.load_state_dict(tensors)
