"""Builds the operator as a folder that Hugging Face's library `kernels` loads.

    python cuda_ops/hub.py FOLDER [cpu] [cuda]

``FOLDER/build`` gets one build variant for each part that is named (none: all that the compilers here reach), such
as ``torch-stable-abi211-cpu-x86_64-linux`` and ``torch-stable-abi211-cu130-x86_64-linux``.  A variant is complete in
itself: the files of ``stdetr.ops`` with relative imports, the libraries, and ``metadata.json``.  Its operators have a
namespace of their own, so that it lives in one process with other versions and with stdetr.

    import kernels
    kernels.get_local_kernel(Path(FOLDER), backend="cpu").ms_deform_attn

Layout and metadata: "Kernel requirements" in the documentation of `kernels` 0.17.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import platform
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import native

ROOT = Path(__file__).resolve().parent
NAME = "stdetr-deform-attn"
# 0: the interface may still change.
VERSION = 0
SOURCES = ROOT.parent / "src" / "stdetr" / "ops"
# patch.py is about an installed transformers; the rest of stdetr.ops is the operator.
LEFT_OUT = {"__init__.py", "patch.py"}
INIT = '''"""Multi-scale and spatio-temporal deformable attention for CPU and CUDA, from stdetr."""

from . import layers
from .attention import ms_deform_attn, st_deform_attn, st_deform_attn_fused
from .backends import backend
from .temporal import st_deform_attn_temporal

__all__ = [
    "backend",
    "layers",
    "ms_deform_attn",
    "st_deform_attn",
    "st_deform_attn_fused",
    "st_deform_attn_temporal",
]
'''


def python_files(namespace: str) -> dict[str, str]:
    """The Python files of a variant by their path in it."""
    files = {"__init__.py": INIT, "stdetr_ops/__init__.py": (ROOT / "stdetr_ops" / "__init__.py").read_text("utf-8")}
    files |= {path.name: path.read_text("utf-8") for path in SOURCES.glob("*.py") if path.name not in LEFT_OUT}
    changes = {
        r"^(\s*)from stdetr\.ops import ": r"\1from . import ",
        r"^(\s*)from stdetr\.ops\.": r"\1from .",
        r"^(\s*)import stdetr_ops$": r"\1from . import stdetr_ops",
        r"torch\.ops\.stdetr\b": f"torch.ops.{namespace}",
        r'"stdetr::': f'"{namespace}::',
    }
    for pattern, replacement in changes.items():
        files = {name: re.sub(pattern, replacement, text, flags=re.MULTILINE) for name, text in files.items()}
    for name, text in files.items():
        foreign = foreign_imports(text)
        assert not foreign, f"{name} imports {', '.join(foreign)}; a variant may import the standard library and torch"
    return files


def foreign_imports(text: str) -> list[str]:
    """Modules that are neither of the standard library nor torch nor relative."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).split(".")[0])
    return sorted(found - set(sys.stdlib_module_names) - {"torch"})


def source_digest() -> str:
    """Of everything that a variant is made from; part of its namespace."""
    paths = [*SOURCES.glob("*.py"), *(ROOT / "csrc").rglob("*.*"), *ROOT.glob("*.py"), ROOT / "stdetr_ops/__init__.py"]
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        digest.update(path.relative_to(ROOT.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def cuda_version(nvcc: str) -> tuple[str, str]:
    match = re.search(r"release (\d+)\.(\d+)", native._version(nvcc))
    if match is None:
        raise native.BuildError(f"{nvcc} does not tell its release")
    return match[1], match[2]


def write_variant(folder: Path, part: str) -> Path:
    """Builds the variant of ``part`` ("cpu" or "cuda") under ``folder``/build and returns its folder."""
    compiler, nvcc = native.find_compiler(), native.find_nvcc()
    if compiler is None:
        raise native.BuildError("no C++ compiler found (install g++ or set CXX)")
    if part == "cuda" and nvcc is None:
        raise native.BuildError("no nvcc found (install the CUDA toolkit or set CUDA_HOME)")
    namespace = f"_{NAME.replace('-', '_')}_{part}_{source_digest()}"
    backend = "cpu" if part == "cpu" else "cu" + "".join(cuda_version(str(nvcc)))
    abi = "".join(str(number) for number in native.TARGET_VERSION)
    variant = folder / "build" / f"torch-stable-abi{abi}-{backend}-{platform.machine()}-{platform.system().lower()}"
    shutil.rmtree(variant, ignore_errors=True)
    builder, report = native.Builder(namespace=namespace), native.Report(compiler=native._version(compiler))
    builder.cpu(compiler, variant / "stdetr_ops" / "_C_cpu.so", report)
    description: dict[str, object] = {"type": part}
    if part == "cuda":
        report.nvcc = native._version(str(nvcc))
        builder.cuda(compiler, str(nvcc), variant / "stdetr_ops" / "_C_cuda.so")
        description["archs"] = ["8.0", "9.0+PTX"]
    else:
        report.missing["cuda"] = "this is the variant for the CPU"
    for name, text in python_files(namespace).items():
        (variant / name).write_text(text, encoding="utf-8")
    (variant / "stdetr_ops" / "build.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    files = sorted(path for path in variant.rglob("*") if path.is_file())
    metadata = {
        "name": NAME,
        "id": namespace,
        "version": VERSION,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": description,
        "digest": {
            "algorithm": "sha256",
            "files": {
                path.relative_to(variant).as_posix(): base64.b64encode(
                    hashlib.sha256(path.read_bytes()).digest()
                ).decode()
                for path in files
            },
        },
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    return variant


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        sys.exit((__doc__ or "").strip())
    folder, *parts = arguments
    wrong = [part for part in parts if part not in {"cpu", "cuda"}]
    if wrong:
        sys.exit(f"error: {wrong[0]}: no such part; there are cpu and cuda")
    for part in parts or ["cpu", "cuda"]:
        try:
            print(write_variant(Path(folder), part))
        except native.BuildError as error:
            if parts or part == "cpu":
                sys.exit(f"error: the {part} variant cannot be built: {error}")
            print(f"the cuda variant was not built: {error}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
