"""The checker: honest certificates pass, forged ones do not, and what it proves is true in exact arithmetic."""

import math
import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import PATTERNS, hostile_layers, integer_layer, pattern_of, random_layer
from oracles import exact_bound, exactly, exactly_psd, relaxed_minimum

from fwbench import bounds, verify
from fwbench.problem import Problem
from fwbench.result import Certificate
from fwbench.verify import rounding
from fwbench.verify.rows import shared_bounds


def honest(problem: Problem, seed: int = 0, e: np.ndarray | None = None) -> Certificate:
    u = np.random.default_rng(seed).random(problem.shape)
    return bounds.certificate(problem, problem.pattern.prune(u) * 0.4 + 0.3 * u, e, "test")


def forged(certificate: Certificate, **arrays: object) -> Certificate:
    return replace(certificate, arrays={**certificate.arrays, **arrays})


def refusal(problem: Problem, certificate: Certificate) -> str:
    checked = verify.check(problem, certificate)
    assert not checked.ok
    assert checked.bound == -math.inf
    assert "\n" not in checked.reason
    return checked.reason


# --- honest ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_honest_certificates_hold(pattern):
    ill = [random_layer(pattern, n=64, condition=condition) for condition in (1.0, 1e4, 1e8)]
    for problem in [*hostile_layers(pattern), integer_layer(pattern), *ill]:
        e = 0.9 * max(np.linalg.eigvalsh(problem.G)[0], 0.0) * np.ones(problem.n)
        for certificate in (honest(problem), honest(problem, e=e)):
            checked = verify.check(problem, certificate)
            assert checked.ok, (problem.name, checked.reason)
            assert checked.bound == pytest.approx(certificate.bound, rel=1e-6, abs=1e-9 * problem.total)


@pytest.mark.parametrize("tokens", [0, 1, 3, 12])
def test_singular_gram_matrices(tokens):
    X = np.random.default_rng(0).standard_normal((12, tokens))
    problem = Problem("singular", np.ones((2, 12)), X @ X.T, "0.5")
    assert verify.check(problem, honest(problem)).ok


def test_a_certificate_survives_its_file(tmp_path):
    problem = random_layer("0.5")
    certificate = honest(problem)
    path = tmp_path / "c.npz"
    path.write_bytes(certificate.to_bytes())
    back = Certificate.read(path)
    assert {**vars(back), "arrays": 0} == {**vars(certificate), "arrays": 0}
    assert all(np.array_equal(back.arrays[key], certificate.arrays[key]) for key in ("e", "u"))
    assert verify.check(problem, back) == verify.check(problem, certificate)


def test_it_may_claim_less_than_it_proves():
    problem = random_layer("0.5")
    certificate = bounds.certificate(problem, relaxed_minimum(problem)[1])
    proved = verify.check(problem, certificate).bound
    assert proved > 0
    assert verify.check(problem, replace(certificate, bound=proved / 2)) == verify.Verification(True, proved)


# --- forged ----------------------------------------------------------------------------------------------------------

PROBLEM = random_layer("0.5", n=12)
HONEST = honest(PROBLEM)
U, E = HONEST.arrays["u"], HONEST.arrays["e"]


def test_e_at_the_boundary():
    # eigenvalues 1 and 3: G - e I is positive semidefinite for e ≤ 1 exactly
    problem = Problem("boundary", [[1.0, -2.0]], [[2.0, 1.0], [1.0, 2.0]], "0.5")
    u = np.full((1, 2), 0.5, dtype=np.float32)
    for e, proved in ((1 - 1e-9, True), (1 - 1e-13, True), (1.0, False), (1 + 1e-15, False), (1 + 1e-9, False)):
        certificate = Certificate(problem.hash, 0.0, "diagonal", {"e": np.full(2, e), "u": u})
        assert verify.check(problem, certificate).ok == proved, e
    assert refusal(problem, certificate) == "G - diag(e) cannot be proved positive semidefinite"


@pytest.mark.parametrize("pattern", ["0.5", "unstructured:0.4", "2:4"])
def test_e_too_large_by_a_billionth(pattern):
    problem = random_layer(pattern, n=16)
    limit = np.linalg.eigvalsh(problem.G)[0]
    for factor in (1 - 1e-9, 1 + 1e-9):
        e = np.full(problem.n, factor * limit)
        certificate = replace(forged(honest(problem), e=e), bound=0.0)
        assert verify.check(problem, certificate).ok == (factor < 1)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"u": U + np.float32(1e-6) + (U.max() < 2)}, r"u leaves \[0, 1\]"),
        ({"u": np.where(U.max() == U, np.float32(1.0000001), U)}, r"u leaves \[0, 1\]"),
        ({"u": np.where(U.min() == U, np.float32(-1e-30), U)}, r"u leaves \[0, 1\]"),
        ({"u": np.where(U.max() == U, np.float32(np.nan), U)}, "u has entries that are not finite"),
        ({"u": np.full_like(U, np.inf)}, "u has entries that are not finite"),
        ({"e": np.where(E.max() == E, np.nan, E)}, "e has entries that are not finite"),
        ({"e": np.full_like(E, -np.inf)}, "e has entries that are not finite"),
        ({"e": PROBLEM.G.diagonal() * 2}, "cannot be proved"),
        ({"e": PROBLEM.G.diagonal()}, "cannot be proved"),
        ({"u": U.astype(np.float64)}, r"u is float64 \(3, 12\), not float32 \(3, 12\)"),
        ({"u": U.astype(np.float16)}, "u is float16"),
        ({"u": U.astype(complex)}, "u is complex128"),
        ({"e": E.astype(np.float32)}, "e is float32"),
        ({"u": U[:2]}, r"u is float32 \(2, 12\), not"),
        ({"u": U.T}, r"u is float32 \(12, 3\), not"),
        ({"u": U.ravel()}, r"u is float32 \(36,\), not"),
        ({"e": E[:-1]}, r"e is float64 \(11,\), not float64 \(12,\)"),
        ({"e": np.array(0.0)}, r"e is float64 \(\), not"),
        ({"e": np.zeros((3, 12))}, r"e is float64 \(3, 12\), not"),
        ({"u": None}, "it has no array 'u'"),
        ({"e": 0.0}, "it has no array 'e'"),
        ({"e": E.tolist()}, "it has no array 'e'"),
        ({"e": np.where(E.min() == E, np.inf, E)}, "e has entries that are not finite"),
        ({"e": np.where(np.arange(12) == 0, 1e300, E)}, "cannot be proved"),
        ({"e": np.where(np.arange(12) == 11, PROBLEM.G.diagonal(), E)}, "cannot be proved"),
        ({"e": E.astype(int)}, r"e is int64 \(12,\), not float64"),
        ({"e": E.astype(np.longdouble)}, r"e is \w+ \(12,\), not float64"),
        ({"e": E.astype(">f8").view(">u8")}, r"e is >?u\w+ \(12,\), not float64"),
        ({"e": E[:0]}, r"e is float64 \(0,\), not"),
        ({"e": E[:, None]}, r"e is float64 \(12, 1\), not"),
        ({"e": np.diag(E)}, r"e is float64 \(12, 12\), not"),
        ({"e": np.append(E, 0.0)}, r"e is float64 \(13,\), not"),
        ({"e": E.astype(str)}, r"e is <U\d+ \(12,\), not"),
        ({"u": np.full_like(U, -np.inf)}, "u has entries that are not finite"),
        ({"u": -U}, r"u leaves \[0, 1\]"),
        ({"u": np.full_like(U, 1e38)}, r"u leaves \[0, 1\]"),
        ({"u": np.full_like(U, np.nextafter(np.float32(1), np.float32(2)))}, r"u leaves \[0, 1\]"),
        ({"u": U > 0.5}, r"u is bool \(3, 12\), not"),
        ({"u": U.view(np.uint32)}, r"u is uint32 \(3, 12\), not"),
        ({"u": U[None]}, r"u is float32 \(1, 3, 12\), not"),
        ({"u": U[:0]}, r"u is float32 \(0, 12\), not"),
        ({"u": np.concatenate([U, U])}, r"u is float32 \(6, 12\), not"),
        ({"u": U.tolist()}, "it has no array 'u'"),
    ],
)
def test_bad_arrays_are_refuted(arrays, reason):
    assert re.search(reason, refusal(PROBLEM, forged(HONEST, **arrays)))


def one_weight(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[0, 0] = np.nextafter(array[0, 0], array.dtype.type(np.inf))
    return array


@pytest.mark.parametrize(
    "other",
    [
        {"W": one_weight(PROBLEM.W)},
        {"W": -PROBLEM.W},
        {"W": PROBLEM.W[::-1]},
        {"W": PROBLEM.W[:2]},
        {"G": one_weight(PROBLEM.G)},
        {"G": PROBLEM.G[::-1, ::-1]},
        {"pattern": "2:4"},
        {"pattern": "unstructured:0.5"},
    ],
    ids=["a bit of W", "signs", "rows turned", "rows cut", "a bit of G", "columns turned", "2:4", "unstructured"],
)
def test_a_problem_next_to_it_is_refuted(other):
    assert refusal(replace(PROBLEM, **other), HONEST) == "it belongs to another problem (hash differs)"


@pytest.mark.parametrize("changed", ["W", "G", "pattern"])
def test_another_problem_is_refuted(changed):
    other = {"W": PROBLEM.W * 2, "G": PROBLEM.G * 2, "pattern": "0.25"}[changed]
    assert "belongs to another problem" in refusal(replace(PROBLEM, **{changed: other}), HONEST)


@pytest.mark.parametrize("kind", ["trust me", ["diagonal"], None])  # a file's header may hold anything
def test_an_unknown_kind_is_refuted(kind):
    assert refusal(PROBLEM, replace(HONEST, kind=kind)) == f"unknown kind of certificate {kind!r}"


@pytest.mark.parametrize("claim", [math.nan, math.inf, -math.inf, "12", None, 10**400])
def test_a_claim_that_is_no_number_is_refuted(claim):
    assert refusal(PROBLEM, replace(HONEST, bound=claim)) == f"it claims a bound of {claim}"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_inflated_claim_is_refuted(pattern):
    problem = random_layer(pattern)
    certificate = bounds.certificate(problem, relaxed_minimum(problem)[1])
    assert certificate.bound > 1e-3 * problem.total
    inflated = replace(certificate, bound=certificate.bound * (1 + 1e-5))
    assert re.fullmatch(r"it claims a bound of \S+, only \S+ can be proved", refusal(problem, inflated))


def test_an_e_of_huge_negative_numbers_proves_nothing_false():
    certificate = replace(forged(HONEST, e=np.full(12, -1e300)), bound=0.0)
    checked = verify.check(PROBLEM, certificate)
    assert checked.bound in (0.0, -math.inf)


@pytest.mark.parametrize("cut", [0, 1, 100, -200, -1])
def test_truncated_files_are_refused(cut, tmp_path):
    path = tmp_path / "c.npz"
    path.write_bytes(HONEST.to_bytes()[:cut])
    with pytest.raises(ValueError, match=r"c\.npz: not a readable certificate") as caught:
        Certificate.read(path)
    assert "\n" not in str(caught.value)


@given(st.integers(0, 1500), st.integers(0, 255))
@settings(max_examples=60)
def test_a_damaged_file_is_refused_or_proves_what_it_says(position, byte):
    data = bytearray(HONEST.to_bytes())
    data[position % len(data)] = byte
    try:
        certificate = Certificate.from_bytes(bytes(data))
    except ValueError:
        return
    checked = verify.check(PROBLEM, certificate)
    assert not checked.ok or checked.bound <= float(
        exact_bound(PROBLEM, certificate.arrays["u"], certificate.arrays["e"])
    )


@pytest.mark.parametrize("text", [b"", b"PK", b"not a file at all", b"\x93NUMPY"])
def test_other_files_are_refused(text, tmp_path):
    (tmp_path / "c.npz").write_bytes(text)
    for path in (tmp_path / "c.npz", tmp_path / "missing.npz", tmp_path):
        with pytest.raises(ValueError, match=str(path)):
            Certificate.read(path)


def test_pickled_objects_are_never_loaded(tmp_path):
    np.savez(tmp_path / "c.npz", header=np.array({"x": print}, dtype=object), e=E, u=U)
    with pytest.raises(ValueError, match="not a readable certificate"):
        Certificate.read(tmp_path / "c.npz")


def test_a_bound_that_overflows_is_refuted():
    problem = replace(PROBLEM, W=PROBLEM.W * np.float32(1e30))
    arrays = {"e": np.full(12, -1e300), "u": U}
    assert refusal(problem, Certificate(problem.hash, 0.0, "diagonal", arrays)) == "a bound overflows"


# --- rational arithmetic ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_rows_are_proved_one_by_one(pattern):
    problem = random_layer(pattern, n=12)
    certificate = honest(problem, e=0.9 * np.linalg.eigvalsh(problem.G)[0] * np.ones(12))
    checked = verify.check(problem, certificate)
    assert len(checked.rows) == problem.rows
    assert checked.bound == verify.total(checked.rows) == pytest.approx(sum(checked.rows))
    u, e = certificate.arrays["u"], certificate.arrays["e"]
    for row, bound in enumerate(checked.rows):
        exact = exact_bound(replace(problem, W=problem.W[row : row + 1]), u[row : row + 1], e)
        assert Fraction(bound) <= max(exact, 0)
        assert float(exact) - bound <= 1e-9 * float(exact) + 1e-13 * problem.total
    assert verify.check(random_layer("unstructured:0.5"), honest(random_layer("unstructured:0.5"))).rows == ()


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_proved_is_below_exact_and_close(pattern, seed):
    rng = np.random.default_rng(seed)
    X = rng.integers(-3, 4, (8, 20)).astype(float)
    problem = Problem("integers", rng.integers(-5, 6, (3, 8)), X @ X.T, pattern_of(pattern, 3, 8))
    e = np.floor(np.full(8, np.linalg.eigvalsh(problem.G)[0])) * rng.integers(0, 2, 8)
    u = (rng.integers(0, 65, problem.shape) / 64).astype(np.float32)
    for case in (problem, random_layer(pattern, n=8, seed=seed, condition=10 ** rng.uniform(0, 8))):
        exact = exact_bound(case, u, e if case is problem else 0 * e)
        bounds = rounding.whole(case, shared_bounds(case, u, e if case is problem else 0 * e))
        proved = Fraction(verify.total(bounds))
        assert proved <= exact
        assert exact - proved <= 1e-9 * exact + 1e-13 * Fraction(case.total)


@settings(max_examples=100)
@given(seed=st.integers(0, 10_000), power=st.integers(-17, -1), sign=st.sampled_from([-1, 1]))
def test_what_is_proved_positive_semidefinite_is(seed, power, sign):
    """Integer matrices within a hair of the boundary, on either side: a proof never errs, whatever rounding does."""
    rng = np.random.default_rng(seed)
    X = rng.integers(-3, 4, (6, rng.integers(3, 9))).astype(float)
    G = X @ X.T
    e = np.full(6, np.linalg.eigvalsh(G)[0]) + sign * 10.0**power
    if rounding.proves_shared(G, e):
        assert exactly_psd(exactly(G) - np.diag(exactly(e)))
    else:
        assert sign > 0 or power < -12  # clear cases are proved


@settings(max_examples=100)
@given(seed=st.integers(0, 10_000), spread=st.integers(0, 60))
def test_sums_are_below_exact_ones_and_close(seed, spread):
    rng = np.random.default_rng(seed)
    terms = rng.standard_normal((4, 30)) * 10 ** rng.uniform(-spread, spread, (4, 30))
    terms[:, 15:] = -terms[:, :15] * (1 + rng.integers(-2, 3, (4, 15)) * 2.0**-52)  # what cancels shows the rounding
    start = rng.standard_normal(4)
    for line, first, found in zip(terms, start, rounding.lower_sums(terms, start), strict=True):
        exact, size = (sum(map(Fraction, part.tolist())) for part in (np.r_[first, line], np.abs(np.r_[first, line])))
        assert Fraction(float(found)) <= exact
        assert exact - Fraction(float(found)) <= size * Fraction(2**-52) * 40
        best = Fraction(rounding.lower_sum(np.r_[first, line].tolist()))
        assert Fraction(float(found)) <= best <= exact
        assert exact - best <= abs(exact) * Fraction(2**-51) + Fraction(2**-1074)


@pytest.mark.parametrize("power", [-1070, -1060, -1040, -1022, -1000, -960])
def test_underflow_is_accounted_for(power):
    """Numbers so small that products lose their bits, or vanish: what is proved stays below the exact bound."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        problem = integer_layer("0.5", rows=2, n=8, seed=seed)
        problem = replace(problem, W=problem.W * np.float32(0.3), G=problem.G * 2.0**power)
        u = rng.random(problem.shape).astype(np.float32)
        S = rounding.product(problem.W * u.astype(float), rounding.Rounded(problem.G, np.abs(problem.G)))
        origin, low = rounding.tangent(problem.W.astype(float), S, u.astype(float), np.zeros(problem.shape))
        W, G, v = exactly(problem.W), exactly(problem.G), exactly(u)
        half = W * ((W * v) @ G)
        assert (exactly(low) <= 2 * half).all()
        assert (exactly(origin).sum(axis=1) <= -(v * half).sum(axis=1)).all()
