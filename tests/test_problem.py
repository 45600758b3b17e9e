"""The objective against the inputs themselves; what a problem refuses; its identity."""

import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layers import PATTERNS, hostile_layers, integer_layer, pattern_of, random_layer
from oracles import gradient

from fwbench.patterns import PatternError
from fwbench.problem import Problem, ProblemError, labels, row_errors, shrunk


def with_inputs(rows: int = 3, n: int = 8, tokens: int = 20, seed: int = 0) -> tuple[Problem, np.ndarray]:
    """A problem and its inputs ``X (n, tokens)``: of whole numbers, so that sums over 16 tokens are exact."""
    rng = np.random.default_rng(seed)
    X = rng.integers(-3, 4, (n, tokens)).astype(float)
    return Problem("inputs", rng.integers(-3, 4, (rows, n)), X @ X.T / tokens, "0.5"), X


# --- the objective ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000))
def test_error_is_the_change_of_the_outputs(seed):
    problem, X = with_inputs(tokens=16, seed=seed)
    keep = np.random.default_rng(seed).random(problem.shape) < 0.5
    W = problem.W.astype(float)
    outputs = ((W @ X - (keep * W) @ X) ** 2).sum(axis=1) / X.shape[1]
    assert problem.row_errors(~keep).tolist() == outputs.tolist()
    assert problem.error(keep) == outputs.sum()
    assert problem.total == ((W @ X) ** 2).sum() / X.shape[1] == pytest.approx(np.trace(W @ problem.G @ W.T))


def test_a_mask_is_evaluated_once(monkeypatch):
    """And never mistaken for another: a mask changed in place is another mask."""
    problem, X = with_inputs(tokens=16)
    calls = []
    monkeypatch.setattr("fwbench.problem.row_errors", lambda G, change: calls.append(1) or row_errors(G, change))
    keep = np.zeros(problem.shape, bool)
    for column in (0, 3):
        keep[:, column] = True
        wanted = float(((np.where(keep, 0, problem.W) @ X) ** 2).sum() / 16)
        assert problem.error(keep) == problem.error(np.asfortranarray(keep)) == wanted
    assert len(calls) == 2


def test_error_at_a_relaxed_point():
    problem, X = with_inputs(tokens=16)
    u = np.random.default_rng(1).random(problem.shape)
    expected = ((problem.W * u @ X) ** 2).sum(axis=1) / 16
    np.testing.assert_allclose(problem.row_errors(u), expected, rtol=1e-13)
    np.testing.assert_allclose(problem.row_errors(u.astype(np.float32)), expected, rtol=1e-6)


def test_error_of_changed_weights():
    problem, X = with_inputs(tokens=16)
    weights = np.random.default_rng(1).integers(-3, 4, problem.shape)
    assert problem.error_of_weights(weights) == (((problem.W - weights) @ X) ** 2).sum() / 16
    assert problem.error_of_weights(problem.W) == 0
    assert problem.error_of_weights(0 * problem.W) == problem.total


@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradient_by_central_differences(pattern):
    problem = random_layer(pattern, rows=3, n=8)
    u = np.random.default_rng(0).random(problem.shape)
    h = 0.25  # f is quadratic: central differences are exact but for rounding
    steps = h * np.eye(problem.n)
    numeric = [(problem.row_errors(u + s) - problem.row_errors(u - s)) / (2 * h) for s in steps]
    np.testing.assert_allclose(gradient(problem, u), np.transpose(numeric), rtol=1e-10, atol=1e-12)


def test_gradient_of_a_known_quadratic():
    problem = Problem(
        "diagonal", [[1.0, 2.0, -3.0]], np.diag([1.0, 2.0, 0.5]), np.array([1])
    )  # f = u1² + 8u2² + 4.5u3²
    assert gradient(problem, np.array([[1.0, 0.5, 2.0]])).tolist() == [[2.0, 8.0, 18.0]]


def test_one_formula_for_numpy_and_torch():
    problem, _ = with_inputs(tokens=16)
    u = np.random.default_rng(0).random((2, *problem.shape))  # a batch
    W, G = problem.W.astype(float), problem.G
    tensors = [torch.tensor(x) for x in (W, G, u)]
    np.testing.assert_allclose(
        row_errors(tensors[1], tensors[0] * tensors[2]).numpy(), row_errors(G, W * u), rtol=1e-12
    )
    assert row_errors(G, W * u).shape == (2, problem.rows)


# --- refusals --------------------------------------------------------------------------------------------------------

W, G = np.ones((2, 4)), np.eye(4)


def changed(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array[0, 1] = value
    return array


@pytest.mark.parametrize(
    ("W", "G", "reason"),
    [
        (np.ones(4), G, "W must be a matrix of numbers"),
        (np.ones((1, 2, 4)), G, "W must be a matrix of numbers"),
        (np.ones((2, 4), complex), G, "W must be a matrix of numbers"),
        (np.full((2, 4), "a"), G, "W must be a matrix of numbers"),
        (W, np.ones(4), "G must be a matrix of numbers"),
        (np.ones((0, 4)), G, "W is empty"),
        (np.ones((2, 0)), np.ones((0, 0)), "W is empty"),
        (W, np.eye(5), r"G has shape \(5, 5\)"),
        (W, np.ones((4, 5)), "G has shape"),
        (changed(W, np.nan), G, "W has entries that are not finite"),
        (changed(W, np.inf), G, "W has entries that are not finite"),
        (W, changed(G, np.nan), "G has entries that are not finite"),
        (W, changed(G, np.inf), "G has entries that are not finite"),
        (W, changed(G, 0.1), "G is not symmetric"),
    ],
)
def test_bad_arrays_are_refused(W, G, reason):
    with pytest.raises(ProblemError, match=reason) as caught:
        Problem("bad", W, G, "0.5")
    assert "\n" not in str(caught.value)


def test_weights_beyond_float32_are_refused():
    with pytest.raises(ProblemError, match="W has entries that are not finite"):
        Problem("bad", 1e300 * W, G, "0.5")


def test_a_pattern_that_does_not_fit_is_refused():
    with pytest.raises(PatternError, match="3 does not divide"):
        Problem("bad", W, G, "1:3")


def test_rounding_asymmetry_is_mended():
    problem = Problem("almost", W, changed(G, 1e-8), "0.5")
    assert np.array_equal(problem.G, problem.G.T)
    assert problem.G[0, 1] == 5e-9


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_gram_matrices_are_positive_semidefinite(pattern):
    for problem in [*hostile_layers(pattern), random_layer(pattern, n=24, condition=1e8)]:
        problem.check_psd()
        replace(problem, G=problem.G.astype(np.float32)).check_psd(np.float32)


@pytest.mark.parametrize("low", [-1.0, -1e-3, -1e-10])
def test_an_indefinite_matrix_is_refused(low):
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))
    indefinite = basis * np.array([1, 1, 0.5, low]) @ basis.T
    with pytest.raises(ProblemError, match="not positive semidefinite"):
        Problem("indefinite", W, (indefinite + indefinite.T) / 2, "0.5").check_psd()


def test_a_negative_diagonal_is_refused():
    for G in (-np.eye(4), np.diag([1.0, 1.0, 1.0, -1e-3])):
        with pytest.raises(ProblemError, match="not positive semidefinite"):
            Problem("negative", W, G, "0.5").check_psd()


@pytest.mark.parametrize(
    ("pattern", "together"), [("0.5", 1), ("2:4", 1), ("transposable:2:4", 4), ("unstructured:0.5", 8)]
)
def test_the_better_of_two_is_chosen_for_all_rows_that_are_tied(pattern, together):
    problem = random_layer(pattern, rows=8, n=8)
    rng = np.random.default_rng(0)
    u, other = rng.random((2, 8, 8))
    found = problem.better(u, other)
    for first in range(0, 8, together):
        rows = slice(first, first + together)
        own, rival = (problem.row_errors(point)[rows].sum() for point in (u, other))
        assert np.array_equal(found[rows], (other if rival < own else u)[rows])
    assert np.array_equal(problem.better(u, u), u)


# --- identity --------------------------------------------------------------------------------------------------------


def test_immutable():
    given_W, given_G, meta = W.astype(np.float32), G.copy(), {"model": "tiny"}
    problem = Problem("frozen", given_W, given_G, "0.5", meta)
    for array in (problem.W, problem.G, problem.mask_errors(problem.W > 0)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 5
    with pytest.raises(FrozenInstanceError):
        problem.W = given_W
    with pytest.raises(TypeError):
        problem.meta["model"] = "other"
    given_W[0, 0], given_G[0, 0], meta["model"] = 7, 7, "other"  # the caller's own stay his
    assert problem.W[0, 0] == problem.G[0, 0] == 1
    assert problem.meta["model"] == "tiny"


def test_two_problems_share_one_gram_matrix():
    problem = Problem("first", W, G, "0.5")
    for other in (replace(problem, W=2 * W), problem.with_pattern("2:4"), Problem("second", W, problem.G, "0.5")):
        assert other.G is problem.G
    shown = problem.G[:]  # a view: what is below it may still change
    assert not np.shares_memory(Problem("third", W, shown, "0.5").G, problem.G)


def test_types_are_converted_once():
    problem = Problem("types", [[1, 2]], [[1, 0], [0, 1]], "0.5")
    assert (problem.W.dtype, problem.G.dtype) == (np.float32, np.float64)
    assert (problem.rows, problem.n, problem.shape) == (1, 2, (1, 2))
    transposed = Problem("order", np.asfortranarray(np.ones((3, 2))), np.eye(2), "0.5")
    assert transposed.W.flags.c_contiguous


def test_the_hash_is_the_content():
    problem = integer_layer("0.5")
    same = Problem("another name", problem.W, problem.G, "0.5", {"layer": "other"})
    assert same.hash == problem.hash
    assert len(problem.hash) == 64
    assert replace(problem, pattern=np.full(4, 6)).hash == problem.hash  # the same counts, written otherwise
    others = [
        replace(problem, W=changed(problem.W, 9)),
        replace(problem, G=problem.G + np.eye(problem.n)),
        *(problem.with_pattern(pattern) for pattern in ("0.25", "unstructured:0.5", "2:4", "3:6")),
    ]
    assert len({other.hash for other in others} | {problem.hash}) == len(others) + 1
    assert problem.with_pattern("6:12").hash == problem.hash  # groups of 12 are the rows


def test_rows_and_columns_are_told_apart():
    tall, wide = Problem("a", np.ones((4, 1)), [[1.0]], "0"), Problem("b", np.ones((1, 4)), np.zeros((4, 4)), "0")
    assert tall.hash != wide.hash


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pickle(pattern):
    problem = replace(random_layer(pattern), meta={"model": "tiny"}, origin="/a/file")
    back = pickle.loads(pickle.dumps(problem))
    assert back.origin == "/a/file"
    assert (back.hash, back.name, back.pattern, dict(back.meta)) == (
        problem.hash,
        problem.name,
        problem.pattern,
        {"model": "tiny"},
    )
    assert not back.W.flags.writeable
    assert not back.G.flags.writeable


def test_with_pattern_changes_nothing_else():
    problem = random_layer("0.5", n=8)
    other = problem.with_pattern(pattern_of("rows", 3, 8))
    assert np.array_equal(other.W, problem.W)
    assert np.array_equal(other.G, problem.G)
    assert problem.counts.tolist() == [4, 4, 4]
    assert other.pattern.counts(other.shape).tolist() == [0, 4, 8]


def test_no_two_problems_are_called_the_same():
    a, b, c, d, e = (letter * 64 for letter in "abcde")
    known = [(a, "x", "0.5"), (b, "x", "2:4"), (c, "y", "0.5"), (d, "z", "0.5"), (e, "z", "0.5"), (a, "x", "0.5")]
    last = {c: "y", d: f"z (0.5, {d[:12]})", e: f"z (0.5, {e[:12]})"}
    assert labels(known) == {a: "x (0.5)", b: "x (2:4)"} | last
    assert labels(known, pattern_shown=True) == {a: "x", b: "x"} | last


def test_shrunk_keeps_the_diagonal_and_scales_the_rest():
    G = np.array([[4.0, -2.0], [-2.0, 9.0]])
    assert np.array_equal(shrunk(G, 0.25), [[4.0, -1.5], [-1.5, 9.0]])
    assert np.array_equal(shrunk(G, 0), G)
    assert np.array_equal(shrunk(G, 1), np.diag([4.0, 9.0]))
    assert G[0, 1] == -2.0
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ProblemError, match="shrinkage must lie between 0 and 1"):
            shrunk(G, wrong)
