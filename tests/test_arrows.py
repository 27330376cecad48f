"""Who may import whom, and what nobody may do: read from the source, without importing it."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "diffjax"
# What each room may import of ours, beside itself. A command may import everything but commands.
ROOMS = {
    "errors": set(),
    "core": {"errors"},
    "nets": {"errors"},
    "data": {"errors", "core", "nets"},
    "metrics": {"errors", "core", "nets"},
    "weights": {"errors", "core", "nets"},
}
ROOMS["run"] = {*ROOMS}
ROOMS["systems"] = {*ROOMS}
ROOMS["studies"] = {*ROOMS}
COMMANDS = [
    *(p for p in PACKAGE.glob("*.py") if p.stem not in ("__init__", "errors")),
    *ROOT.glob("*.py"),
    *(ROOT / "benchmarks").glob("*.py"),
]
CORE_MAY = {"jax", "numpy", "scipy", "chex"}
MODULES = sorted(PACKAGE.rglob("*.py"))
FILES = sorted({*MODULES, *COMMANDS})
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {("torch", "load"), ("os", "system"), ("yaml", "load")}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def imports(path: Path) -> set[str]:
    """Full names of what a file imports anywhere in it: "diffjax.run.mesh", "numpy"."""
    found = set()
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{prefix}.{alias.name}" for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    """Rooms (or commands) of diffjax that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("diffjax.")}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_import_arrows(path):
    here = room(path)
    if here == "__init__":
        return
    allowed = {*ROOMS} if path in COMMANDS else ROOMS[here] | {here}
    assert ours(path) <= allowed, f"{short(path)} may import {sorted(allowed)} only"


@pytest.mark.parametrize("path", [p for p in COMMANDS if PACKAGE not in p.parents], ids=short)
def test_no_script_is_imported(path):
    scripts = {p.stem for p in ROOT.glob("*.py")} | {"benchmarks"}
    for other in MODULES:
        assert not {name.split(".")[0] for name in imports(other)} & scripts, other


@pytest.mark.parametrize("path", [p for p in MODULES if room(p) == "core"], ids=short)
def test_core_stands_alone(path):
    outside = {name.split(".")[0] for name in imports(path)} - {"diffjax"}
    assert outside - CORE_MAY <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", [p for p in MODULES if room(p) == "systems"], ids=short)
def test_no_system_imports_another(path):
    parts = path.relative_to(PACKAGE / "systems").with_suffix("").parts
    names = {name.split(".")[2] for name in imports(path) if name.startswith("diffjax.systems.")}
    systems = {p.parent.name for p in (PACKAGE / "systems").glob("*/__init__.py")}
    assert names & systems <= {parts[0]}


@pytest.mark.parametrize("path", FILES, ids=short)
def test_nothing_that_is_read_is_executed(path):
    tree = ast.parse(path.read_text())
    assert not {name.split(".")[0] for name in imports(path)} & FORBIDDEN_MODULES
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            wanted = node.arg == "weights_only"
            assert isinstance(node.value, ast.Constant) and node.value.value is wanted, node.lineno
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"line {node.lineno}"
        elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            assert (node.func.value.id, node.func.attr) not in FORBIDDEN_ATTRIBUTES, node.lineno


@pytest.mark.parametrize("path", FILES, ids=short)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) < 450


def test_the_tests_see_the_package():
    # An empty list would pass everything above.
    assert {room(p) for p in MODULES} >= {"errors", "core", "nets", "data", "run", "systems"}
    assert "jax" in imports(PACKAGE / "core" / "samplers" / "renoise.py")
    assert ours(PACKAGE / "run" / "loop.py") >= {"errors", "run"}
