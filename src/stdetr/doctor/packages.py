"""Installed packages against what the project declares, torch and torchvision above all."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.version import Version

from stdetr.doctor.check import Check

REINSTALL = (
    "make clean-env env; or install both from one place: "
    "pip install --force-reinstall torch=={torch} torchvision=={vision}"
)
TORCH_TO_VISION_MINOR = 15
"""torchvision 0.(n + 15) belongs to torch 2.n: the project's releases have kept that step since torch 2.0."""


def check_torch() -> Iterator[Check]:
    """torch, torchvision, and whether they match: torchvision's compiled operators load only into the torch they were
    built for, else "operator torchvision::nms does not exist".
    """
    import torch

    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    yield Check("torch", "ok", f"{torch.__version__} ({cuda}, {torch.get_num_threads()} threads)")
    expected = matching_torchvision(torch.__version__)
    fix = REINSTALL.format(torch=Version(torch.__version__).public, vision=f"{expected}.*")
    try:
        vision = metadata.version("torchvision")
        ops = importlib.import_module("torchvision.ops")
        boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9], [8.0, 8.0, 9.0, 9.0]])
        kept = ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    except metadata.PackageNotFoundError:
        yield Check("torchvision", "broken", "not installed", "make env, or pip install torchvision")
    except (RuntimeError, ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())
        text = f"{vision} does not match torch {torch.__version__} (it needs torchvision {expected}): {reason}"
        yield Check("torchvision", "broken", text, fix)
    else:
        if kept != [0, 2]:
            yield Check("torchvision", "broken", f"{vision}: nms kept boxes {kept} of 3 where it must keep [0, 2]", fix)
        elif not vision.startswith(f"{expected}."):
            text = f"{vision} works, though torch {torch.__version__} belongs with torchvision {expected}"
            yield Check("torchvision", "note", text, fix)
        else:
            yield Check("torchvision", "ok", f"{vision} matches torch; its operators work")


def matching_torchvision(torch_version: str) -> str:
    """The torchvision release line, ``0.28``, that belongs to a torch version, ``2.13.0+cpu``."""
    return f"0.{Version(torch_version).minor + TORCH_TO_VISION_MINOR}"


def check_dependencies() -> Iterator[Check]:
    """Every required package of the project's metadata: installed, and in range."""
    if missing := _problems(""):
        yield Check("dependencies", "broken", "; ".join(missing), "make env, or pip install -e .")
        return
    shown = ["hydra-core", "omegaconf", "accelerate", "supervision", "pycocotools"]
    yield Check("dependencies", "ok", ", ".join(f"{name} {metadata.version(name)}" for name in shown))


def check_extras() -> Iterator[Check]:
    """Which extras are installed."""
    extras = {extra: _problems(extra) for extra in metadata.metadata("stdetr").get_all("Provides-Extra") or []}
    whole = ", ".join(extra for extra, problems in extras.items() if not problems)
    yield Check("extras", "ok", f"installed: {whole or 'none'}")
    for extra, problems in extras.items():
        if problems:
            yield Check(f"extra {extra}", "note", "; ".join(problems), f"pip install 'stdetr[{extra}]'")


def _problems(extra: str) -> list[str]:
    """What the installation lacks of an extra; of the project itself where ``extra`` is empty."""
    problems = []
    for item in map(Requirement, metadata.requires("stdetr") or []):
        named = re.search(r"extra\s*==\s*['\"]([^'\"]*)['\"]", str(item.marker or ""))
        if (named.group(1) if named else "") != extra:
            continue
        try:
            installed = metadata.version(item.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{item.name} is missing")
            continue
        if not item.specifier.contains(installed, prereleases=True):
            problems.append(f"{item.name} {installed} is not {item.specifier}")
    return problems
