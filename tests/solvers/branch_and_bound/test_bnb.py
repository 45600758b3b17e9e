"""Branch and bound against enumeration and Gurobi; its proof, its clock, its threads."""

import itertools
import time

import cvxpy
import numpy as np
import pytest
from brute import assert_optimal
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import PATTERNS, begun, hostile_layers, integer_layer, pattern_of, random_layer

from fwbench import verify
from fwbench.judge import count_reason
from fwbench.problem import Problem
from fwbench.problems.collections import load
from fwbench.result import Certificate
from fwbench.solvers.branch_and_bound import relaxation_numba as relax
from fwbench.solvers.branch_and_bound import search
from fwbench.solvers.branch_and_bound.certificate import certificate
from fwbench.solvers.branch_and_bound.stage import BranchAndBound
from fwbench.solvers.external import gurobi_
from fwbench.solvers.external.gurobi_ import Gurobi
from fwbench.solvers.semidefinite import search_diagonal
from fwbench.solvers.semidefinite.search_diagonal import best_diagonal
from fwbench.stage import Context, State
from fwbench.verify.rounding import block_matrix


def solve(problem: Problem, **parameters) -> State:
    return BranchAndBound(**parameters).run(problem, begun(problem, BranchAndBound), Context())


def assert_optimal_and_proved(problem: Problem, after: State) -> None:
    assert_optimal(problem, after)
    assert_proved(problem, after)


def proved_by(problem: Problem, certificate: Certificate) -> float:
    checked = verify.check(problem, certificate)
    assert checked.ok, checked.reason
    return checked.bound


def assert_proved(problem: Problem, after: State) -> None:
    """The checker proves what the stage says, also from its file."""
    certificate = Certificate.from_bytes(after.certificate.to_bytes())
    proved = proved_by(problem, certificate)
    assert proved >= after.lower * (1 - 1e-9) - 1e-13 * problem.total, problem.name
    assert proved <= problem.error(after.keep) * (1 + 1e-12) + 1e-15 * problem.total, problem.name


@pytest.mark.parametrize("pattern", PATTERNS)
def test_equals_enumeration(pattern):
    n = 4 if pattern.startswith("unstructured") else 12
    for problem in (random_layer(pattern, n=n), integer_layer(pattern, n=n), random_layer(pattern, n=n, condition=1e6)):
        assert_optimal_and_proved(problem, solve(problem))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_hostile_layers(pattern):
    for problem in hostile_layers(pattern, rows=2):
        assert_optimal_and_proved(problem, solve(problem))


@st.composite
def layers(draw) -> Problem:
    """Small layers of every pattern: whole numbers with ties, zero rows, twins, few tokens, bad condition."""
    pattern = draw(st.sampled_from(PATTERNS))
    unstructured = pattern.startswith("unstructured")
    n = 4 if unstructured else 8 if ":" in pattern else draw(st.integers(2, 14))
    rows = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tokens = draw(st.sampled_from([1, 2, 5, 20]))
    if draw(st.booleans()):
        W, X = rng.integers(-2, 3, (rows, n)).astype(float), rng.integers(-2, 3, (n, tokens)).astype(float)
    else:
        W, X = rng.standard_normal((rows, n)), rng.standard_normal((n, tokens))
        X *= np.logspace(0, draw(st.sampled_from([0, -2, -4])), n)[:, None]
    kind = draw(st.sampled_from(["", "zero row", "twins", "zero inputs"]))
    if kind == "zero row":
        W[0] = 0
    elif kind == "twins":
        X[n // 2 :] = X[: n - n // 2]
    elif kind == "zero inputs":
        X[::2] = 0
    return Problem(kind or "plain", W, X @ X.T, pattern_of(pattern, rows, n))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(layers(), st.sampled_from([1, 2, 7, 1000]))
def test_equals_enumeration_on_any_layer(problem, subtree):
    assert_optimal_and_proved(problem, solve(problem, subtree=subtree))


@pytest.mark.parametrize("selector", ["n032", "n064.v_proj", "n064.down_proj"])
@pytest.mark.skipif(gurobi_.licence_problem(64) is not None, reason="no Gurobi")
def test_equals_gurobi_on_real_layers(selector):
    for _, problem in load("mini"):
        if selector in problem.name and problem.pattern.separable:
            theirs = Gurobi(convexify="shared").run(problem, begun(problem, Gurobi), Context())
            after = solve(problem)
            assert problem.error(after.keep) == pytest.approx(problem.error(theirs.keep), rel=1e-9), problem.name
            assert after.proven
            assert after.counters["nodes"] < 4000
            assert_proved(problem, after)


def real(name: str) -> Problem:
    return next(problem for _, problem in load("mini") if name in problem.name)


def test_threads_change_nothing():
    problem = real("n064.gate_proj")
    start = begun(problem, BranchAndBound)
    one, two = (BranchAndBound(subtree=50).run(problem, start, Context(threads=t)) for t in (1, 3))
    assert np.array_equal(one.keep, two.keep)
    assert one.lower == two.lower
    assert one.counters == two.counters
    assert one.certificate.to_bytes() == two.certificate.to_bytes()


def test_inputs_stay_as_they_are():
    problem = real("n032.q_proj")
    start = solve(problem, nodes=1).keep
    before = start.copy()
    BranchAndBound().run(problem, State(keep=start), Context())
    assert np.array_equal(start, before)


@pytest.mark.parametrize("nodes", [1, 3, 20, 60])
def test_an_unfinished_tree_is_honest(nodes):
    problem = real("n064.gate_proj")
    best = problem.error(solve(problem).keep)
    after = solve(problem, nodes=nodes, subtree=10)
    assert (after.stopped, after.proven) == ("nodes", False)
    assert 0 < after.lower <= best * (1 + 1e-12) <= problem.error(after.keep) * (1 + 2e-12)
    assert_proved(problem, after)


@pytest.mark.parametrize("subtree", [50, 10**9])
def test_respects_the_deadline(subtree):
    """Between subtrees, and within one that alone would take hours: the kernel looks at the clock, too."""
    problem = real("n256.gate_proj")
    solve(real("n016.gate_proj"))  # compiled
    began = time.process_time()
    after = BranchAndBound(seconds=1.0, subtree=subtree).run(problem, begun(problem, BranchAndBound), Context())
    assert time.process_time() - began < 6.0
    assert (after.stopped, after.proven) == ("deadline", False)
    assert not count_reason(problem, after.keep)
    assert 0 <= after.lower <= problem.error(after.keep)
    assert_proved(problem, after)


def test_no_time_returns_the_incumbent():
    problem = random_layer("0.5")
    start = problem.pattern.prune(np.arange(36.0).reshape(3, 12) % 7)
    after = BranchAndBound().run(problem, State(keep=~start), Context(deadline=time.monotonic() - 1))
    assert np.array_equal(after.keep, ~start)
    assert (after.lower, after.proven, after.stopped) == (0.0, False, "deadline")
    assert_proved(problem, after)


def test_a_gap_is_kept():
    problem = real("n064.gate_proj")
    exact, loose = solve(problem), solve(problem, gap=0.05)
    assert loose.counters["nodes"] < exact.counters["nodes"]
    assert not loose.proven
    assert loose.lower >= 0.95 * problem.error(loose.keep) * (1 - 1e-9)
    assert_proved(problem, loose)


def test_declines_and_refuses():
    wide = Problem("wide", np.ones((3, 200)), np.eye(200), "unstructured:0.5")
    assert "600 variables" in BranchAndBound().supports(wide)
    assert BranchAndBound(largest=600).supports(wide) is None
    assert BranchAndBound().supports(wide.with_pattern("0.5")) is None
    for wrong in ({"seconds": 0}, {"gap": 1.0}, {"nodes": -1}, {"subtree": 0}):
        with pytest.raises(ValueError, match="must be positive"):
            BranchAndBound(**wrong)


# --- parts -----------------------------------------------------------------------------------------------------------


def program(seed: int, n: int = 12, groups: int = 2) -> tuple:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, n))
    return X @ X.T, rng.standard_normal(n), np.arange(groups + 1) * (n // groups), np.full(groups, n // groups // 2)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_the_diagonal_is_the_best(seed, groups, deep):
    """Feasible, and best for the root (Shor's) or for root and deeper nodes, but for a part of what is left open."""
    Q, b, start, need = program(seed, groups=groups)
    rho, n = 4 * Q.diagonal().mean(), len(b)
    E = np.kron(np.eye(groups), np.ones(n // groups))  # sums over groups
    masks = np.array([v for v in itertools.product((0.0, 1.0), repeat=n) if (E @ v == need).all()])
    optimum = float((((masks @ Q) * masks).sum(1) + masks @ b).min())
    deeper = np.random.default_rng(seed).random(n) if deep else np.zeros(n)
    d = best_diagonal(Q, b, start, need, rho, optimum, deeper)

    # uᵀ(Q - D)u + (b + d)ᵀu + ρ‖Eu - need‖² is at least t everywhere: a matrix inequality in d and t
    def matrix(d, t, diagonal, joined):
        linear = (b + d) / 2 - rho * E.T @ need
        return joined([[rho * need @ need - t, linear[None]], [linear[:, None], Q - diagonal(d) + rho * E.T @ E]])

    y, t = cvxpy.Variable(n), cvxpy.Variable((1, 1))
    aim = cvxpy.Maximize(t[0, 0] + deeper @ y / 4)
    best = cvxpy.Problem(aim, [matrix(y, t, cvxpy.diag, cvxpy.bmat) >> 0]).solve("CLARABEL")
    M = Q - np.diag(d) + rho * E.T @ E
    assert np.linalg.eigvalsh(M)[0] >= -1e-9 * rho
    linear = (b + d) / 2 - rho * E.T @ need
    ours = rho * need @ need - linear @ np.linalg.lstsq(M, linear)[0]
    assert best - 0.06 * (optimum - ours) <= ours + deeper @ d / 4 <= best + 1e-6 * abs(best)


def test_diagonals_for_deeper_nodes_save_nodes(monkeypatch):
    """On a real problem, against diagonals that are best for the subtrees' roots."""
    problem = real("n128.down_proj")
    nodes = {}
    for deeper in (0.0, search_diagonal.DEEPER):
        monkeypatch.setattr(search_diagonal, "DEEPER", deeper)
        after = solve(problem)
        assert_proved(problem, after)
        nodes[deeper] = after.counters["nodes"]
    assert nodes[search_diagonal.DEEPER] < 0.7 * nodes[0.0]


@pytest.mark.parametrize("seed", range(10))
def test_points_of_few_digits_keep_the_count(seed):
    rng = np.random.default_rng(seed)
    start, need = np.array([0, 5, 12]), np.array([2, 4])
    u = np.concatenate([rng.dirichlet(np.ones(5)) * 2, rng.dirichlet(np.ones(7)) * 4])
    u = np.clip(u, 0, 1)
    low, high = np.zeros(12), np.ones(12)
    relax.settle(start, need, low, high, u)
    assert u[:5].sum() == pytest.approx(2, abs=1e-12)
    before = u.copy()
    relax.quantise(start, need, low, high, u, 128.0)
    assert np.array_equal(u * 128, np.rint(u * 128))
    assert (u[:5].sum(), u[5:].sum()) == (2, 4)
    assert np.abs(u - before).max() <= 1 / 128 + 1e-7
    assert 0 <= u.min() <= u.max() <= 1


@pytest.mark.parametrize("seed", range(10))
def test_the_bound_of_a_point(seed):
    """Against the linear program over the group polytopes, by sorting; with fixed variables."""
    Q, b, start, need = program(seed)
    rng = np.random.default_rng(seed)
    low, high, u = np.zeros(12), np.ones(12), np.full(12, 0.5)
    relax.fix(start, need, low, high, u, int(rng.integers(12)), 1.0)
    g, edge = np.empty(12), np.empty((2, 2))
    relax.gradient(Q, b, u, g)
    assert g == pytest.approx(2 * Q @ u + b)
    value, lower = relax.bound(b, start, need, low, high, u, g, edge)
    assert value == pytest.approx(u @ Q @ u + b @ u)
    v = low.copy()
    for group in range(2):
        part = [i for i in range(6 * group, 6 * group + 6) if low[i] < high[i]]
        left = need[group] - int(low[6 * group : 6 * group + 6].sum())
        v[sorted(part, key=lambda i: g[i])[:left]] = 1
    assert lower == pytest.approx(value + g @ (v - u))


def test_the_clock_ends_a_subtree():
    """With no limit of nodes a subtree of 90 variables would take hours; what is known by then is proved."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((90, 100))
    problem = Problem("random", np.ones((1, 90)), X @ X.T / 100, "0.5")
    block = search.BinaryProgram(block_matrix(problem, 0), np.array([45]))
    tried = search.Search(block, np.arange(90) < 45, 0.0, 0, budget=2**60)
    end = time.monotonic() + 1.0
    tried.run(lambda: end - time.monotonic(), 2**62)
    assert not tried.done
    assert tried.diagonals == 2  # of the first look and of the one subtree
    assert tried.nodes > 1
    made = certificate(problem, [tried.tree()], tried.lower())
    assert proved_by(problem, made) == pytest.approx(tried.lower(), rel=1e-9)
    assert 0 < tried.lower() < tried.value


def long_search(budget: int) -> tuple[Problem, search.Search]:
    """A row that takes many subtrees of a small budget."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 40)) * np.logspace(0, -1, 50)[:, None]
    problem = Problem("random", np.ones((1, 50)), X @ X.T / 40 + 1e-6 * np.eye(50), "0.5")
    block = search.BinaryProgram(block_matrix(problem, 0), np.array([25]))
    return problem, search.Search(block, np.arange(50) < 25, 0.0, 0, budget=budget)


def test_the_bound_never_falls(monkeypatch):
    """A subtree's own diagonal serves its deep nodes: cut off early it may prove less than what it began with, or 0."""
    calls = []

    def weak(*given):
        calls.append(given)
        return best_diagonal(*given) - (0.0 if len(calls) < 3 else 100.0)

    monkeypatch.setattr(search, "best_diagonal", weak)
    problem, tried = long_search(budget=60)
    lowers = []
    for _ in range(20):
        tried.run(lambda: np.inf, tried.nodes + (7 if lowers else 400))
        made = certificate(problem, [tried.tree()], tried.lower())
        assert proved_by(problem, made) == pytest.approx(tried.lower(), rel=1e-9)
        lowers.append(tried.lower())
    assert not tried.done
    assert lowers[0] > 0
    assert (np.diff(lowers) >= -1e-9 * tried.value).all()


def test_what_its_bound_closes_is_not_searched(monkeypatch):
    """Once whole rows spent most of their time there, on diagonals for subtrees of one node each."""
    original = search.Search._search
    begun = []

    def looked(self, node, *given):
        begun.append(node.bound < self.target)
        original(self, node, *given)

    monkeypatch.setattr(search.Search, "_search", looked)
    problem, tried = long_search(budget=60)
    tried.run(lambda: np.inf, 2**62)
    assert tried.done
    assert len(begun) > 3
    assert all(begun)
    made = certificate(problem, [tried.tree()], tried.lower())
    assert proved_by(problem, made) == pytest.approx(tried.value, rel=1e-8)
