"""Packaging of stdetr-ops: the Python part always, the libraries as far as this machine's compilers reach."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

# A build backend does not put the project's folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent))
from native import build


class BuildWithLibraries(build_py):
    """Puts the libraries and build.json beside the Python files."""

    def run(self) -> None:
        super().run()
        package = Path(self.build_lib) / "stdetr_ops"
        package.mkdir(parents=True, exist_ok=True)
        for stale in [*package.glob("_C_*.so"), package / "build.json"]:
            stale.unlink(missing_ok=True)
        report = build(package)
        (package / "build.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
        for part, reason in report.missing.items():
            print(f"stdetr-ops: the {part} library was not built: {reason}", file=sys.stderr)


class PlatformWheel(bdist_wheel):
    """The libraries use torch's stable ABI and no Python: one wheel a platform serves every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class PlatformDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(distclass=PlatformDistribution, cmdclass={"build_py": BuildWithLibraries, "bdist_wheel": PlatformWheel})
