"""The folder for Hugging Face's `kernels`: complete in itself, and its operators beside those of stdetr."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import hub
import native
import pytest
import torch

from stdetr.ops import ms_deform_attn, use_backend

SHAPES = [(6, 9), (3, 5)]


def arguments():
    torch.manual_seed(0)
    value, grad_out = torch.randn(2, 69, 2, 8), torch.randn(2, 5, 16)
    return (value, torch.rand(2, 5, 2, 2, 3, 2), torch.rand(2, 5, 2, 2, 3)), grad_out


def results(attend):
    tensors, grad_out = arguments()
    leaves = [tensor.requires_grad_() for tensor in tensors]
    out = attend(leaves[0], SHAPES, *leaves[1:])
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out)]


def close(got, wanted):
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(got, wanted, strict=True))


def test_python_files_import_nothing_foreign_and_keep_to_their_namespace():
    files = hub.python_files("_name_cpu_1")
    assert {"__init__.py", "attention.py", "layers.py", "registration.py", "stdetr_ops/__init__.py"} <= set(files)
    assert "patch.py" not in files
    for name, text in files.items():
        compile(text, name, "exec")
        assert "torch.ops.stdetr." not in text and '"stdetr::' not in text
    assert '"_name_cpu_1::st_deform_attn_forward"' in files["registration.py"]
    assert "from .attention import ms_deform_attn" in files["layers.py"]


def test_foreign_imports_are_found():
    text = "import os, numpy.linalg\nfrom torch import nn\nfrom . import x\nfrom stdetr.ops import y\n"
    assert hub.foreign_imports(text) == ["numpy", "stdetr"]


def test_a_wrong_part_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="rocm: no such part; there are cpu and cuda"):
        hub.main([str(tmp_path), "rocm"])
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def variant(request, tmp_path_factory):
    """A variant, built: the one for CUDA serves CPU tensors, too."""
    if native.find_compiler() is None:
        pytest.skip("no C++ compiler")
    if request.param == "cuda" and native.find_nvcc() is None:
        pytest.skip("no nvcc")
    return hub.write_variant(tmp_path_factory.mktemp("hub"), request.param)


def load(variant: Path):
    """As `kernels` loads it: under the identifier of its metadata."""
    name = json.loads((variant / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_variant_computes_what_stdetr_computes(variant):
    module = load(variant)
    assert str(module.backend("cpu")).startswith("cpu (stdetr-ops")
    with use_backend("reference"):
        wanted = results(ms_deform_attn)
    assert close(results(module.ms_deform_attn), wanted)
    assert close(results(ms_deform_attn), wanted)
    # Its own operators, not those of stdetr.
    operators = getattr(torch.ops, module.__name__)
    tensors, _ = arguments()
    flat = [size for pair in SHAPES for size in pair]
    plain = operators.st_deform_attn_forward(
        tensors[0][:, None], tensors[1][:, :, :, None], tensors[2][:, :, :, None], None, flat
    )
    assert torch.allclose(plain, wanted[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_metadata_lists_every_file_with_its_digest(variant):
    assert re.fullmatch(r"torch-stable-abi211-(cpu|cu\d+)-\w+-linux", variant.name) and variant.parent.name == "build"
    metadata = json.loads((variant / "metadata.json").read_text())
    wanted = {"type": "cpu"} if "-cpu-" in variant.name else {"type": "cuda", "archs": ["8.0", "9.0+PTX"]}
    assert metadata["backend"] == wanted and metadata["python-depends"] == []
    assert metadata["id"].isidentifier()
    listed = metadata["digest"]["files"]
    there = {
        path.relative_to(variant).as_posix(): path.read_bytes()
        for path in variant.rglob("*")
        if path.is_file() and path.name != "metadata.json" and "__pycache__" not in path.parts
    }
    assert set(listed) == set(there)
    assert {name for name in there if name.endswith(".so")} == {
        f"stdetr_ops/_C_{part}.so" for part in ("cpu", "cuda") if part == "cpu" or wanted["type"] == "cuda"
    }
    for name, content in there.items():
        assert base64.b64decode(listed[name]) == hashlib.sha256(content).digest()


@pytest.mark.slow
def test_the_kernels_library_loads_it_and_replaces_a_layer(variant):
    kernels = pytest.importorskip("kernels", reason="the library kernels is not installed")
    if "-cpu-" in variant.name:
        module = kernels.get_local_kernel(variant.parent.parent, backend="cpu")
    else:
        module = kernels.get_local_kernel(variant)
    assert close(results(module.ms_deform_attn), results(ms_deform_attn))

    @kernels.use_kernel_forward_from_hub("MultiScaleDeformableAttention")
    class Layer(torch.nn.Module):
        def forward(self, value, shapes, value_spatial_shapes_list, level_start_index, locations, weights, im2col_step):
            raise AssertionError("the original runs")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = Layer()

    # The folder of the variant itself: a torch with CUDA would else ask for the variant for CUDA.
    repository = kernels.LocalLayerRepository(variant, layer_name="MultiScaleDeformableAttention")
    modes = kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE
    with kernels.use_kernel_mapping({"MultiScaleDeformableAttention": {"cpu": {modes: repository}}}):
        model = kernels.kernelize(Model(), mode=modes, device="cpu")

    def attend(value, shapes, locations, weights):
        return model.attend(value, torch.tensor(shapes), shapes, None, locations, weights, 64)

    assert close(results(attend), results(ms_deform_attn))
