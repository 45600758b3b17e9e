"""Masks from outside: every format, judged, stored and registered; what is wrong is refused in one line."""

import gzip
from dataclasses import replace

import gurobipy
import highspy
import numpy as np
import pyscipopt
import pytest
from brute import best_mask
from layers import random_layer

from fwbench.problem import Problem
from fwbench.problems import export, registry
from fwbench.result import Status, Verdict, pack_mask
from fwbench.solutions import SolutionError, import_solution, read_mask, register
from fwbench.store import Store


@pytest.fixture
def problem():
    layer = random_layer("0.5", rows=2, n=8)
    return Problem("mini.tiny", layer.W, layer.G, "0.5")


def test_arrays_and_hex_digits(tmp_path, problem):
    _, keep = best_mask(problem)
    np.save(tmp_path / "a.npy", keep)
    np.savez(tmp_path / "a.npz", keep=keep, other=np.zeros(3))
    np.savez(tmp_path / "b.npz", keep)
    digits = pack_mask(keep).hex()
    (tmp_path / "a.txt").write_text(f"{digits[:3]}\n{digits[3:].upper()}\n")
    for name in ("a.npy", "a.npz", "b.npz", "a.txt"):
        assert np.array_equal(read_mask(problem, tmp_path / name), keep)


def solve(solver, path, solution):
    if solver == "gurobi":
        with gurobipy.Env(params={"OutputFlag": 0}) as env:
            model = gurobipy.read(str(path), env)
            model.optimize()
            model.write(str(solution))
    else:
        model = pyscipopt.Model()
        model.hideOutput()
        model.readProblem(str(path))
        model.optimize()
        model.writeBestSol(str(solution))


@pytest.mark.parametrize("solver", ["gurobi", "scip"])
@pytest.mark.parametrize("pattern", ["0.5", "2:4", "unstructured:0.4", "rows"])
def test_solutions_of_the_exported_instance(tmp_path, solver, pattern):
    problem = random_layer(pattern, rows=2, n=8)
    export.write(problem, tmp_path / "a.mps")
    solve(solver, tmp_path / "a.mps", tmp_path / "a.sol")
    assert problem.error(read_mask(problem, tmp_path / "a.sol")) == pytest.approx(best_mask(problem)[0], rel=1e-6)


def test_a_solution_of_highs(tmp_path):
    """HiGHS solves no binary quadratic program; four weights of zero make the relaxation integral."""
    problem = Problem("half zero", np.array([[0, 0, 0, 0, 1, 2, 3, 4]]), np.eye(8), "0.5")
    export.write(problem, tmp_path / "a.lp", relaxed=True)
    model = highspy.Highs()
    model.setOptionValue("output_flag", False)
    model.readModel(str(tmp_path / "a.lp"))
    model.run()
    model.writeSolution(str(tmp_path / "a.sol"), 0)
    assert "# Dual" in (tmp_path / "a.sol").read_text()  # with dual values under the same names
    assert problem.error(read_mask(problem, tmp_path / "a.sol")) == 0
    model.writeSolution(str(tmp_path / "sparse.sol"), 4)  # what is not zero
    assert problem.error(read_mask(problem, tmp_path / "sparse.sol")) == 0
    model.writeSolution(str(tmp_path / "table.sol"), 1)  # the names last
    with pytest.raises(SolutionError, match="no line begins with a variable and its value"):
        read_mask(problem, tmp_path / "table.sol")


@pytest.mark.parametrize("solver", ["gurobi", "scip"])
@pytest.mark.parametrize("pattern", ["0.0", "unstructured:0", "4:4"])
def test_a_solution_that_is_all_zero(tmp_path, solver, pattern):
    """SCIP names no variable then: its file is the line of the objective."""
    layer = random_layer("0.5", rows=2, n=8)
    problem = Problem("dense", layer.W, layer.G, pattern)
    export.write(problem, tmp_path / "a.mps")
    solve(solver, tmp_path / "a.mps", tmp_path / "a.sol")
    assert ("u_0_0" in (tmp_path / "a.sol").read_text()) == (solver == "gurobi")
    assert read_mask(problem, tmp_path / "a.sol").all()
    assert import_solution(problem, tmp_path / "a.sol", solver).result.error == 0


CPLEX = """<?xml version = "1.0" encoding="UTF-8" standalone="yes"?>
<CPLEXSolution version="1.2">
 <header problemName="a" objectiveValue="1" solutionStatusString="integer optimal solution"/>
 <linearConstraints>
  <constraint name="count_0" index="0" slack="0"/>
 </linearConstraints>
 <variables>
{}
 </variables>
</CPLEXSolution>
"""


def solution_files(keep):
    """The same mask as each solver writes it, with and without the variables that are zero."""
    values = {f"u_{row}_{i}": 1 - int(kept) for (row, i), kept in np.ndenumerate(keep)}
    for kind, named in (("all", values), ("ones", {name: 1 for name, value in values.items() if value})):
        plain = "".join(f"{name} {value}\n" for name, value in named.items())
        aligned = "".join(f"{name:<32}{value:>20}\t(obj:0)\n" for name, value in named.items())
        cbc = "".join(f"{at:>7} {name:<20} {value:>15} {0:>22}\n" for at, (name, value) in enumerate(named.items()))
        xml = "\n".join(
            f'  <variable name="{name}" index="{at}" value="{value}"/>'
            for at, (name, value) in enumerate(named.items())
        )
        columns = f"# Columns {len(named) if kind == 'all' else f'-{len(named)} sparse'}\n"
        yield "gurobi", kind, "# Solution for model a\n# Objective value = 1\n" + plain
        yield "scip", kind, "solution status: optimal solution found\nobjective value:      1\n" + aligned
        yield (
            "highs",
            kind,
            f"Model status\nOptimal\n\n# Primal solution values\nFeasible\nObjective 1\n{columns}{plain}",
        )
        yield "cbc", kind, "Optimal - objective value 1.00000000\n" + cbc
        yield "cplex", kind, CPLEX.format(xml)
        yield "miplib", kind, "=obj= 1\n" + plain


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_solution_files_of_every_solver(tmp_path, problem, end, encoding):
    _, best = best_mask(problem)
    dense = Problem("dense", problem.W, problem.G, "0.0")
    for which, keep in ((problem, best), (dense, np.ones((2, 8), bool))):
        for solver, kind, content in solution_files(keep):
            (tmp_path / "a.sol").write_bytes(content.replace("\n", end).encode(encoding))
            (tmp_path / "b.sol.gz").write_bytes(gzip.compress((tmp_path / "a.sol").read_bytes()))
            for name in ("a.sol", "b.sol.gz"):
                assert np.array_equal(read_mask(which, tmp_path / name), keep), (solver, kind)
        digits = pack_mask(keep).hex()
        (tmp_path / "mask.txt").write_bytes(f"{digits[:2]}{end}{digits[2:]}{end}".encode(encoding))
        assert np.array_equal(read_mask(which, tmp_path / "mask.txt"), keep)


def test_a_block_needs_the_other_rows(tmp_path, problem):
    export.write(problem, tmp_path / "row.lp", rows=[1])
    solve("gurobi", tmp_path / "row.lp", tmp_path / "row.sol")
    with pytest.raises(SolutionError, match="says nothing of row 0"):
        read_mask(problem, tmp_path / "row.sol")
    base = ~problem.pattern.prune(np.arange(16.0).reshape(2, 8))
    keep = read_mask(problem, tmp_path / "row.sol", base)
    assert np.array_equal(keep[0], base[0])
    assert np.array_equal(keep[1], best_mask(problem)[1][1])


def test_judged_stored_and_registered(tmp_path, problem):
    best, keep = best_mask(problem)
    np.save(tmp_path / "a.npy", keep)
    outcome = import_solution(problem, tmp_path / "a.npy", "Gurobi 13, by hand", "mini")
    row = outcome.result
    assert (row.status, row.verdict, row.solver, row.solved) == (
        Status.FEASIBLE,
        Verdict.FEASIBLE,
        "Gurobi 13, by hand",
        True,
    )
    assert row.error == pytest.approx(best, rel=1e-12)
    assert row.ratio_to_wanda <= 1
    with Store(tmp_path / "s.sqlite") as store:
        store.add(outcome, problem=problem)
        assert store.results() == [row]
        assert np.array_equal(store.mask(row.key), keep)
    registry.save({}, tmp_path)
    assert register(outcome, problem, tmp_path)
    assert not register(outcome, problem, tmp_path)
    entry = registry.best_known(tmp_path)[problem.hash]
    assert (entry.upper, entry.upper_by) == (row.error, "Gurobi 13, by hand")


@pytest.mark.parametrize(
    ("collection", "origin", "takes"),
    [("mini", "", True), ("smollm2", "", True), ("smollm2@512", "", False), ("own", "", False), ("mini", "/x", False)],
)
def test_what_the_suites_registry_takes(tmp_path, problem, monkeypatch, collection, origin, takes):
    problem = replace(problem, origin=origin)
    np.save(tmp_path / "a.npy", best_mask(problem)[1])
    outcome = import_solution(problem, tmp_path / "a.npy", "x", collection)
    monkeypatch.setattr(registry, "FOLDER", tmp_path / "suite")
    if takes:
        assert register(outcome, problem, tmp_path / "suite")
    else:
        with pytest.raises(
            SolutionError, match=r"registry keeps mini and smollm2 only; --folder names one of your own"
        ):
            register(outcome, problem, tmp_path / "suite")
    assert register(outcome, problem, tmp_path / "own")  # begun by this


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "ff", "has 2 hex digits, 16 weights take 4"),
        ("a.txt", "ffff", "the judge refuses the mask for mini.tiny: wrong count in 2 of 2 groups"),
        ("a.txt", "", "names no variable"),
        ("a.txt", "hello", "names no variable"),
        ("a.sol", "", "names no variable"),
        ("a.sol", "no solution available\n", "names no variable"),  # of SCIP
        ("a.sol", "solution status: infeasible\nobjective value: 1e+20\n", "names no variable"),
        ("a.sol", "Infeasible - objective value 0.0\n", "names no variable"),  # of CBC
        ("a.sol", "objective value: 0\n", "says nothing of row 0"),
        ("a.sol", "u_0_0 1\nu_0_1 1\nu_0_0 0\n", "u_0_0 is named twice"),  # a pool of solutions
        ("a.sol", "u_0_0 0.5\n", "u_0_0 is 0.5, not 0 or 1"),
        ("a.sol", "u_0_0 nan\n", "u_0_0 is nan, not 0 or 1"),
        ("a.sol", "u_0_0 x\n", "u_0_0 is x, not 0 or 1"),
        ("a.sol", "u_2_0 1\n", "u_2_0 is no weight of mini.tiny"),
        ("a.sol", "u_0_0 1\nu_1_0 1\n", "group 0 prunes 1, not 4"),
        ("a.npy", "nothing", "cannot be read"),
        ("a.npz", "nothing", "cannot be read"),
        ("a.npz", {"one": np.zeros((2, 8), bool), "two": np.zeros(1)}, "has no array keep among one, two"),
        ("a.npz", {"keep": np.zeros((2, 8))}, "is float64 (2, 8), not bool (2, 8)"),
        ("a.npz", {"keep": np.zeros((8, 2), bool)}, "is bool (8, 2), not bool (2, 8)"),
        ("a.npz", {"keep": np.array([None])}, "cannot be read"),
    ],
)
def test_what_is_wrong_is_refused(tmp_path, problem, name, content, says):
    path = tmp_path / name
    if isinstance(content, dict):
        np.savez(path, **content)
    else:
        path.write_text(content)
    with pytest.raises(SolutionError) as error:
        import_solution(problem, path, "x")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_file(tmp_path, problem):
    with pytest.raises(SolutionError, match="No such file"):
        read_mask(problem, tmp_path / "nowhere.sol")
