"""What the script that counts rooms and arrows sees, on checkouts and graphs that one counts by hand."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from structure import arrows, circles, declared, floors, imports, lines, modules, upwards

FILES = {
    "fwbench/__init__.py": '"""Nothing but words."""',
    "fwbench/store.py": "def f():\n    from fwbench.solvers import fw",
    "fwbench/x.py": (
        "def f():\n from fwbench.solvers import fw\n from . import store\n import fwbench.cli.make\n"
        " from fwbench import y\n from os import path"
    ),
    "fwbench/cli/__init__.py": "from fwbench.cli.make import run",
    "fwbench/cli/make.py": "from .. import store as s",
    "solvers/__init__.py": "",
    "solvers/fw.py": "def f():\n    from fwbench.solvers.gpu import loop",
    "solvers/gpu/__init__.py": "",
    "solvers/gpu/loop.py": "from ..fw import f",
    "solvers/gpu/kernel.py": "from .loop import f\nfrom fwbench import store",
    "benchmarks/one.py": "from two import x\nimport three",
    "benchmarks/two.py": "from benchmarks.deep.three import x",
    "benchmarks/deep/three.py": "import numpy",
    "tests/test_floors.py": 'OTHER = ("fw", 1)\nFLOORS = (\n    "solvers",  # a room\n    "store x",\n    "cli",\n)',
}


@pytest.fixture
def checkout(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_imports_are_seen_wherever_they_stand(checkout):
    found = imports("fwbench.x", modules(checkout))
    assert found == {"fwbench.solvers.fw", "fwbench.store", "fwbench.cli.make", "fwbench", "os"}
    assert imports("fwbench.cli.make", modules(checkout)) == {"fwbench.store"}


def test_rooms_and_arrows(checkout):
    files = modules(checkout)
    house = {"store": {"solvers"}, "x": {"solvers", "store", "cli"}, "cli": {"store"}, "solvers": {"store"}}
    assert arrows(files, "fwbench", 1) == house
    assert arrows(files, "fwbench.solvers") == {"fw": {"gpu.loop"}, "gpu.loop": {"fw"}, "gpu.kernel": {"gpu.loop"}}
    assert arrows(files, "fwbench.solvers", 1) == {"fw": {"gpu"}, "gpu": {"fw"}}
    assert arrows(files, "benchmarks") == {"one": {"two"}, "two": {"deep.three"}, "deep.three": set()}


def test_declared_floors_are_those_that_name_all_rooms(checkout):
    graph = arrows(modules(checkout), "fwbench", 1)
    known = declared(checkout, graph)
    assert known == ("solvers", "store x", "cli")
    assert sorted(upwards(graph, known)) == [("solvers", "store"), ("x", "cli"), ("x", "store")]
    assert declared(checkout, ["fw", "gpu"]) == ()
    assert declared(checkout / "fwbench", ["solvers"]) == ()  # no such file


def test_the_table(checkout):
    table = list(lines(checkout, listed=True))
    [solvers] = [line.split() for line in table if line.startswith("solvers/, files")]
    assert solvers == ["solvers/,", "files", "3", "2", "3", "1", "1"]
    assert "    circle: fw, gpu.loop" in table
    [house] = [line for line in table if line.endswith("(floors declared)")]
    assert house.split()[-7:-2] == ["4", "3", "6", "3", "1"]


@pytest.mark.parametrize("seed", range(20))
def test_graphs_against_every_stacking(seed):
    """The fewest arrows upwards are the least over all orders; circles and floors follow from reaching step by step."""
    rng = np.random.default_rng(seed)
    names = "abcdef"
    graph = {x: {y for y in names if y != x and rng.random() < 0.12 + 0.02 * seed} for x in names}
    least = min(sum(order.index(y) > order.index(x) for x in names for y in graph[x]) for order in permutations(names))
    found = upwards(graph)
    assert len(found) == least
    without = {x: {y for y in graph[x] if (x, y) not in found} for x in names}
    assert circles(without) == []
    reach = np.array([[y in graph[x] for y in names] for x in names])
    for _ in names:
        reach = reach | (reach.astype(int) @ reach.astype(int) > 0)
    both = {
        frozenset(names[j] for j in np.flatnonzero(row & column)) for row, column in zip(reach, reach.T, strict=True)
    }
    assert {frozenset(rooms) for rooms in circles(graph)} == both - {frozenset()}
    longest = 0
    for order in permutations(names):
        length = 1
        for x, y in pairwise(order):
            if y not in without[x]:
                break
            length += 1
        longest = max(longest, length)
    assert floors(without) == longest
