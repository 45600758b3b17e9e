"""The house's floors (ARCHITECTURE.md): a module imports only from strictly lower ones, wherever the import stands."""

import subprocess
import sys
from pathlib import Path

import pytest
from structure import arrows, circles, imports, modules

ROOT = Path(__file__).parents[1]

# from the ground up; a folder is one entry and free inside, but for `solvers`, which has floors of its own; what shares
# a floor does not import one another
FLOORS = (
    "spec metrics patterns machine",
    "result",
    "problem timing events",
    "judge bounds verify_tree",
    "verify_products",
    "verify stage",
    "solvers problems",
    "pipeline store isolate perplexity live",
    "runner contract prove imports report",
    "prune cite",
    "cli api",
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}

ROOMS = (  # of `solvers`: imports are free only inside a room
    "numerics presets",
    "start rounding semidefinite",
    "frank_wolfe local_search weight_update",
    "bounds branch_and_bound external",
)
ROOM = {name: floor for floor, names in enumerate(ROOMS) for name in names.split()}

MODULES = modules(ROOT)


def in_the_house(module: str) -> bool:
    return module.split(".")[0] == "fwbench"


def entry(module: str) -> str:
    """The entry of a module in the floors; empty for ``fwbench`` itself, which imports nothing."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", list(filter(in_the_house, MODULES)))
def test_imports_only_from_lower_floors(module):
    own = entry(module)
    assert not own or own in FLOOR, f"{module} is on no floor: give it one here and in ARCHITECTURE.md"
    for name in filter(in_the_house, imports(module, MODULES)):
        other = entry(name)
        assert name in MODULES, f"{module} imports {name}, which does not exist"
        if other not in ("", own):
            assert own, f"fwbench/__init__.py imports {name}"
            assert FLOOR[other] < FLOOR[own], f"{module} (floor {FLOOR[own]}) imports {name} (floor {FLOOR[other]})"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("fwbench.solvers.")])
def test_rooms_of_solvers_import_only_from_lower_ones(module):
    own = module.split(".")[2]
    assert own in ROOM, f"{module} is in no room: give it one here and in ARCHITECTURE.md"
    for name in imports(module, MODULES):
        if name.startswith("fwbench.solvers.") and (other := name.split(".")[2]) != own:
            assert ROOM[other] < ROOM[own], f"{module} (floor {ROOM[own]}) imports {name} (floor {ROOM[other]})"


@pytest.mark.parametrize("package", ["fwbench", "fwbench.problems", "fwbench.solvers", "benchmarks"])
def test_modules_import_in_no_circle(package):
    """Inside a room too, and imports in functions count."""
    assert circles(arrows(MODULES, package)) == []


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
    assert folders <= packages | {"problems", "solvers", "benchmarks"}
    assert {"problems", "solvers", "benchmarks"} <= folders
