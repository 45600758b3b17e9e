"""The house's floors (ARCHITECTURE.md): a module imports only from strictly lower ones, wherever the import stands."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"fwbench": ROOT / "fwbench", "fwbench.problems": ROOT / "problems", "fwbench.solvers": ROOT / "solvers"}

# from the ground up; a folder is one entry and free inside; what shares a floor does not import one another
FLOORS = (
    "spec metrics patterns result machine child schema sheet",
    "problem timing events",
    "judge bounds verify_tree",
    "verify_products",
    "verify stage",
    "solvers problems",
    "pipeline store isolate perplexity",
    "job contract prove imports report",
    "runner prune cite",
    "cli",
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}

MODULES = {
    ".".join((package, *path.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__"): path
    for package, folder in FOLDERS.items()
    for path in sorted(folder.rglob("*.py"))
}


def imports(module: str) -> set[str]:
    """The modules of fwbench that a module imports, anywhere in its text."""
    path, found = MODULES[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {name if (name := f"{base}.{alias.name}") in MODULES else base for alias in node.names}
    return {name for name in found if name.split(".")[0] == "fwbench"}


def entry(module: str) -> str:
    """The entry of a module in the floors; empty for ``fwbench`` itself, which imports nothing."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_from_lower_floors(module):
    own = entry(module)
    assert not own or own in FLOOR, f"{module} is on no floor: give it one here and in ARCHITECTURE.md"
    for name in imports(module):
        other = entry(name)
        assert name in MODULES, f"{module} imports {name}, which does not exist"
        if other not in ("", own):
            assert own, f"fwbench/__init__.py imports {name}"
            assert FLOOR[other] < FLOOR[own], f"{module} (floor {FLOOR[own]}) imports {name} (floor {FLOOR[other]})"


def test_the_test_sees_imports(tmp_path, monkeypatch):
    lines = (
        "from fwbench.solvers import fw",
        "from . import store",
        "import fwbench.cli.make",
        "from fwbench import y",
    )
    (tmp_path / "x.py").write_text("def f():\n " + "\n ".join(lines))
    monkeypatch.setitem(MODULES, "fwbench.x", tmp_path / "x.py")
    assert imports("fwbench.x") == {"fwbench.solvers.fw", "fwbench.store", "fwbench.cli.make", "fwbench"}


HEAVY = ("torch", "transformers", "matplotlib", "cvxpy", "pandas", "gurobipy", "numba")


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("fwbench", HEAVY),
        ("fwbench.stage, fwbench.verify, fwbench.bounds, fwbench.judge", HEAVY),
        ("fwbench.store, fwbench.report", ("torch", "transformers", "numba", "cvxpy", "gurobipy", "fwbench.solvers")),
        ("fwbench.problems.collections, fwbench.problems.synthetic", HEAVY),
        ("fwbench.cli", HEAVY),
    ],
)
def test_importing_stays_light(module, without):
    code = f"import sys, {module}; print(*(set({without}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []


def test_test_folders_mirror_the_house():
    packages = {path.name for path in (ROOT / "fwbench").iterdir() if (path / "__init__.py").is_file()}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.glob("test_*.py"))}
    assert folders <= packages | {"problems", "solvers"}
    assert {"problems", "solvers"} <= folders
