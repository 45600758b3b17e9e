"""The house's floors (ARCHITECTURE.md): a module imports only from strictly lower ones, wherever the import stands."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from structure import arrows, circles, imports, modules

ROOT = Path(__file__).parents[1]

# from the ground up; a folder is one entry and free inside, but for `solvers`, which has floors of its own; what shares
# a floor does not import one another
FLOORS = (
    "spec presets metrics patterns machine notes child schema sheet",
    "result",
    "problem timing events",
    "judge verify",
    "bounds stage",
    "solvers problems",
    "pipeline store isolate perplexity live",
    "job contract audit solutions protocols report",
    "runner pruning cite",
    "cli api",
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names.split()}

# the same inside of folders that have floors of their own; what is not split further is free inside
INSIDE = {
    "solvers": (
        "numerics",
        "start rounding semidefinite",
        "frank_wolfe local_search sampling weight_update",
        "bounds branch_and_bound external first_order learned",
    ),
    "verify": ("rounding", "products tree", "rows", "__init__"),
}

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


def test_every_package_is_shipped():
    """A wheel has the packages that are named, and no others."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = {"fwbench"}
    for folder, name in (("fwbench", "fwbench"), ("problems", "fwbench.problems"), ("solvers", "fwbench.solvers")):
        for path in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join((name, *path.parent.relative_to(ROOT / folder).parts)))
    assert set(named) == found


@pytest.mark.parametrize("folder", INSIDE)
def test_inside_of_a_folder_imports_go_down(folder):
    floor = {name: floor for floor, names in enumerate(INSIDE[folder]) for name in names.split()}
    package = f"fwbench.{folder}"

    def room(module: str) -> str:
        return module.split(".")[2] if module != package else "__init__"

    for module in (name for name in MODULES if f"{name}.".startswith(f"{package}.")):
        own = room(module)
        if module == package and own not in floor:
            continue  # a docstring
        assert own in floor, f"{module} is in no room: give it one here and in ARCHITECTURE.md"
        for name in imports(module, MODULES):
            if entry(name) == folder and room(name) != own:
                assert floor[room(name)] < floor[own], f"{module} (floor {floor[own]}) imports {name}"


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
