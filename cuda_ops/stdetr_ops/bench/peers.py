"""The implementations that ``suite=op`` compares: ours, the reference, and what other systems run.

Shape legend
    B clips    T frames    S tokens of a frame    H heads    D channels per head    Q queries    F sampled frames (= T)
    L levels    K points per head, level and frame

A peer without a time axis gets the T frames as T * L levels, which is the same sum (DeVIS, Caelles et al., 2022).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from stdetr.ops import backend, st_deform_attn, st_deform_attn_fused, st_deform_attn_temporal, use_backend
from stdetr.ops.reference import form_samples
from stdetr.ops.temporal import use_temporal_kernel
from stdetr_ops.bench.cases import KINDS, OpInputs, TemporalTerms

Shapes = Sequence[tuple[int, int]]
# value B,T,S,H,D; locations B,Q,H,F,L,K,2; weights B,Q,H,F,L,K -> B,Q,H*D
Plain = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]
TRANSFORMERS = "4.46.3"
# Ours in other settings come first.
PEERS = (
    *("stdetr_composed", "stdetr_coarse2"),
    *("reference", "grid_sample", "deformable_detr", "kernels_community", "deformops"),
)


@dataclass(frozen=True)
class Implementation:
    """``plain`` takes locations and weights.  ``fused`` is None where PyTorch operations have to make those first.

    ``temporal`` is None where they have to make offsets and logits of each frame first.
    """

    name: str
    plain: Plain
    fused: Callable[[OpInputs], Tensor] | None = None
    temporal: Callable[[OpInputs, TemporalTerms], Tensor] | None = None
    kinds: tuple[str, ...] = KINDS  # where it differs from the others
    variables: tuple[tuple[str, str], ...] = ()  # of the environment, while it runs
    absent: str | None = None  # why it cannot run here

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Runs the block, forward and backward, with ``variables`` set."""
        before = {name: os.environ.get(name) for name, _ in self.variables}
        os.environ.update(self.variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _absent(name: str, reason: str) -> Implementation:
    def refuse(*_: Any) -> Tensor:
        raise RuntimeError(f"{name} is absent: {reason}")

    return Implementation(name, refuse, absent=reason)


def grid_sample_attention(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """As in Hugging Face's and RF-DETR's PyTorch paths: one grid_sample per frame and level, then a sum."""
    batch, frames, _, heads, channels = value.shape
    queries = locations.shape[1]
    grids = 2 * locations - 1
    areas = [height * width for height, width in shapes]
    sampled = []
    for frame in range(frames):
        for level, (tokens, (height, width)) in enumerate(
            zip(value[:, frame].split(areas, dim=1), shapes, strict=True)
        ):
            image = tokens.flatten(2).transpose(1, 2).reshape(batch * heads, channels, height, width)
            grid = grids[:, :, :, frame, level].transpose(1, 2).flatten(0, 1).to(value.dtype)
            sampled.append(
                functional.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            )
    shares = weights.to(value.dtype).transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    out = (torch.stack(sampled, dim=-2).flatten(-2) * shares).sum(-1)
    return out.view(batch, heads * channels, queries).transpose(1, 2).contiguous()


def _reference_plain(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    with use_backend("reference"):
        return st_deform_attn(value, shapes, locations, weights)


def _reference_fused(inputs: OpInputs) -> Tensor:
    with use_backend("reference"):
        return _ours_fused(inputs)


def _ours_fused(inputs: OpInputs) -> Tensor:
    return st_deform_attn_fused(inputs.value, inputs.shapes, inputs.reference, inputs.offsets, inputs.logits)


def _ours_temporal(inputs: OpInputs, terms: TemporalTerms) -> Tensor:
    with use_temporal_kernel("cpu", "cuda"):
        return st_deform_attn_temporal(inputs.value, inputs.shapes, inputs.reference, **vars(terms))


def formed(inputs: OpInputs, terms: TemporalTerms) -> OpInputs:
    """Offsets and logits of each frame, as PyTorch operations make them."""
    offsets, logits = form_samples(**vars(terms))
    return replace(inputs, offsets=offsets.to(inputs.value.dtype), logits=logits.to(inputs.value.dtype))


def _folded(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    """Frames as levels: value B,T*S,H,D; sizes T*L,2; first tokens T*L; locations and weights with T*L levels."""
    batch, frames, tokens, heads, channels = value.shape
    sizes, starts = _level_tables(tuple(map(tuple, shapes)), frames, str(value.device))
    return (
        value.reshape(batch, frames * tokens, heads, channels),
        sizes,
        starts,
        locations.flatten(3, 4),
        weights.flatten(3, 4),
    )


@cache
def _level_tables(shapes: tuple[tuple[int, int], ...], frames: int, device: str) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor(list(shapes) * frames, dtype=torch.int64)
    starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
    return sizes.to(device), starts.to(device)


def _deformops(device: torch.device) -> Implementation:
    name = "deformops"
    if device.type != "cuda":
        return _absent(name, "its kernels need a GPU")
    if sys.version_info < (3, 12):
        return _absent(name, f"it needs Python 3.12, this is {sys.version_info.major}.{sys.version_info.minor}")
    if importlib.util.find_spec("deformops") is None:
        return _absent(name, "not installed: pip install deformops==3.0.1")
    msda = importlib.import_module("deformops.registry").msda

    def plain(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        folded = _folded(value, shapes, locations, weights.to(value.dtype))
        return msda(*folded, method="linear").flatten(2)

    def fused(inputs: OpInputs) -> Tensor:
        locations, _ = _locations_only(inputs)
        folded = _folded(inputs.value, inputs.shapes, locations, inputs.logits)
        return msda(*folded, method="softmax").flatten(2)

    return Implementation(name, plain, fused)


def _locations_only(inputs: OpInputs) -> tuple[Tensor, None]:
    sizes = inputs.reference.new_tensor([(width, height) for height, width in inputs.shapes])
    offsets = inputs.offsets.to(inputs.reference.dtype) / sizes[:, None]
    return inputs.reference[:, :, None, :, None, None] + offsets, None


def _deformable_detr(device: torch.device, wheel: str | None) -> Implementation:
    """The original CUDA sources (Zhu et al., 2021) as transformers 4.46 ships them, built into a temporary folder."""
    name = "deformable_detr"
    if device.type != "cuda":
        return _absent(name, "its kernels need a GPU")
    if shutil.which("nvcc") is None:
        return _absent(name, "no nvcc to build it with")
    try:
        module = build_deformable_detr(wheel)
    except (RuntimeError, OSError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
        lines = str(error).strip().splitlines()
        return _absent(name, f"its build failed: {lines[-1] if lines else type(error).__name__}")
    return _sampling(name, module)


def _kernels_community(device: torch.device, folder: str | None) -> Implementation:
    """The same kernels as Hugging Face's hub holds them compiled, kernels-community/deformable-detr."""
    name = "kernels_community"
    if device.type != "cuda":
        return _absent(name, "its kernels need a GPU")
    if folder is None:
        return _absent(name, "op.kernels_folder=PATH names a copy of kernels-community/deformable-detr")
    version, cuda = "".join(torch.__version__.split(".")[:2]), (torch.version.cuda or "").replace(".", "")
    variant = f"build/torch{version}-*cu{cuda}-*"
    packages = sorted([*Path(folder).glob(f"{variant}/__init__.py"), *Path(folder).glob(f"{variant}/*/__init__.py")])
    if not packages:
        return _absent(name, f"{folder} has no package in {variant}")
    spec = importlib.util.spec_from_file_location("stdetr_bench_kernels_community", packages[0])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError, AttributeError) as error:
        return _absent(name, f"{packages[0].parent} does not load: {str(error).splitlines()[0]}")
    return _sampling(name, module)


def _sampling(name: str, module: Any) -> Implementation:
    """From the original's two functions, ``ms_deform_attn_forward`` and ``ms_deform_attn_backward``."""

    class Sampling(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *tensors: Tensor) -> Tensor:
            ctx.save_for_backward(*tensors)
            return module.ms_deform_attn_forward(*tensors, 64)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            got = module.ms_deform_attn_backward(*ctx.saved_tensors, grads[0].contiguous(), 64)
            return got[0], None, None, got[1], got[2]

    def plain(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        # Its kernel takes one dtype for all, so half-precision values get half-precision coordinates.
        locations, weights = locations.to(value.dtype).contiguous(), weights.to(value.dtype).contiguous()
        return Sampling.apply(*_folded(value, shapes, locations, weights))

    return Implementation(name, plain)


@cache
def build_deformable_detr(wheel: str | None) -> Any:
    """The compiled module; it is kept in $TORCH_EXTENSIONS_DIR, or else in a temporary folder."""
    from torch.utils.cpp_extension import load

    kept = os.environ.get("TORCH_EXTENSIONS_DIR")
    name = "stdetr_bench_deformable_detr"
    folder = Path(tempfile.mkdtemp(prefix=name)) if kept is None else Path(kept) / name
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "transformers" / "kernels" / "deformable_detr"
    if not source.is_dir():
        _unpack_deformable_detr(wheel, folder, source)
    files = ["vision.cpp", "cpu/ms_deform_attn_cpu.cpp", "cuda/ms_deform_attn_cuda.cu"]
    return load(
        name,
        [str(source / file) for file in files],
        extra_include_paths=[str(source)],
        extra_cflags=["-DWITH_CUDA=1", "-O3"],
        extra_cuda_cflags=["-DWITH_CUDA=1", "-O3"],
        build_directory=str(folder),
    )


def _unpack_deformable_detr(wheel: str | None, folder: Path, source: Path) -> None:
    if wheel is None:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run(
            [*download, "--dest", str(folder), f"transformers=={TRANSFORMERS}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(
                f"pip could not fetch transformers=={TRANSFORMERS}; name its file with op.transformers_wheel=PATH"
            )
        wheel = str(next(folder.glob("transformers-*.whl")))
    with zipfile.ZipFile(wheel) as archive:
        inside = [name for name in archive.namelist() if name.startswith("transformers/kernels/deformable_detr/")]
        archive.extractall(folder, inside)
    for path in [*source.rglob("*.cu"), *source.rglob("*.cpp"), *source.rglob("*.h"), *source.rglob("*.cuh")]:
        # torch 2.6 and later have no DeprecatedTypeProperties here; the kernels stay as they are.
        text = path.read_text(encoding="utf-8")
        text = text.replace("value.type(),", "value.scalar_type(),").replace(".type().is_cuda()", ".is_cuda()")
        path.write_text(text.replace(".data<", ".data_ptr<"), encoding="utf-8")


def implementations(
    device: torch.device,
    peers: Sequence[str] | None = None,
    transformers_wheel: str | None = None,
    kernels_folder: str | None = None,
) -> list[Implementation]:
    """Ours first, then those of PEERS that ``peers`` names (None: all); those that cannot run here say why."""
    have = backend(device)
    ours = Implementation("stdetr", st_deform_attn, _ours_fused, _ours_temporal)
    composed = replace(ours, name="stdetr_composed", temporal=None, kinds=("temporal",))
    coarse = replace(ours, name="stdetr_coarse2", variables=(("STDETR_COARSE_LEVELS", "2"),))
    if device.type != "cuda":
        coarse = _absent(coarse.name, "it is a setting of the CUDA kernels")
    if have.name == "reference":
        ours, composed, coarse = (
            _absent(one.name, f"no kernels in use: {have.reason}") for one in (ours, composed, coarse)
        )
    makers: dict[str, Callable[[], Implementation]] = {
        "stdetr_composed": lambda: composed,
        "stdetr_coarse2": lambda: coarse,
        "reference": lambda: Implementation("reference", _reference_plain, _reference_fused),
        "grid_sample": lambda: Implementation("grid_sample", grid_sample_attention),
        "deformable_detr": lambda: _deformable_detr(device, transformers_wheel),
        "kernels_community": lambda: _kernels_community(device, kernels_folder),
        "deformops": lambda: _deformops(device),
    }
    assert tuple(makers) == PEERS
    return [ours, *(make() for name, make in makers.items() if peers is None or name in peers)]
