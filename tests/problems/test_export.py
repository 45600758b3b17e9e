"""Exported instances: read back by Gurobi, SCIP, HiGHS and a reader of QPLIB's format, and solved to the optimum."""

import gurobipy
import highspy
import numpy as np
import pyscipopt
import pytest
from brute import best_mask
from layers import integer_layer, random_layer
from oracles import equations, relaxed_minimum

from fwbench.problem import Problem, ProblemError
from fwbench.problems import export, synthetic

PATTERNS = ("0.5", "2:4", "unstructured:0.4", "transposable:1:2", "rows")
FORMATS = (".lp", ".mps")


@pytest.fixture(scope="module")
def gurobi():
    with gurobipy.Env(params={"OutputFlag": 0}) as env:
        yield lambda path: gurobipy.read(str(path), env)


def scip(path):
    model = pyscipopt.Model()
    model.hideOutput()
    model.readProblem(str(path))
    return model


def highs(path):
    model = highspy.Highs()
    model.setOptionValue("output_flag", False)
    assert model.readModel(str(path)) == highspy.HighsStatus.kOk
    assert model.run() == highspy.HighsStatus.kOk
    return model.getInfo().objective_function_value


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_solvers_find_the_optimum(tmp_path, gurobi, pattern, suffix):
    problem = random_layer(pattern, rows=2, n=8)
    best, _ = best_mask(problem)
    path = tmp_path / f"instance{suffix}"
    export.write(problem, path)
    model = gurobi(path)
    model.Params.MIPGap = 0
    model.optimize()
    assert model.ObjVal == pytest.approx(best, rel=1e-6)
    keep = np.array([[model.getVarByName(f"u_{r}_{i}").X < 0.5 for i in range(8)] for r in range(2)])
    assert problem.error(keep) == pytest.approx(best, rel=1e-9)
    assert {variable.VType for variable in model.getVars()} == {"B"}
    other = scip(path)
    other.optimize()
    assert other.getStatus() == "optimal"
    assert other.getObjVal() == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_relaxation_is_the_convex_one(tmp_path, gurobi, pattern, suffix):
    problem = random_layer(pattern, rows=2, n=8, seed=1)
    bound, _ = relaxed_minimum(problem)
    path = tmp_path / f"relaxed{suffix}"
    export.write(problem, path, relaxed=True)
    assert highs(path) == pytest.approx(bound, rel=1e-6)
    model = gurobi(path)
    model.optimize()
    assert model.ObjVal == pytest.approx(bound, rel=1e-5)
    assert bound <= best_mask(problem)[0] * (1 + 1e-9)


@pytest.mark.parametrize("suffix", FORMATS)
def test_coefficients_are_those_of_the_problem(tmp_path, gurobi, suffix):
    """Every quadratic coefficient read back is the same float64; large and tiny ones, some zero."""
    layer = synthetic.ill_conditioned(rows=2, n=12, condition=1e5)
    W = layer.W.copy()
    W[0, 3] = 0
    problem = Problem("odd name: 1/2", W, layer.G, "0.5")
    path = tmp_path / f"instance{suffix}"
    export.write(problem, path)
    model = gurobi(path)
    expression = model.getObjective()
    found = {}
    for k in range(expression.size()):
        pair = frozenset((expression.getVar1(k).VarName, expression.getVar2(k).VarName))
        found[pair] = expression.getCoeff(k)
    for r, w in enumerate(problem.W.astype(np.float64)):
        for i in range(12):
            for j in range(i + 1):
                value = (w[i] * w[j]) * problem.G[i, j] * (1 if i == j else 2)
                assert found.get(frozenset((f"u_{r}_{i}", f"u_{r}_{j}")), 0.0) == value
    assert (frozenset(("u_0_3",)) in found) is False


@pytest.mark.parametrize("suffix", [*FORMATS, ".qplib", ".npz"])
def test_a_row_is_the_natural_instance(tmp_path, gurobi, suffix):
    problem = random_layer("rows", rows=4, n=8)
    row = Problem("row", problem.W[[2]], problem.G, problem.pattern.pruned[[2]])
    path = tmp_path / f"row{suffix}"
    export.write(problem, path, rows=[2])
    best, _ = best_mask(row)
    if suffix in FORMATS:
        model = gurobi(path)
        model.optimize()
        assert model.ObjVal == pytest.approx(best, rel=1e-6)
        assert {variable.VarName for variable in model.getVars()} == {f"u_2_{i}" for i in range(8)}
    elif suffix == ".qplib":
        assert qplib(path)["counts"].tolist() == [problem.pattern.pruned[2]]
    else:
        with np.load(path) as file:
            assert file["rows"].tolist() == [2]
            assert np.array_equal(file["W"], row.W)
            assert str(file["hash"]) == row.hash


def qplib(path):
    """Read QPLIB's format as its paper's appendix B lists it (types QBL and QCL); numbers first, comments behind."""
    lines = iter(path.read_text().splitlines())

    def take(kinds):
        return [kind(word) for kind, word in zip(kinds, next(lines).split("#")[0].split(), strict=True)]

    def vector(size):
        (default,), values = take([float]), None
        values = np.full(size, default)
        for _ in range(take([int])[0]):
            index, value = take([int, float])
            values[index - 1] = value
        return values

    name, kind, sense = take([str])[0], take([str])[0], take([str])[0]
    n, m = take([int])[0], take([int])[0]
    Q, A = np.zeros((n, n)), np.zeros((m, n))
    for _ in range(take([int])[0]):
        i, j, value = take([int, int, float])
        assert j <= i  # the lower triangle
        assert Q[i - 1, j - 1] == 0
        Q[i - 1, j - 1] = value
    linear, constant = vector(n), take([float])[0]
    for _ in range(take([int])[0]):
        i, j, value = take([int, int, float])
        A[i - 1, j - 1] = value
    infinity, left, right = take([float])[0], vector(m), vector(m)
    bounds = (vector(n), vector(n)) if kind[1] == "C" else (np.zeros(n), np.ones(n))
    starts = [vector(size) for size in (n, m, n)]
    assert [take([int]), take([int])] == [[0], [0]]
    assert next(lines, None) is None
    assert (sense, constant, infinity) == ("minimize", 0.0, 1e30)
    assert not any(part.any() for part in (linear, *starts))
    assert np.array_equal(left, right)
    return {"name": name, "kind": kind, "Q": Q, "A": A, "counts": left, "bounds": bounds}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("relaxed", [False, True])
def test_qplib(tmp_path, pattern, relaxed):
    """In QPLIB's instances the triangle is Q itself: an entry off the diagonal counts once, with the factor 1/2."""
    problem = integer_layer(pattern, rows=2, n=8)
    path = tmp_path / "instance.qplib"
    export.write(problem, path, relaxed=relaxed)
    found = qplib(path)
    sums, counts = equations(problem.pattern, problem.shape)
    assert found["kind"] == ("QCL" if relaxed else "QBL")
    assert np.array_equal(found["A"], sums)
    assert np.array_equal(found["counts"], counts)
    assert [set(side) for side in found["bounds"]] == [{0.0}, {1.0}]
    rng = np.random.default_rng(0)
    for _ in range(5):
        u = rng.integers(0, 2, problem.shape).astype(float)
        assert u.ravel() @ found["Q"] @ u.ravel() / 2 == problem.error(u == 0)  # whole numbers: exact


def test_npz_holds_the_factors(tmp_path):
    problem = random_layer("2:4", rows=2, n=8)
    export.write(problem, tmp_path / "instance.npz")
    with np.load(tmp_path / "instance.npz") as file:
        read = dict(file)
    keep = best_mask(problem)[1]
    u = (~keep).astype(float)
    assert sum((u * w) @ read["G"] @ (u * w) for u, w in zip(u, read["W"].astype(float), strict=True)) == pytest.approx(
        problem.error(keep), rel=1e-12
    )
    assert np.array_equal(np.bincount(read["groups"].ravel(), weights=u.ravel()), read["counts"])
    assert (str(read["name"]), str(read["pattern"]), str(read["hash"])) == (problem.name, "2:4", problem.hash)
    assert "column_groups" not in read


def test_npz_of_a_transposable_pattern(tmp_path):
    problem = random_layer("transposable:1:2", rows=4, n=6)
    export.write(problem, tmp_path / "instance.npz")
    with np.load(tmp_path / "instance.npz") as file:
        read = dict(file)
    u = ~best_mask(problem)[1]
    for name in ("groups", "column_groups"):
        assert np.array_equal(np.bincount(read[name].ravel(), weights=u.ravel()), read["counts"])


@pytest.mark.parametrize("suffix", [*FORMATS, ".qplib"])
def test_a_row_of_zeros(tmp_path, gurobi, suffix):
    problem = Problem("zero", np.zeros((1, 4)), np.eye(4), "0.5")
    path = tmp_path / f"zero{suffix}"
    export.write(problem, path)
    if suffix == ".qplib":
        assert not qplib(path)["Q"].any()
        return
    for model in (gurobi(path), scip(path)):
        model.optimize()
    assert model.getObjVal() == 0
    assert highs(path) == 0


def test_blocks(tmp_path):
    problem = random_layer("0.5", rows=5, n=8)
    assert export.choose(problem, slice(1, 4)).rows.tolist() == [1, 2, 3]
    assert export.choose(problem, [3, 0, 3]).rows.tolist() == [0, 3]
    assert export.choose(problem, [0, 1, 2, 3, 4]).problem.hash == problem.hash
    part = export.choose(problem, [3]).problem
    assert part.error(np.zeros((1, 8), bool)) == pytest.approx(problem.row_errors(np.ones((5, 8)))[3])


def test_refusals(tmp_path):
    problem = random_layer("0.5", rows=2, n=8)
    for rows in ([2], [-1], [], slice(5, 9)):
        with pytest.raises(ProblemError, match="has rows 0 to 1, not"):
            export.write(problem, tmp_path / "a.lp", rows=rows)
    with pytest.raises(ProblemError, match="joins the rows"):
        export.write(random_layer("unstructured:0.4", n=8), tmp_path / "a.lp", rows=[0])
    with pytest.raises(ProblemError, match=r"ends with \.lp, \.mps, \.qplib, \.npz"):
        export.write(problem, tmp_path / "a.txt")
    large = Problem("large", np.ones((300, 512)), np.eye(512), "0.5")
    with pytest.raises(ProblemError, match=r"would take about 1\.\d GB for 300 rows of 512 weights: choose fewer"):
        export.write(large, tmp_path / "a.lp")
    (tmp_path / "file").write_text("")
    with pytest.raises(ProblemError, match="cannot be written"):
        export.write(problem, tmp_path / "file" / "a.lp")
    assert not list(tmp_path.glob("**/*a.*"))


def test_the_estimate_is_near(tmp_path):
    problem = synthetic.correlated(rows=2, n=96)
    for suffix, each in export.PER_TERM.items():
        path = tmp_path / f"a{suffix}"
        export.write(problem, path)
        assert 0.7 < path.stat().st_size / (each * 2 * 96 * 97 / 2) < 1.1
