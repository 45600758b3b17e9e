"""Forged certificates of kind ``rows`` are refused, each with its reason; honest ones prove what they claim."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from brute import best_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import odd_layer, random_layer, repelling_layer

from fwbench import verify
from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.solvers.bounds.stage import Bound
from fwbench.solvers.start.scores import wanda_score
from fwbench.stage import Context, State
from fwbench.verify import products, rounding
from fwbench.verify.products import Listed


@dataclass(frozen=True)
class Case:
    """A problem and an honest certificate of it, to be forged."""

    problem: Problem
    certificate: Certificate

    @classmethod
    def of(cls, problem: Problem, kind: str) -> Case:
        state = State(keep=~problem.pattern.prune(wanda_score(problem.W, problem.G)))
        stage = Bound(kind=kind, seconds=3600)  # the kernels may have to be compiled first, beside other tests
        return cls(problem, stage.run(problem, state, Context(threads=1)).certificate)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.certificate.arrays[name]

    def changed(self, name: str, index: object, value: object) -> Certificate:
        array = np.array(self[name])
        array[index] = value
        return self.given(name, array)

    def given(self, name: str, array: np.ndarray) -> Certificate:
        return replace(self.certificate, arrays={**self.certificate.arrays, name: array})

    def lacking(self, name: str) -> Certificate:
        arrays = {key: array for key, array in self.certificate.arrays.items() if key != name}
        return replace(self.certificate, arrays=arrays)

    def refused(self, certificate: Certificate, reason: str) -> None:
        checked = verify.check(self.problem, certificate)
        assert not checked.ok
        assert any(part in checked.reason for part in reason.split("|")), checked.reason


@pytest.fixture(scope="module")
def pairs() -> Case:
    return Case.of(random_layer("0.5", rows=3, n=12, seed=5), "dnn")


@pytest.fixture(scope="module")
def triples() -> Case:
    return Case.of(repelling_layer(rows=2, seed=1, spread=0.1), "triangles")


@pytest.fixture(scope="module")
def fives() -> Case:
    return Case.of(odd_layer(), "pentagons")


def own_matrix(case: Case, k: int) -> np.ndarray:
    """``Q - N - D + ρ11ᵀ`` of the k-th proof."""
    n = case.problem.n
    w = case.problem.W[case["rows"][k]].astype(float)
    part = slice(case["start"][k], case["start"][k + 1])
    N = np.zeros(n**2)
    N[case["pair"][part]] = case["multiplier"][part]
    N = N.reshape(n, -1)
    return np.outer(w, w) * case.problem.G - N - N.T - np.diag(case["d"][k]) + case["rho"][k]


def test_the_honest_one_proves_its_claim_and_survives_a_file(pairs):
    assert pairs.certificate.kind == "rows"
    assert len(pairs["rows"]) == 3
    assert len(pairs["pair"]) > 0
    checked = verify.check(pairs.problem, pairs.certificate)
    assert checked.ok
    assert pairs.certificate.bound == pytest.approx(checked.bound, rel=1e-9)
    assert checked.bound <= best_mask(pairs.problem)[0]
    assert verify.check(pairs.problem, Certificate.from_bytes(pairs.certificate.to_bytes())) == checked


def test_d_beyond_its_slack_by_one_part_in_a_billion(pairs):
    for k in range(3):
        slack = np.linalg.eigvalsh(own_matrix(pairs, k))[0]
        above = pairs.changed("d", k, pairs["d"][k] + slack * (1 + 1e-9) + 1e-13)
        assert "cannot be proved positive semidefinite" in verify.check(pairs.problem, above).reason
        below = pairs.changed("d", k, pairs["d"][k] + slack * 0.99)
        assert "positive semidefinite" not in verify.check(pairs.problem, below).reason


FORGED = {
    "another problem": (lambda c: replace(c.certificate, problem="0" * 64), "another problem"),
    "unknown kind": (lambda c: replace(c.certificate, kind="row"), "unknown kind"),
    "claims too much": (lambda c: replace(c.certificate, bound=c.certificate.bound * (1 + 1e-5)), "can be proved"),
    "claims NaN": (lambda c: replace(c.certificate, bound=float("nan")), "claims a bound of nan"),
    "shared e too large": (lambda c: c.changed("e", slice(None), 10.0), "G - diag(e)"),
    "a multiplier negative": (lambda c: c.changed("multiplier", 0, -1e-6), "negative multiplier"),
    "a multiplier NaN": (lambda c: c.changed("multiplier", 0, np.nan), "not finite"),
    "a multiplier huge": (lambda c: c.changed("multiplier", 0, 1e30), "positive semidefinite"),
    "d NaN": (lambda c: c.changed("d", (0, 0), np.nan), "not finite"),
    "d infinite": (lambda c: c.changed("d", (0, 0), -np.inf), "not finite"),
    "d too large": (lambda c: c.changed("d", (0, 0), 1e3), "positive semidefinite"),
    "rho NaN": (lambda c: c.changed("rho", 0, np.nan), "not finite"),
    "rho negative": (lambda c: c.changed("rho", 0, -1.0), "rho is negative"),
    "rho taken away": (lambda c: c.changed("rho", 0, 0.0), "positive semidefinite"),
    "u outside": (lambda c: c.changed("u", (0, 0), 2.5), "u leaves"),
    "u NaN": (lambda c: c.changed("u", (0, 0), np.nan), "not finite"),
    "u elsewhere": (lambda c: c.changed("u", 0, 0.0), "can be proved"),
    "a row twice": (lambda c: c.changed("rows", 1, 0), "not ascending numbers"),
    "a row that is not there": (lambda c: c.changed("rows", 2, 3), "not ascending numbers"),
    "a negative row": (lambda c: c.changed("rows", 0, -1), "not ascending numbers"),
    "rows exchanged": (
        lambda c: c.given("d", c["d"][::-1].copy()),
        "positive semidefinite|can be proved",
    ),
    "rows of another length": (lambda c: c.given("rows", c["rows"][:2]), "d is"),
    "pointers shifted": (lambda c: c.given("start", c["start"] + 1), "does not divide"),
    "pointers short": (lambda c: c.changed("start", -1, len(c["pair"]) - 1), "does not divide"),
    "pointers crossed": (lambda c: c.changed("start", 1, len(c["pair"]) + 5), "does not divide"),
    "pointers missing": (lambda c: c.given("start", c["start"][:-1]), "start is"),
    "a pair on the diagonal": (lambda c: c.changed("pair", 0, 0), "2 ascending weights"),
    "a pair reversed": (lambda c: c.changed("pair", 0, c.problem.n), "2 ascending weights"),
    "a pair outside": (lambda c: c.changed("pair", -1, c.problem.n**2 + 1), "2 ascending weights"),
    "a pair negative": (lambda c: c.changed("pair", 0, -1), "2 ascending weights"),
    "a pair twice": (lambda c: c.changed("pair", 1, c["pair"][0]), "not ascending"),
    "a kind that is none": (lambda c: c.changed("kind", 0, 4), "with a kind 0..3"),
    "kinds exchanged": (lambda c: c.given("kind", c["kind"] + np.uint8(1)), "positive semidefinite|can be proved"),
    "pairs as int32": (lambda c: c.given("pair", c["pair"].astype(np.int32)), "pair is int32"),
    "multipliers cut": (lambda c: c.given("multiplier", c["multiplier"][:-1]), "multiplier is"),
    "hash shortened": (lambda c: replace(c.certificate, problem=c.certificate.problem[:12]), "another problem"),
    "claims infinity": (lambda c: replace(c.certificate, bound=float("inf")), "claims a bound of inf"),
    "passed off as shared": (
        lambda c: replace(c.certificate, kind="diagonal", arrays={**c.certificate.arrays, "rows": None}),
        "u leaves [0, 1]",
    ),
    "passed off as a tree": (lambda c: replace(c.certificate, kind="tree"), "it has no array 'step'"),
    "d of the next row": (
        lambda c: c.given("d", np.roll(c["d"], 1, axis=0)),
        "positive semidefinite",
    ),
    "u of the next row": (lambda c: c.given("u", np.roll(c["u"], 1, axis=0)), "can be proved"),
    "u infinite": (lambda c: c.changed("u", (2, 11), np.inf), "not finite"),
    "u a hair outside": (lambda c: c.changed("u", (0, 0), np.nextafter(np.float32(2), np.float32(3))), "u leaves"),
    "rho infinite": (lambda c: c.changed("rho", 1, np.inf), "not finite"),
    "rho a hair negative": (lambda c: c.changed("rho", 1, -5e-324), "rho is negative"),
    "a multiplier infinite": (lambda c: c.changed("multiplier", -1, np.inf), "not finite"),
    "all multipliers doubled": (
        lambda c: c.given("multiplier", c["multiplier"] * 2),
        "positive semidefinite",
    ),
    "all multipliers gone": (lambda c: c.given("multiplier", c["multiplier"] * 0), "positive semidefinite"),
    "rows as int32": (lambda c: c.given("rows", c["rows"].astype(np.int32)), "rows is int32"),
    "start as float": (lambda c: c.given("start", c["start"].astype(float)), "start is float64"),
    "start not from 0": (lambda c: c.changed("start", 0, 1), "does not divide"),
    "kind as int64": (lambda c: c.given("kind", c["kind"].astype(np.int64)), "kind is int64"),
    "d of one row more": (lambda c: c.given("d", np.vstack([c["d"], c["d"][:1]])), "d is"),
    "rho as a column": (lambda c: c.given("rho", c["rho"][:, None]), "rho is"),
    "d as float32": (lambda c: c.given("d", c["d"].astype(np.float32)), "d is float32"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged(pairs, name):
    forge, reason = FORGED[name]
    pairs.refused(forge(pairs), reason)


# --- triples ---------------------------------------------------------------------------------------------------------


def test_triples_prove_their_claim_and_survive_a_file(triples):
    assert len(triples["rows"]) == 2
    assert len(triples["triple"]) > 10
    checked = verify.check(triples.problem, triples.certificate)
    assert checked.ok
    assert triples.certificate.bound == pytest.approx(checked.bound, rel=1e-9)
    assert checked.bound <= best_mask(triples.problem)[0]
    assert verify.check(triples.problem, Certificate.from_bytes(triples.certificate.to_bytes())) == checked


FORGED_TRIPLES = {
    "a weight negative": (lambda c: c.changed("weight", 0, -1e-6), "a triple has a negative multiplier"),
    "a weight NaN": (lambda c: c.changed("weight", 0, np.nan), "not finite"),
    "a weight infinite": (lambda c: c.changed("weight", -1, np.inf), "not finite"),
    "a weight huge": (lambda c: c.changed("weight", 0, 1e30), "positive semidefinite"),
    "weights doubled": (lambda c: c.given("weight", c["weight"] * 2), "positive semidefinite|can be proved"),
    "weights gone": (lambda c: c.given("weight", c["weight"] * 0), "positive semidefinite|can be proved"),
    "weights as float64": (lambda c: c.given("weight", c["weight"].astype(float)), "weight is float64"),
    "weights cut": (lambda c: c.given("weight", c["weight"][:-1]), "weight is"),
    "a triple reversed": (lambda c: c.given("triple", c["triple"][:, ::-1].copy()), "3 ascending weights"),
    "a weight twice in a triple": (lambda c: c.changed("triple", 0, [1, 1, 2]), "3 ascending weights"),
    "a triple outside": (lambda c: c.changed("triple", 0, [1, 2, 12]), "3 ascending weights"),
    "triples as int64": (lambda c: c.given("triple", c["triple"].astype(np.int64)), "triple is int64"),
    "triples as pairs": (lambda c: c.given("triple", c["triple"][:, :2].copy()), "triple is"),
    "a corner that is none": (lambda c: c.changed("corner", 0, 4), "a corner 0..3"),
    "corners exchanged": (
        lambda c: c.given("corner", (c["corner"] + np.uint8(1)) % np.uint8(4)),
        "positive semidefinite|can be proved",
    ),
    "pointers shifted": (lambda c: c.given("triple_start", c["triple_start"] + 1), "does not divide the triples"),
    "pointers short": (lambda c: c.changed("triple_start", -1, len(c["triple"]) - 1), "does not divide the triples"),
    "pointers crossed": (lambda c: c.changed("triple_start", 1, len(c["triple"]) + 5), "does not divide the triples"),
    "triples of the next row": (
        lambda c: c.given("triple_start", np.array([0, 0, len(c["triple"])])),
        "positive semidefinite|can be proved",
    ),
    "claims too much": (lambda c: replace(c.certificate, bound=c.certificate.bound * (1 + 1e-5)), "can be proved"),
}


@pytest.mark.parametrize("name", FORGED_TRIPLES)
def test_forged_triples(triples, name):
    forge, reason = FORGED_TRIPLES[name]
    triples.refused(forge(triples), reason)


# --- fives -----------------------------------------------------------------------------------------------------------


def test_fives_prove_what_triples_cannot_and_survive_a_file(fives):
    assert len(fives["five"]) > 0
    problem, certificate = fives.problem, fives.certificate
    checked = verify.check(problem, certificate)
    assert checked.ok
    best = best_mask(problem)[0]
    assert best * (1 - 1e-2) <= checked.bound <= best
    assert Case.of(problem, "triangles").certificate.bound < best * (1 - 2e-2)
    assert verify.check(problem, Certificate.from_bytes(certificate.to_bytes())) == checked


FORGED_FIVES = {
    "a share negative": (lambda c: c.changed("share", 0, -1e-6), "a five has a negative multiplier"),
    "a share NaN": (lambda c: c.changed("share", 0, np.nan), "not finite"),
    "a share huge": (lambda c: c.changed("share", 0, 1e30), "positive semidefinite"),
    "shares doubled": (lambda c: c.given("share", c["share"] * 2), "positive semidefinite|can be proved"),
    "shares gone": (lambda c: c.given("share", c["share"] * 0), "positive semidefinite|can be proved"),
    "shares as float64": (lambda c: c.given("share", c["share"].astype(float)), "share is float64"),
    "shares cut": (lambda c: c.given("share", c["share"][:-1]), "share is"),
    "a five reversed": (lambda c: c.given("five", c["five"][:, ::-1].copy()), "5 ascending weights"),
    "a weight twice in a five": (lambda c: c.changed("five", 0, [1, 1, 2, 3, 4]), "5 ascending weights"),
    "a five outside": (lambda c: c.changed("five", 0, [1, 2, 3, 4, 10]), "5 ascending weights"),
    "fives as int64": (lambda c: c.given("five", c["five"].astype(np.int64)), "five is int64"),
    "fives as triples": (lambda c: c.given("five", c["five"][:, :3].copy()), "five is"),
    "a sign that is none": (lambda c: c.changed("sign", 0, 16), "a sign 0..15"),
    "signs exchanged": (lambda c: c.given("sign", c["sign"] ^ np.uint8(5)), "positive semidefinite|can be proved"),
    "pointers shifted": (lambda c: c.given("five_start", c["five_start"] + 1), "does not divide the fives"),
    "pointers short": (lambda c: c.changed("five_start", -1, len(c["five"]) - 1), "does not divide the fives"),
    "claims too much": (lambda c: replace(c.certificate, bound=c.certificate.bound * (1 + 1e-5)), "can be proved"),
}


@pytest.mark.parametrize("name", FORGED_FIVES)
def test_forged_fives(fives, name):
    forge, reason = FORGED_FIVES[name]
    fives.refused(forge(fives), reason)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**31))
def test_products_are_their_definition(seed):
    """Random products of pairs, triples and fives on every mask: the checker's sum by their definitions."""
    rng = np.random.default_rng(seed)
    n = 6
    pair = np.array([i * n + j for i in range(n) for j in range(i + 1, n)])
    triple = np.array(list(combinations(range(n), 3)))
    kind, corner = rng.integers(0, 4, len(pair)).astype(np.uint8), rng.integers(0, 4, len(triple)).astype(np.uint8)
    m, weight = (rng.integers(0, 5, len(of)).astype(np.float32) for of in (pair, triple))
    five = np.array(list(combinations(range(n), 5)))
    sign, share = rng.integers(0, 16, len(five)).astype(np.uint8), rng.integers(0, 5, len(five)).astype(np.float32)
    sum_of = products.summed(Listed(pair, kind, m, triple, corner, weight, five, sign, share), n)
    N = sum_of.N
    for v in itertools.product([0, 1], repeat=n):
        found = N.matrix @ v @ v + sum_of.linear[0] @ v + sum_of.constant
        wanted = 0.0
        for code, own, value in zip(pair, kind, m, strict=True):
            i, j = divmod(int(code), n)
            wanted += 2 * value * ((v[i], v[j]) == ((1, 1), (1, 0), (0, 1), (0, 0))[own])
        for own, at, value in zip(corner.tolist(), triple, weight, strict=True):
            own_values = [v[i] for i in at]
            odd = own_values[own - 1]
            wanted += 2 * value * (len({*own_values}) == 1 if own == 0 else own_values.count(odd) == 1)
        for bits, at, value in zip(sign.tolist(), five, share, strict=True):
            signs = [1, *(-1 if bits >> a & 1 else 1 for a in range(4))]
            wanted += value * (sum(b * (2 * v[i] - 1) for b, i in zip(signs, at, strict=True)) ** 2 - 1) / 2
        assert found == pytest.approx(wanted, abs=1e-9)
        assert (np.abs(N.matrix) <= N.absolute).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 1.0, 1e6]))
def test_a_tangent_is_below_the_exact_one_also_outside_of_the_box(seed, amount):
    """In rational arithmetic, with ``u`` in [-1, 2] and products that dwarf the rest or are none."""
    rng = np.random.default_rng(seed)
    n = 6
    X = rng.standard_normal((n, n))
    W, G = rng.standard_normal((1, n)).astype(np.float32), X @ X.T
    u = rng.uniform(-1, 2, (1, n)).astype(np.float32) if seed % 2 else np.full((1, n), -1, np.float32)
    d = rng.standard_normal((1, n))
    pair = np.array([i * n + j for i in range(n) for j in range(i + 1, n)])
    m = (amount * rng.exponential(1, len(pair))).astype(np.float32)
    triple = np.array([[0, 1, 2], [1, 3, 5]])
    five, b = np.array([[0, 1, 2, 4, 5]]), [1, -1, 1, 1, -1]
    own = (pair, np.zeros(len(pair), np.uint8), m, triple, np.array([0, 2], np.uint8), m[:2])
    sum_of = products.summed(Listed(*own, five, np.array([9], np.uint8), m[:1]), n)
    wide, point = W.astype(np.float64), u.astype(np.float64)
    S = rounding.product(wide * point, rounding.Rounded(G, np.abs(G)))
    origin, low = rounding.tangent(wide, S, point, d, rounding.product(point, sum_of.N), sum_of.linear)
    w, v, D = ([Fraction(float(x)) for x in row[0]] for row in (W, u, d))
    A = [[w[i] * w[j] * Fraction(float(G[i, j])) for j in range(n)] for i in range(n)]
    linear = [Fraction(0)] * n
    for code, value in zip(pair, m, strict=True):
        i, j = divmod(int(code), n)
        A[i][j] -= Fraction(float(value))
        A[j][i] -= Fraction(float(value))
    for (at, own_corner), value in zip(zip(triple.tolist(), (0, 2), strict=True), m[:2], strict=True):
        size = Fraction(float(value))
        for (i, j), sign in zip(combinations(at, 2), ((1, 1, 1), (-1, 1, -1))[own_corner // 2], strict=True):
            A[i][j] -= sign * size
            A[j][i] -= sign * size
        for i in at if own_corner == 0 else [at[1]]:
            linear[i] += (-2 if own_corner == 0 else 2) * size
    size = Fraction(float(m[0]))
    for (i, own), (j, other_own) in combinations(zip(five[0].tolist(), b, strict=True), 2):
        A[i][j] -= 2 * own * other_own * size
        A[j][i] -= 2 * own * other_own * size
    for i, own in zip(five[0].tolist(), b, strict=True):
        linear[i] += 2 * (1 - sum(b) * own) * size
    half = [sum(A[i][j] * v[j] for j in range(n)) - D[i] * v[i] for i in range(n)]
    for i in range(n):
        assert Fraction(float(low[0, i])) <= 2 * half[i] + D[i] - linear[i]
    assert sum(Fraction(float(x)) for x in origin[0]) <= -sum(half[i] * v[i] for i in range(n))


@pytest.mark.parametrize(
    ("kind", "name"),
    [("pairs", name) for name in ("e", "u", "rows", "d", "rho", *products.PAIRS)]
    + [("triples", name) for name in products.TRIPLES]
    + [("fives", name) for name in products.FIVES],
)
def test_a_missing_array(kind, name, request):
    case = request.getfixturevalue(kind)
    assert verify.check(case.problem, case.lacking(name)).reason == f"it has no array {name!r}"


def test_rows_missing_fall_back_to_the_shared_proof(pairs):
    cut = pairs["start"][2]
    arrays = dict(pairs.certificate.arrays)
    for name in ("rows", "d", "rho"):
        arrays[name] = pairs[name][:2]
    for name in ("pair", "kind", "multiplier"):
        arrays[name] = pairs[name][:cut]
    arrays["start"] = pairs["start"][:3]
    certificate = replace(pairs.certificate, arrays=arrays)
    assert "can be proved" in verify.check(pairs.problem, certificate).reason
    weaker = verify.check(pairs.problem, replace(certificate, bound=0.0))
    assert weaker.ok
    assert weaker.bound < verify.check(pairs.problem, pairs.certificate).bound


def test_a_pattern_across_rows_is_refused(pairs):
    other = pairs.problem.with_pattern("unstructured:0.5")
    assert "rows are independent" in verify.check(other, replace(pairs.certificate, problem=other.hash)).reason


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.sampled_from(["0.5", "2:4", "rows"]))
def test_any_products_prove_only_what_holds(seed, pattern):
    """Random ``u``, ``rho`` and products of all four kinds, and a ``d`` that makes the matrix just semidefinite."""
    rng = np.random.default_rng(seed)
    n = 8
    problem = random_layer(pattern, rows=2, n=n, seed=seed % 1000)
    codes = np.sort(rng.choice(n * n * 4, 60, replace=False))
    pair, kind = codes // 4, (codes % 4).astype(np.uint8)
    upper = pair // n < pair % n
    pair, kind = pair[upper].astype(np.int64), kind[upper]
    multiplier = (rng.exponential(0.05, len(pair)) * problem.G.diagonal().mean()).astype(np.float32)
    u = rng.random(problem.shape).astype(np.float32)
    rho = rng.random(1)
    N = np.zeros((n, n))
    np.add.at(N, (pair // n, pair % n), np.where((kind == 0) | (kind == 3), 1, -1) * multiplier.astype(float))
    w = problem.W[1].astype(float)
    size = problem.pattern.group_size(problem.shape)
    A = np.outer(w, w) * problem.G - N - N.T + rho * np.kron(np.eye(n // size), np.ones((size, size)))
    d = np.full((1, n), np.linalg.eigvalsh(A)[0] - 1e-9)
    arrays = {"e": np.full(n, -1e-9), "u": u, "rows": np.array([1]), "d": d, "rho": rho}
    arrays |= {"start": np.array([0, len(pair)]), "pair": pair, "kind": kind, "multiplier": multiplier}
    checked = verify.check(problem, Certificate(problem.hash, 0.0, "rows", arrays))
    assert checked.ok
    assert checked.bound <= best_mask(problem)[0] * (1 + 1e-12)
