"""The checker of trees: honest ones pass, forged ones do not, and what it proves is true."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from brute import best_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import PATTERNS, begun, integer_layer, random_layer
from oracles import exactly, exactly_psd

from fwbench import verify
from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.solvers.branch_and_bound.stage import BranchAndBound
from fwbench.stage import Context
from fwbench.verify.rounding import block_matrix, proves_convex
from fwbench.verify.tree import BRANCH, DIAGONAL, FIX, LEAF, NOTHING, POINT, UNIT


@cache
def case(pattern: str = "0.5", n: int = 12, rows: int = 2, seed: int = 0) -> tuple[Problem, Certificate, float]:
    """A problem, the certificate of its optimum and the optimum by enumeration."""
    problem = random_layer(pattern, rows=rows, n=n, seed=seed)
    certificate = BranchAndBound(subtree=3).run(problem, begun(problem, BranchAndBound), Context()).certificate
    return problem, certificate, best_mask(problem)[0]


def forged(certificate: Certificate, **arrays: object) -> Certificate:
    return replace(certificate, arrays={**certificate.arrays, **arrays})


def proved(problem: Problem, certificate: Certificate) -> float:
    """What a certificate proves, whatever it claims."""
    checked = verify.check(problem, replace(certificate, bound=0.0))
    assert checked.ok, checked.reason
    return checked.bound


def refusal(problem: Problem, certificate: Certificate) -> str:
    checked = verify.check(problem, replace(certificate, bound=0.0))
    assert not checked.ok
    assert "\n" not in checked.reason
    return checked.reason


def changed(array: np.ndarray, at: int, value: object) -> np.ndarray:
    array = array.copy()
    array[at] = value
    return array


# --- honest ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_honest_tree_proves_the_optimum(pattern):
    problem, certificate, best = case(pattern, n=4 if pattern.startswith("unstructured") else 12)
    steps = set(certificate.arrays["step"].tolist())
    assert {LEAF, POINT, DIAGONAL} <= steps
    assert best * (1 - 1e-9) <= proved(problem, certificate) <= best * (1 + 1e-12)


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_rows_are_proved_one_by_one(pattern):
    problem, certificate, best = case(pattern)
    rows = verify.check(problem, certificate).rows
    assert verify.total(rows) == proved(problem, certificate)
    errors = [best_mask(replace(problem, W=problem.W[row : row + 1]))[0] for row in range(problem.rows)]
    assert sum(errors) == pytest.approx(best, rel=1e-12)
    for bound, error in zip(rows, errors, strict=True):
        assert error * (1 - 1e-9) <= bound <= error * (1 + 1e-12)


def test_a_tree_by_hand():
    """Two orthogonal inputs of weight 1 and 2, one to be pruned: with d = 0 the tangent at the mask gives the cost."""
    problem = Problem("hand", np.ones((1, 2)), np.diag([1.0, 4.0]), "0.5")
    arrays = {
        "step": np.array([DIAGONAL, BRANCH + 1, POINT, LEAF, POINT, LEAF], np.uint8),
        "variable": np.array([0], np.uint16),
        "point": np.zeros(0, np.uint8),  # a branch leaves nothing free
        "digits": np.zeros(0, np.uint8),
        "diagonal": np.zeros(2, np.float32),
        "rho": np.array([1.0]),
    }
    assert 1 - 1e-12 <= proved(problem, Certificate(problem.hash, 1.0, "tree", arrays)) <= 1


def test_the_tangent_by_hand():
    """At u = (1/2, 1/2), d = (1, 4): h is linear, (1, 4) its gradient, so one leaf is enough."""
    problem = Problem("hand", np.ones((1, 2)), np.diag([1.0, 4.0]), "0.5")
    arrays = {
        "step": np.array([DIAGONAL, POINT, LEAF], np.uint8),
        "variable": np.zeros(0, np.uint16),
        "point": np.array([64, 64], np.uint8),
        "digits": np.zeros(2, np.uint8),
        "diagonal": np.array([1 - 1e-6, 4 - 1e-6], np.float32),
        "rho": np.array([1.0]),
    }
    certificate = Certificate(problem.hash, 1.0, "tree", arrays)
    assert proved(problem, certificate) == pytest.approx(1, rel=1e-5)
    # plain: value 5/4, gradient (1, 4), so 5/4 - 5/2 + 1
    assert proved(problem, forged(certificate, diagonal=np.zeros(2, np.float32))) == 0.0
    skewed = np.array([96, 32], np.uint8)  # u = (3/4, 1/4): -9/16 - 4/16 + 2 min(3/4, 1)
    plain = proved(problem, forged(certificate, diagonal=np.zeros(2, np.float32), point=skewed))
    assert plain == pytest.approx(-13 / 16 + 3 / 2)


def test_nothing_costs_nothing():
    problem, certificate, _ = case(rows=1)
    empty = {name: array[:0] for name, array in certificate.arrays.items()}
    arrays = empty | {"step": np.array([NOTHING], np.uint8), "rho": np.zeros(1)}
    assert proved(problem, replace(certificate, arrays=arrays)) == 0.0


# --- forged ----------------------------------------------------------------------------------------------------------


def branches(certificate: Certificate) -> list[int]:
    step = certificate.arrays["step"]
    return np.flatnonzero((step >= BRANCH) & (step < FIX)).tolist()


def of_kind(certificate: Certificate, kind: int) -> int:
    return int(np.flatnonzero(certificate.arrays["step"] == kind)[0])


FORGERIES = {
    "another problem": (lambda c: replace(c, problem="0" * 64), "another problem"),
    "another kind": (lambda c: replace(c, kind="bush"), "unknown kind"),
    "missing leaf": (lambda c: forged(c, step=c.arrays["step"][:-1]), "a leaf is missing"),
    "no steps": (lambda c: forged(c, step=c.arrays["step"][:0]), "a leaf is missing"),
    "one tree of two": (lambda c: forged(c, rho=c.arrays["rho"][:1]), "rho is float64 (1,), not float64 (2,)"),
    "a third tree": (
        lambda c: forged(c, step=np.append(c.arrays["step"], NOTHING).astype(np.uint8)),
        "after the last tree",
    ),
    "overlapping leaves": (
        lambda c: forged(c, step=np.append(c.arrays["step"], LEAF).astype(np.uint8)),
        "after the last tree",
    ),
    "a leaf for a branch": (
        lambda c: forged(c, step=changed(c.arrays["step"], branches(c)[0], LEAF)),
        "without a point",
    ),
    "unknown step": (lambda c: forged(c, step=changed(c.arrays["step"], of_kind(c, LEAF), 9)), "unknown step 9"),
    "the same variable twice": (
        lambda c: forged(c, variable=np.full_like(c.arrays["variable"], c.arrays["variable"][0])),
        "is not free",
    ),
    "a variable from outside": (
        lambda c: forged(c, variable=changed(c.arrays["variable"], 0, 12)),
        "variable 12 is not free",
    ),
    "too few variables": (lambda c: forged(c, variable=c.arrays["variable"][:-1]), "ends too early"),
    "a variable too many": (
        lambda c: forged(c, variable=np.append(c.arrays["variable"], c.arrays["variable"][:1])),
        "after the last tree",
    ),
    "no point": (
        lambda c: forged(c, step=np.delete(c.arrays["step"], of_kind(c, POINT))),
        "without a point|miss|goes on",
    ),
    "no diagonal": (lambda c: forged(c, step=np.delete(c.arrays["step"], of_kind(c, DIAGONAL))), "without a diagonal"),
    "points too short": (lambda c: forged(c, point=c.arrays["point"][:-1]), "point ends too early"),
    "digits too short": (lambda c: forged(c, digits=c.arrays["digits"][:-1]), "digits ends too early"),
    "diagonals too short": (lambda c: forged(c, diagonal=c.arrays["diagonal"][:-1]), "diagonal ends too early"),
    "a point off the count": (lambda c: forged(c, point=changed(c.arrays["point"], 0, 1)), "misses the count"),
    "digits off the count": (lambda c: forged(c, digits=changed(c.arrays["digits"], 0, 3)), "count|leaves"),
    "a point above 1": (lambda c: forged(c, point=changed(c.arrays["point"], 0, 200)), "leaves [0, 1]"),
    "NaN on the diagonal": (lambda c: forged(c, diagonal=changed(c.arrays["diagonal"], 0, np.nan)), "not finite"),
    "infinite rho": (lambda c: forged(c, rho=np.full(2, np.inf)), "not finite"),
    "negative rho": (lambda c: forged(c, rho=-c.arrays["rho"]), "rho is negative"),
    "no rho": (lambda c: forged(c, rho=np.zeros(2)), "cannot be proved positive semidefinite"),
    "a diagonal too large": (lambda c: forged(c, diagonal=c.arrays["diagonal"] + 1), "cannot be proved positive"),
    "a huge diagonal": (lambda c: forged(c, diagonal=np.full_like(c.arrays["diagonal"], 1e38)), "cannot be proved"),
    "wrong type": (lambda c: forged(c, diagonal=c.arrays["diagonal"].astype(np.float64)), "diagonal is float64"),
    "wrong shape": (lambda c: forged(c, step=c.arrays["step"][None]), "step is uint8"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_are_refused(name):
    problem, certificate, _ = case()
    forge, reason = FORGERIES[name]
    said = refusal(problem, forge(certificate))
    assert any(part in said for part in reason.split("|")), said


@pytest.mark.parametrize("name", ["step", "variable", "point", "digits", "diagonal", "rho"])
def test_a_missing_array(name):
    problem, certificate, _ = case()
    arrays = {key: array for key, array in certificate.arrays.items() if key != name}
    assert refusal(problem, replace(certificate, arrays=arrays)) == f"it has no array {name!r}"


def test_a_truncated_file():
    data = case()[1].to_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match="not a readable certificate"):
            Certificate.from_bytes(data[:size])


def test_a_subtree_left_out():
    """Without the second child of the last branch the stream ends early, wherever its leaf stood."""
    problem, certificate, _ = case()
    step = certificate.arrays["step"]
    for cut in range(branches(certificate)[-1] + 1, len(step)):
        assert "missing" in refusal(problem, forged(certificate, step=step[:cut]))


def test_a_heavier_layer_is_not_proved():
    """The tree of one layer says nothing of another, even if its hash is forged."""
    problem, certificate, _ = case()
    other = Problem("other", problem.W * np.float32(0.5), problem.G, "0.5")
    checked = verify.check(other, replace(certificate, problem=other.hash, bound=0.0))
    assert checked.bound <= best_mask(other)[0] * (1 + 1e-12)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(PATTERNS), st.integers(0, 2**32))
def test_no_mutation_proves_what_is_false(pattern, seed):
    """Any change of any array is refused, or what is proved still holds."""
    problem, certificate, best = case(pattern, n=4 if pattern.startswith("unstructured") else 12)
    rng = np.random.default_rng(seed)
    arrays = {name: array.copy() for name, array in certificate.arrays.items()}
    for _ in range(rng.integers(1, 4)):
        name = str(rng.choice(list(arrays)))
        array = arrays[name]
        if not array.size:
            continue
        at = rng.integers(array.size)
        if array.dtype.kind == "f":
            array[at] *= 1 + rng.choice([1e-6, 1e-3, -1e-3, 0.5, -3.0])
        elif name == "step":
            array[at] = rng.integers(0, 8)
        elif name == "variable":
            array[at] = rng.integers(0, problem.n)
        else:  # two entries, so that the count may survive
            with np.errstate(over="ignore"):
                array[at] += 1
                array[rng.integers(array.size)] -= 1
    checked = verify.check(problem, replace(certificate, arrays=arrays, bound=0.0))
    assert checked.bound <= best * (1 + 1e-12)


# --- rounding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_what_passes_is_exactly_semidefinite(seed):
    """``Q - Diag(d) + rho 11ᵀ`` in rational numbers, at the largest shift of d that still passes."""
    rng = np.random.default_rng(seed)
    n = 6
    X = rng.standard_normal((n, n)) * np.logspace(0, -rng.integers(0, 4), n)[:, None]
    problem = Problem("psd", rng.standard_normal((1, n)), X @ X.T, "0.5")
    Q, free, rho = block_matrix(problem, 0), np.sort(rng.permutation(n)[:4]), float(rng.random() + 0.1)
    w = exactly(problem.W[0])
    exact = (np.outer(w, w) * exactly(problem.G))[np.ix_(free, free)] + exactly(np.array(rho))[()]
    low, high = 0.0, float(np.linalg.eigvalsh(Q[np.ix_(free, free)] + rho)[0]) * 2

    def proves(shift: float) -> bool:
        return proves_convex(Q[np.ix_(free, free)], np.full(4, shift), rho, np.zeros(4))

    assert proves(0.0)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if proves(middle) else (low, middle)
    d = np.full(4, low)
    assert exactly_psd(exact - np.diag(exactly(d)))
    edge = float(np.linalg.eigvalsh(np.array(exact, dtype=float))[0])
    assert low == pytest.approx(edge, abs=1e-12 * (rho + np.abs(Q).sum()))  # and little is given away


@pytest.mark.parametrize("seed", range(20))
def test_a_claim_is_below_the_exact_tangent(seed):
    """One leaf, whole numbers times odd scales: the proved bound against rational arithmetic."""
    rng = np.random.default_rng(seed)
    base = integer_layer("0.5", rows=1, n=8, seed=seed)
    problem = Problem("scaled", base.W * np.float32(0.1), base.G / 3 + np.eye(8) / 7, "0.5")
    k = np.full(8, UNIT // 2) + np.array([1, -1] * 4) * rng.integers(0, UNIT // 2, 4).repeat(2)
    d = (0.01 * rng.random(8) * problem.W[0] ** 2 - 1e-6).astype(np.float32)
    arrays = {
        "step": np.array([DIAGONAL, POINT, LEAF], np.uint8),
        "variable": np.zeros(0, np.uint16),
        "point": (k >> 8).astype(np.uint8),
        "digits": (k & 255).astype(np.uint8),
        "diagonal": d,
        "rho": np.array([1.0]),
    }
    found = proved(problem, Certificate(problem.hash, 0.0, "tree", arrays))
    w, G, u, d = exactly(problem.W[0]), exactly(problem.G), exactly(k / UNIT), exactly(d)
    Au = w * (G @ (w * u)) - d * u
    exact = max(0, -(u * Au).sum() + sum(sorted(2 * Au + d)[:4]))
    assert found <= exact
    assert math.isclose(found, float(exact), rel_tol=1e-9, abs_tol=1e-12 * problem.total)
