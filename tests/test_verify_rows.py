"""Forged certificates of kind ``rows`` are refused, each with its reason; honest ones prove what they claim."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import combinations

import numpy as np
import pytest
from brute import best_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import odd_layer, random_layer, repelling_layer

from fwbench import verify, verify_products
from fwbench.result import Certificate
from fwbench.solvers.bounds.stage import Bound
from fwbench.solvers.start.scores import wanda_score
from fwbench.stage import Context, State
from fwbench.verify_products import OwnProof

PROBLEM = random_layer("0.5", rows=3, n=12, seed=5)
HONEST = (
    Bound(kind="dnn", seconds=3600)  # the kernels may have to be compiled first, beside other tests
    .run(PROBLEM, State(keep=~PROBLEM.pattern.prune(wanda_score(PROBLEM.W, PROBLEM.G))), Context(threads=1))
    .certificate
)
ARRAYS = HONEST.arrays


def changed(name: str, index: object, value: object, of: Certificate = HONEST) -> Certificate:
    array = np.array(of.arrays[name])
    array[index] = value
    return given_as(name, array, of)


def given_as(name: str, array: np.ndarray, of: Certificate = HONEST) -> Certificate:
    return replace(of, arrays={**of.arrays, name: array})


def own_matrix(k: int) -> np.ndarray:
    """``Q - N - D + ρ11ᵀ`` of the k-th proof."""
    w = PROBLEM.W[ARRAYS["rows"][k]].astype(float)
    part = slice(ARRAYS["start"][k], ARRAYS["start"][k + 1])
    N = np.zeros(PROBLEM.n**2)
    N[ARRAYS["pair"][part]] = ARRAYS["multiplier"][part]
    N = N.reshape(PROBLEM.n, -1)
    return np.outer(w, w) * PROBLEM.G - N - N.T - np.diag(ARRAYS["d"][k]) + ARRAYS["rho"][k]


def test_the_honest_one_proves_its_claim_and_survives_a_file():
    assert HONEST.kind == "rows"
    assert len(ARRAYS["rows"]) == 3
    assert len(ARRAYS["pair"]) > 0
    checked = verify.check(PROBLEM, HONEST)
    assert checked.ok
    assert HONEST.bound == pytest.approx(checked.bound, rel=1e-9)
    assert checked.bound <= best_mask(PROBLEM)[0]
    assert verify.check(PROBLEM, Certificate.from_bytes(HONEST.to_bytes())) == checked


def test_d_beyond_its_slack_by_one_part_in_a_billion():
    for k in range(3):
        slack = np.linalg.eigvalsh(own_matrix(k))[0]
        above = changed("d", k, ARRAYS["d"][k] + slack * (1 + 1e-9) + 1e-13)
        assert "cannot be proved positive semidefinite" in verify.check(PROBLEM, above).reason
        below = changed("d", k, ARRAYS["d"][k] + slack * 0.99)
        assert "positive semidefinite" not in verify.check(PROBLEM, below).reason


FORGED = {
    "another problem": (replace(HONEST, problem="0" * 64), "another problem"),
    "unknown kind": (replace(HONEST, kind="row"), "unknown kind"),
    "claims too much": (replace(HONEST, bound=HONEST.bound * (1 + 1e-5)), "can be proved"),
    "claims NaN": (replace(HONEST, bound=float("nan")), "claims a bound of nan"),
    "shared e too large": (changed("e", slice(None), 10.0), "G - diag(e)"),
    "a multiplier negative": (changed("multiplier", 0, -1e-6), "negative multiplier"),
    "a multiplier NaN": (changed("multiplier", 0, np.nan), "not finite"),
    "a multiplier huge": (changed("multiplier", 0, 1e30), "positive semidefinite"),
    "d NaN": (changed("d", (0, 0), np.nan), "not finite"),
    "d infinite": (changed("d", (0, 0), -np.inf), "not finite"),
    "d too large": (changed("d", (0, 0), 1e3), "negative diagonal"),
    "rho NaN": (changed("rho", 0, np.nan), "not finite"),
    "rho negative": (changed("rho", 0, -1.0), "rho is negative"),
    "rho taken away": (changed("rho", 0, 0.0), "positive semidefinite"),
    "u outside": (changed("u", (0, 0), 2.5), "u leaves"),
    "u NaN": (changed("u", (0, 0), np.nan), "not finite"),
    "u elsewhere": (changed("u", 0, 0.0), "can be proved"),
    "a row twice": (changed("rows", 1, 0), "not ascending numbers"),
    "a row that is not there": (changed("rows", 2, 3), "not ascending numbers"),
    "a negative row": (changed("rows", 0, -1), "not ascending numbers"),
    "rows exchanged": (
        given_as("d", ARRAYS["d"][::-1].copy()),
        "positive semidefinite|can be proved|negative diagonal",
    ),
    "rows of another length": (given_as("rows", ARRAYS["rows"][:2]), "d is"),
    "pointers shifted": (given_as("start", ARRAYS["start"] + 1), "does not divide"),
    "pointers short": (changed("start", -1, len(ARRAYS["pair"]) - 1), "does not divide"),
    "pointers crossed": (changed("start", 1, len(ARRAYS["pair"]) + 5), "does not divide"),
    "pointers missing": (given_as("start", ARRAYS["start"][:-1]), "start is"),
    "a pair on the diagonal": (changed("pair", 0, 0), "two weights i < j"),
    "a pair reversed": (changed("pair", 0, PROBLEM.n), "two weights i < j"),
    "a pair outside": (changed("pair", -1, PROBLEM.n**2 + 1), "two weights i < j"),
    "a pair negative": (changed("pair", 0, -1), "two weights i < j"),
    "a pair twice": (changed("pair", 1, ARRAYS["pair"][0]), "not ascending"),
    "a kind that is none": (changed("kind", 0, 4), "of a kind 0..3"),
    "kinds exchanged": (given_as("kind", ARRAYS["kind"] + np.uint8(1)), "positive semidefinite|can be proved"),
    "pairs as int32": (given_as("pair", ARRAYS["pair"].astype(np.int32)), "pair is int32"),
    "multipliers cut": (given_as("multiplier", ARRAYS["multiplier"][:-1]), "multiplier is"),
    "hash shortened": (replace(HONEST, problem=HONEST.problem[:12]), "another problem"),
    "claims infinity": (replace(HONEST, bound=float("inf")), "claims a bound of inf"),
    "passed off as shared": (
        replace(HONEST, kind="diagonal", arrays={**ARRAYS, "rows": None}),
        "u leaves [0, 1]",
    ),
    "passed off as a tree": (replace(HONEST, kind="tree"), "it has no array 'step'"),
    "d of the next row": (
        given_as("d", np.roll(ARRAYS["d"], 1, axis=0)),
        "positive semidefinite",
    ),
    "u of the next row": (given_as("u", np.roll(ARRAYS["u"], 1, axis=0)), "can be proved"),
    "u infinite": (changed("u", (2, 11), np.inf), "not finite"),
    "u a hair outside": (changed("u", (0, 0), np.nextafter(np.float32(2), np.float32(3))), "u leaves"),
    "rho infinite": (changed("rho", 1, np.inf), "not finite"),
    "rho a hair negative": (changed("rho", 1, -5e-324), "rho is negative"),
    "a multiplier infinite": (changed("multiplier", -1, np.inf), "not finite"),
    "all multipliers doubled": (
        given_as("multiplier", ARRAYS["multiplier"] * 2),
        "positive semidefinite",
    ),
    "all multipliers gone": (given_as("multiplier", ARRAYS["multiplier"] * 0), "positive semidefinite"),
    "rows as int32": (given_as("rows", ARRAYS["rows"].astype(np.int32)), "rows is int32"),
    "start as float": (given_as("start", ARRAYS["start"].astype(float)), "start is float64"),
    "start not from 0": (changed("start", 0, 1), "does not divide"),
    "kind as int64": (given_as("kind", ARRAYS["kind"].astype(np.int64)), "kind is int64"),
    "d of one row more": (given_as("d", np.vstack([ARRAYS["d"], ARRAYS["d"][:1]])), "d is"),
    "rho as a column": (given_as("rho", ARRAYS["rho"][:, None]), "rho is"),
    "d as float32": (given_as("d", ARRAYS["d"].astype(np.float32)), "d is float32"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged(name):
    certificate, reason = FORGED[name]
    checked = verify.check(PROBLEM, certificate)
    assert not checked.ok
    assert any(part in checked.reason for part in reason.split("|")), checked.reason


# --- triples ---------------------------------------------------------------------------------------------------------


OTHER = repelling_layer(rows=2, seed=1, spread=0.1)
WITH_TRIPLES = (
    Bound(kind="triangles", seconds=3600)
    .run(OTHER, State(keep=~OTHER.pattern.prune(wanda_score(OTHER.W, OTHER.G))), Context(threads=1))
    .certificate
)
WITH = WITH_TRIPLES.arrays


other, other_as = partial(changed, of=WITH_TRIPLES), partial(given_as, of=WITH_TRIPLES)


def test_triples_prove_their_claim_and_survive_a_file():
    assert len(WITH["rows"]) == 2
    assert len(WITH["triple"]) > 10
    checked = verify.check(OTHER, WITH_TRIPLES)
    assert checked.ok
    assert WITH_TRIPLES.bound == pytest.approx(checked.bound, rel=1e-9)
    assert checked.bound <= best_mask(OTHER)[0]
    assert verify.check(OTHER, Certificate.from_bytes(WITH_TRIPLES.to_bytes())) == checked


FORGED_TRIPLES = {
    "a weight negative": (other("weight", 0, -1e-6), "a triple has a negative multiplier"),
    "a weight NaN": (other("weight", 0, np.nan), "not finite"),
    "a weight infinite": (other("weight", -1, np.inf), "not finite"),
    "a weight huge": (other("weight", 0, 1e30), "positive semidefinite"),
    "weights doubled": (other_as("weight", WITH["weight"] * 2), "positive semidefinite|can be proved"),
    "weights gone": (other_as("weight", WITH["weight"] * 0), "positive semidefinite|can be proved"),
    "weights as float64": (other_as("weight", WITH["weight"].astype(float)), "weight is float64"),
    "weights cut": (other_as("weight", WITH["weight"][:-1]), "weight is"),
    "a triple reversed": (other_as("triple", WITH["triple"][:, ::-1].copy()), "3 ascending weights"),
    "a weight twice in a triple": (other("triple", 0, [1, 1, 2]), "3 ascending weights"),
    "a triple outside": (other("triple", 0, [1, 2, 12]), "3 ascending weights"),
    "triples as int64": (other_as("triple", WITH["triple"].astype(np.int64)), "triple is int64"),
    "triples as pairs": (other_as("triple", WITH["triple"][:, :2].copy()), "triple is"),
    "a corner that is none": (other("corner", 0, 4), "a corner 0..3"),
    "corners exchanged": (
        other_as("corner", (WITH["corner"] + np.uint8(1)) % np.uint8(4)),
        "positive semidefinite|can be proved",
    ),
    "pointers shifted": (other_as("triple_start", WITH["triple_start"] + 1), "does not divide the triples"),
    "pointers short": (other("triple_start", -1, len(WITH["triple"]) - 1), "does not divide the triples"),
    "pointers crossed": (other("triple_start", 1, len(WITH["triple"]) + 5), "does not divide the triples"),
    "triples of the next row": (
        other_as("triple_start", np.array([0, 0, len(WITH["triple"])])),
        "positive semidefinite|can be proved",
    ),
    "claims too much": (replace(WITH_TRIPLES, bound=WITH_TRIPLES.bound * (1 + 1e-5)), "can be proved"),
}


# --- fives -----------------------------------------------------------------------------------------------------------


ODD = odd_layer()
WITH_FIVES = (
    Bound(kind="pentagons", seconds=3600)
    .run(ODD, State(keep=~ODD.pattern.prune(wanda_score(ODD.W, ODD.G))), Context(threads=1))
    .certificate
)
FIVE = WITH_FIVES.arrays


fiver, fiver_as = partial(changed, of=WITH_FIVES), partial(given_as, of=WITH_FIVES)


def test_fives_prove_what_triples_cannot_and_survive_a_file():
    assert len(FIVE["five"]) > 0
    checked = verify.check(ODD, WITH_FIVES)
    assert checked.ok
    best = best_mask(ODD)[0]
    assert best * (1 - 1e-2) <= checked.bound <= best
    state = State(keep=~ODD.pattern.prune(wanda_score(ODD.W, ODD.G)))
    below = Bound(kind="triangles", seconds=3600).run(ODD, state, Context(threads=1))
    assert below.lower < best * (1 - 2e-2)
    assert verify.check(ODD, Certificate.from_bytes(WITH_FIVES.to_bytes())) == checked


FORGED_FIVES = {
    "a share negative": (fiver("share", 0, -1e-6), "a five has a negative multiplier"),
    "a share NaN": (fiver("share", 0, np.nan), "not finite"),
    "a share huge": (fiver("share", 0, 1e30), "positive semidefinite"),
    "shares doubled": (fiver_as("share", FIVE["share"] * 2), "positive semidefinite|can be proved"),
    "shares gone": (fiver_as("share", FIVE["share"] * 0), "positive semidefinite|can be proved"),
    "shares as float64": (fiver_as("share", FIVE["share"].astype(float)), "share is float64"),
    "shares cut": (fiver_as("share", FIVE["share"][:-1]), "share is"),
    "a five reversed": (fiver_as("five", FIVE["five"][:, ::-1].copy()), "5 ascending weights"),
    "a weight twice in a five": (fiver("five", 0, [1, 1, 2, 3, 4]), "5 ascending weights"),
    "a five outside": (fiver("five", 0, [1, 2, 3, 4, 10]), "5 ascending weights"),
    "fives as int64": (fiver_as("five", FIVE["five"].astype(np.int64)), "five is int64"),
    "fives as triples": (fiver_as("five", FIVE["five"][:, :3].copy()), "five is"),
    "a sign that is none": (fiver("sign", 0, 16), "a sign 0..15"),
    "signs exchanged": (fiver_as("sign", FIVE["sign"] ^ np.uint8(5)), "positive semidefinite|can be proved"),
    "pointers shifted": (fiver_as("five_start", FIVE["five_start"] + 1), "does not divide the fives"),
    "pointers short": (fiver("five_start", -1, len(FIVE["five"]) - 1), "does not divide the fives"),
    "claims too much": (replace(WITH_FIVES, bound=WITH_FIVES.bound * (1 + 1e-5)), "can be proved"),
}


FORGED_CUTS = [pytest.param(OTHER, *case, id=f"triples: {name}") for name, case in FORGED_TRIPLES.items()]
FORGED_CUTS += [pytest.param(ODD, *case, id=f"fives: {name}") for name, case in FORGED_FIVES.items()]


@pytest.mark.parametrize(("problem", "certificate", "reason"), FORGED_CUTS)
def test_forged_cuts(problem, certificate, reason):
    checked = verify.check(problem, certificate)
    assert not checked.ok
    assert any(part in checked.reason for part in reason.split("|")), checked.reason


@pytest.mark.parametrize(
    ("problem", "certificate", "name"),
    [(OTHER, WITH_TRIPLES, name) for name in verify_products.TRIPLES]
    + [(ODD, WITH_FIVES, name) for name in verify_products.FIVES],
)
def test_a_missing_array_of_cuts(problem, certificate, name):
    arrays = {key: array for key, array in certificate.arrays.items() if key != name}
    assert verify.check(problem, replace(certificate, arrays=arrays)).reason == f"it has no array {name!r}"


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
    own_proof = OwnProof(np.zeros(n), 0.0, pair, kind, m, triple, corner, weight, five, sign, share)
    N = verify_products.products(own_proof, n)
    for v in itertools.product([0, 1], repeat=n):
        found = N.matrix @ v @ v + N.linear @ v + N.constant
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
    products = (*own, five, np.array([9], np.uint8), m[:1])
    N = verify_products.products(OwnProof(d[0], 0.0, *products), n)
    origin, low = verify._tangent(W, G, u, d, N)
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


@pytest.mark.parametrize("name", ["e", "u", "rows", "d", "rho", "start", "pair", "kind", "multiplier"])
def test_a_missing_array(name):
    arrays = {key: array for key, array in ARRAYS.items() if key != name}
    assert verify.check(PROBLEM, replace(HONEST, arrays=arrays)).reason == f"it has no array {name!r}"


def test_rows_missing_fall_back_to_the_shared_proof():
    cut = ARRAYS["start"][2]
    arrays = dict(ARRAYS)
    for name in ("rows", "d", "rho"):
        arrays[name] = ARRAYS[name][:2]
    for name in ("pair", "kind", "multiplier"):
        arrays[name] = ARRAYS[name][:cut]
    arrays["start"] = ARRAYS["start"][:3]
    certificate = replace(HONEST, arrays=arrays)
    assert "can be proved" in verify.check(PROBLEM, certificate).reason
    weaker = verify.check(PROBLEM, replace(certificate, bound=0.0))
    assert weaker.ok
    assert weaker.bound < verify.check(PROBLEM, HONEST).bound


def test_a_pattern_across_rows_is_refused():
    other = PROBLEM.with_pattern("unstructured:0.5")
    assert "rows are independent" in verify.check(other, replace(HONEST, problem=other.hash)).reason


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
