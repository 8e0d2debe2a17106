"""Mutation testing: change one line of the sources at a time and count the changes that the mirrored tests notice.

    python scripts/mutants.py                                   # 150 mutants, seed 0: hours
    python scripts/mutants.py --count 20 --packages losses      # a few minutes
    python scripts/mutants.py --list                            # name the sample, run nothing

A mutant of src/stdetr/PACKAGE/NAME.py is run against tests/PACKAGE: first the files that are named after NAME, then the
others.  It is caught when a test fails or takes far too long.  Mutants that compute the same as the original can be
listed in tests/equivalent_mutants.txt, one name per line, with the reason after "  # ".  Sources and tests are copied,
the working tree is never touched.  Exits 1 when fewer than ``--bar`` of the mutants that are not equivalent are caught.

mutmut and cosmic-ray draw no sample with a seed and run one command for all mutants, hence this script.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES, TESTS = ROOT / "src" / "stdetr", ROOT / "tests"
EQUIVALENT = TESTS / "equivalent_mutants.txt"
PACKAGES = ("models", "losses", "stitch", "evaluation", "engine")
COPIED = ("src", "conf", "tests", "scripts", "cuda_ops", "pyproject.toml", "README.md")

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Add, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """``before`` is replaced by ``after`` between two offsets of ``file`` (relative to src/stdetr)."""

    file: str
    function: str
    line: int
    start: int
    end: int
    before: str
    after: str

    @property
    def name(self) -> str:
        """Stable when lines move; the second of two equal ones in a function has #2."""
        one_line = " ".join(f"{self.before} -> {self.after}".split())
        return f"{self.file}:{self.function}: {one_line}"


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Replacements of ``node``: an inverted operator, another number, a removed statement."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPS:
        changed = copy.copy(node)
        changed.ops = [SWAPS[type(node.ops[0])]()]  # pyright: ignore[reportAttributeAccessIssue]
        yield changed
    elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
        changed = copy.copy(node)
        changed.op = SWAPS[type(node.op)]()  # pyright: ignore[reportAttributeAccessIssue]
        yield changed
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        yield ast.Constant(not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    elif isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield ast.Pass()


class Finder(ast.NodeVisitor):
    """All mutants of one file, outside of annotations, docstrings, decorators, imports, messages and assertions."""

    def __init__(self, file: str, text: str) -> None:
        self.file, self.text, self.found, self.path = file, text.encode(), [], []
        self.starts = [0]
        for line in self.text.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.visit(ast.parse(text))

    def generic_visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
            return
        named = isinstance(node, ast.FunctionDef | ast.ClassDef)
        if named:
            self.path.append(node.name)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.visit(child)
        if named:
            self.path.pop()
        for changed in changes(node):
            start = self.starts[node.lineno - 1] + node.col_offset  # pyright: ignore[reportAttributeAccessIssue]
            end = self.starts[node.end_lineno - 1] + node.end_col_offset  # pyright: ignore[reportAttributeAccessIssue, reportOperatorIssue, reportOptionalOperand]
            before, after = self.text[start:end].decode(), ast.unparse(ast.fix_missing_locations(changed))
            if isinstance(node, ast.expr) and not isinstance(changed, ast.Constant):
                after = f"({after})"
            place = ".".join(self.path) or "module"
            twins = sum((m.function.split("#")[0], m.before, m.after) == (place, before, after) for m in self.found)
            place += f"#{twins + 1}" if twins else ""
            self.found.append(Mutant(self.file, place, node.lineno, start, end, before, after))  # pyright: ignore[reportAttributeAccessIssue]


def sample(packages: list[str], count: int, seed: int) -> list[Mutant]:
    """``count`` mutants, the same number from each package."""
    drawn: list[Mutant] = []
    for i, package in enumerate(packages):
        folder = SOURCES / package
        if not folder.is_dir():
            known = ", ".join(sorted(path.name for path in SOURCES.iterdir() if (TESTS / path.name).is_dir()))
            raise SystemExit(f"--packages: src/stdetr/{package} is not a folder; folders with tests: {known}")
        pool: list[Mutant] = []
        for path in sorted(folder.rglob("*.py")):
            pool += Finder(path.relative_to(SOURCES).as_posix(), path.read_text(encoding="utf-8")).found
        share = count // len(packages) + (i < count % len(packages))
        drawn += random.Random(f"{seed} {package}").sample(pool, min(share, len(pool)))
    return drawn


def tests_of(mutant: Mutant) -> list[str]:
    """Test files of the mutant's package, those that are named after its file first."""
    package, name = mutant.file.split("/", 1)[0], Path(mutant.file).stem
    files = sorted((TESTS / package).rglob("test_*.py"), key=lambda path: (path.stem != f"test_{name}", path))
    return [path.relative_to(ROOT).as_posix() for path in files]


def run_tests(tree: Path, files: list[str], limit: int | None) -> bool:
    """Whether all pass, within ``limit`` seconds of processor time and, against deadlocks, twenty times as long."""
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    path = os.pathsep.join([str(tree / "src"), os.environ.get("PYTHONPATH", "")])
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            check=False,
            timeout=None if limit is None else 20 * limit,
            # A busy machine must not count as a caught mutant, so the limit is one of processor time.
            preexec_fn=None if limit is None else partial(resource.setrlimit, resource.RLIMIT_CPU, (limit, limit)),
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def equivalent() -> set[str]:
    if not EQUIVALENT.is_file():
        return set()
    return {line.split("  # ")[0].strip() for line in EQUIVALENT.read_text(encoding="utf-8").splitlines() if line}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packages", nargs="+", default=[p for p in PACKAGES if (SOURCES / p).is_dir()])
    parser.add_argument("--bar", type=float, default=0.9, help="share of mutants that must be caught")
    parser.add_argument("--output", type=Path, help="JSON file for the result; what it holds already is not run again")
    parser.add_argument("--list", action="store_true", help="print the sample and stop")
    options = parser.parse_args()
    mutants = sample(options.packages, options.count, options.seed)
    if options.list:
        print("\n".join(f"{mutant.line:4d} {mutant.name}" for mutant in mutants))
        return 0
    results: dict[str, dict] = {}
    if options.output is not None and options.output.is_file():
        results = {row["name"]: row for row in json.loads(options.output.read_text(encoding="utf-8"))}
    same = equivalent()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "build"))
            elif (ROOT / name).is_file():
                shutil.copy(ROOT / name, tree / name)
        limits: dict[str, int] = {}
        for i, mutant in enumerate(mutants):
            if mutant.name in results or mutant.name in same:
                continue
            package, files = mutant.file.split("/", 1)[0], tests_of(mutant)
            if package not in limits:
                began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
                if not run_tests(tree, files, None):
                    raise SystemExit(f"tests/{package} fails without any mutant; make it pass first")
                limits[package] = 30 + int(4 * (resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began))
            path = tree / "src" / "stdetr" / mutant.file
            original = path.read_bytes()
            path.write_bytes(original[: mutant.start] + mutant.after.encode() + original[mutant.end :])
            caught = not run_tests(tree, files, limits[package])
            path.write_bytes(original)
            results[mutant.name] = {"name": mutant.name, "caught": caught, **asdict(mutant)}
            print(f"{i + 1}/{len(mutants)} {'caught  ' if caught else 'SURVIVED'} {mutant.name}", flush=True)
            if options.output is not None:
                options.output.write_text(json.dumps(list(results.values()), indent=1) + "\n", encoding="utf-8")
    return report(mutants, results, same, options.bar)


def report(mutants: list[Mutant], results: dict[str, dict], same: set[str], bar: float) -> int:
    """Prints a table by package and the survivors; 1 where too few were caught."""
    counted = [mutant for mutant in mutants if mutant.name not in same]
    print(f"\n{'package':<12}{'mutants':>8}{'equivalent':>11}{'caught':>8}")
    for package in dict.fromkeys(mutant.file.split("/", 1)[0] for mutant in mutants):
        rows = [mutant for mutant in mutants if mutant.file.startswith(f"{package}/")]
        caught = sum(results[mutant.name]["caught"] for mutant in rows if mutant.name not in same)
        print(f"{package:<12}{len(rows):>8}{sum(mutant.name in same for mutant in rows):>11}{caught:>8}")
    survivors = [mutant for mutant in counted if not results[mutant.name]["caught"]]
    for mutant in survivors:
        print(f"survived: src/stdetr/{mutant.file}:{mutant.line}  {mutant.name}")
    share = 1 - len(survivors) / max(1, len(counted))
    print(f"caught: {share:.1%} of {len(counted)} mutants that are not equivalent")
    return int(share < bar)


if __name__ == "__main__":
    sys.exit(main())
